"""The scores of the first sentence of each test document as its summary: what a model has to beat."""

from typing import Any

from distill.corpus import read_references, read_split
from distill.files import read_json, write_json
from distill.run import Run
from distill.scores import first_sentence, score


def first_sentence_scores(run: Run) -> dict[str, Any]:
    """Return the scores on the test split. They are computed once for a run, and kept in `run.first_sentence`."""
    seed = run.recipe.seed
    tokenize = run.recipe.evaluate.bleu_tokenize
    settings = {"seed": seed, "bleu_tokenize": tokenize}
    if run.first_sentence.exists():
        kept = read_json(run.first_sentence)
        if kept["settings"] == settings:
            scores: dict[str, Any] = kept["scores"]
            return scores
    table = run.split("test")
    documents = [row["document"] for row in read_split(table)]
    sentences = [first_sentence(document) for document in documents]
    scores = score(documents, sentences, read_references(table), seed, tokenize)
    write_json(run.first_sentence, {"settings": settings, "scores": scores})
    return scores
