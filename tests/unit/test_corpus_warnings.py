"""Each thing that a user should know of a corpus is one sentence; a good corpus has none."""

import json
from pathlib import Path
from typing import Any

from distill.corpus import prepare_corpus
from distill.corpus_warnings import corpus_warnings, record_cuts, write_warnings
from distill.data import tokenize_corpus
from distill.recipe_file import parse_recipe
from distill.run import Run
from distill.tokens import Encoder
from tests.conftest import make_rows, write_corpus


def prepared(tmp_path: Path, corpus: dict[str, Any], **keys: Any) -> Run:
    recipe = parse_recipe(
        {
            "name": "x",
            "corpus": corpus,
            "teachers": {"t": {"model": "somewhere"}},
            "students": {"s": {"teacher": "t"}},
            "train": {"steps": 1},
        }
        | keys
    )
    run = Run(recipe, tmp_path / "run")
    prepare_corpus(recipe.corpus, 1, run.corpus)
    return run


def different_rows(count: int, begin: int = 0) -> list[dict[str, str]]:
    texts = [" ".join(f"w{1000 * number + i}" for i in range(30)) for number in range(begin, begin + count)]
    return [{"id": text[:9], "document": text, "summary": text[:7]} for text in texts]


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_good_corpus_has_no_warning(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c")
    run = prepared(tmp_path, {"train": str(tmp_path / "c")})
    write_warnings(run)
    assert json.loads(run.corpus_warnings.read_text()) == []


def test_every_trouble_is_a_sentence(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c")
    train = different_rows(10)
    train += [train[0], train[1] | {"id": "new"}, train[2] | {"document": ""}]
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "test.jsonl", train[:2] + different_rows(6, 100))
    assert corpus_warnings(prepared(tmp_path, {"train": str(folder)})) == [
        "1 of 13 train rows are dropped: empty document (1).",
        "1 of 12 train examples have the id of an earlier one.",
        "2 of 12 train documents repeat an earlier one, nearly word for word (2 of them exactly).",
        "2 of 8 test documents are in the training split too, nearly word for word: scores on test may be too good.",
    ]


def test_exchanged_fields(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c")
    corpus = {"train": str(folder), "document": "summary", "summary": "document"}
    warnings = corpus_warnings(prepared(tmp_path, corpus))
    [train] = [sentence for sentence in warnings if sentence.startswith("The train summaries are longer")]
    assert "Are corpus.document and corpus.summary exchanged?" in train
    translation = prepared(tmp_path / "t", corpus, evaluate={"metric": "bleu"})
    assert not any("exchanged" in sentence for sentence in corpus_warnings(translation))


def test_texts_that_are_cut_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    run = prepared(tmp_path, {"train": str(write_corpus(tmp_path / "c"))})
    cuts = tokenize_corpus(run, Encoder(tokenizer, 20, 3), "t")
    lengths = [len(tokenizer(row["document"])["input_ids"]) for row in make_rows(64)]
    long = sum(length > 20 for length in lengths)
    record_cuts(run.member("teachers", "t"), cuts)
    record_cuts(run.member("students", "s"), cuts)
    warnings = corpus_warnings(run)
    assert (
        f"teacher t, student s: {long} of 64 train documents ({100 * long / 64:.0f} %) are longer than " in warnings[0]
    )
    assert warnings[-1] == (
        "teacher t, student s: 64 of 64 train summaries (100 %) are longer than corpus.max_target_tokens (3) and are "
        "cut there."
    )
    few = {"what": "train documents", "limit": "max_source_tokens", "tokens": 9, "cut": 1, "of": 1000}
    record_cuts(run.member("teachers", "t"), [few])
    record_cuts(run.member("students", "s"), [])
    assert corpus_warnings(run) == []
    assert "1 of 1,000 train documents (0.1 %)" in corpus_warnings(run, least_share=0.0)[0]


def test_a_split_that_is_smaller_than_asked(tmp_path: Path) -> None:
    rows = different_rows(30)
    write_rows(tmp_path / "all.jsonl", [row for row in rows for _ in range(2)])
    run = prepared(tmp_path, {"train": str(tmp_path / "all.jsonl"), "split": {"validation": 5, "test": 6}})
    [sentence] = [sentence for sentence in corpus_warnings(run) if "corpus.split" in sentence]
    assert sentence.startswith("corpus.split.validation is 5, but the split has 4 examples")
