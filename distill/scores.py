"""ROUGE, BLEU and chrF of a whole set at once, with bootstrap intervals, lengths, novel bigrams. Nothing is downloaded.

Every example has one or several references; the best counts.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from rouge_score import rouge_scorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TRANSLATION = ("bleu", "chrf")
TITLES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "chrf": "chrF",
}
References = Sequence[Sequence[str]]
RESAMPLES = 1000
CONFIDENCE = 0.95

# The end of a sentence: . ! ? and closing marks, then space, then a word that does not begin in lower case.
SENTENCE_END = re.compile(r"([.!?…][\"'”’)\]]*)\s+(?=\W*(\w)|$)")
ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|cf|al|Fig|Eq|U\.S|[A-Z]))\.$")


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, by rule: line ends, and full stops that end no abbreviation or initial."""
    sentences: list[str] = []
    for line in text.splitlines():
        start = 0
        for match in SENTENCE_END.finditer(line):
            candidate = line[start : match.end(1)]
            if not ABBREVIATION.search(candidate) and not (match[2] or "").islower():
                sentences.append(candidate.strip())
                start = match.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def first_sentence(document: str) -> str:
    """The baseline: the first sentence as the summary."""
    return (split_sentences(document) or [""])[0]


def shown_metrics(metric: str) -> tuple[str, ...]:
    """What is shown of a model whose best weights `metric` decides: BLEU and chrF, or ROUGE."""
    return TRANSLATION if metric in TRANSLATION else ("rouge1", "rouge2", "rougeL")


def rouge(predictions: Sequence[str], references: References) -> dict[str, list[float]]:
    """F-measures (0 to 100) of each prediction, with Porter stemming (Lin 2004, the rouge-score package).

    Of several references, for each metric that with the highest F-measure. Words are of a-z and digits only: letters
    with marks are lost, and a text in another script has no words at all (`bleu` and `chrf` read them).
    """
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)
    scores: dict[str, list[float]] = {metric: [] for metric in ROUGE}
    for prediction, several in zip(predictions, references, strict=True):
        best = scorer.score_multi([_sentence_lines(text) for text in several], _sentence_lines(prediction))
        for metric in ROUGE:
            scores[metric].append(100 * best[metric].fmeasure)
    return scores


def corpus_scores(predictions: Sequence[str], references: References, tokenize: str) -> dict[str, float]:
    """One number (0 to 100) for each metric: the means of ROUGE; BLEU and chrF of the whole set (sacrebleu)."""
    means = {metric: sum(values) / len(values) for metric, values in rouge(predictions, references).items()}
    streams = reference_streams(references)
    return means | {
        name: float(metric.corpus_score(predictions, streams).score) for name, metric in _translation(tokenize).items()
    }


def reference_streams(references: References) -> list[tuple[str | None, ...]]:
    """The references as sacrebleu wants them: all first ones, all second ones, ...; None where an example has fewer."""
    return list(itertools.zip_longest(*references))


def interval(values: Sequence[float], seed: int) -> dict[str, float]:
    """Mean and 95 % percentile bootstrap interval (Efron 1979) over the examples; seeded, so it repeats."""
    array = np.asarray(values)
    return {"mean": float(array.mean()), **_bounds(array[_draws(len(array), seed)].mean(axis=1))}


def translation(
    predictions: Sequence[str], references: References, seed: int, tokenize: str
) -> dict[str, dict[str, Any]]:
    """BLEU (Papineni et al. 2002) and chrF (Popovic 2015) of the whole set with sacrebleu's signatures.

    The 95 % percentile bootstrap interval is over the examples: their statistics are drawn, summed and scored. sacrebleu's
    own takes its seed from the environment, and memory for all draws at once.
    """
    streams, draws, scores = reference_streams(references), _draws(len(predictions), seed), {}
    for name, metric in _translation(tokenize).items():
        statistics = np.asarray(metric._extract_corpus_statistics(predictions, streams))
        drawn = [metric._compute_score_from_stats(statistics[draw].sum(axis=0).tolist()).score for draw in draws]
        whole = metric._compute_score_from_stats(statistics.sum(axis=0).tolist())
        signature = str(metric.get_signature())
        scores[name] = {"score": float(whole.score), **_bounds(np.asarray(drawn)), "signature": signature}
    return scores


def central(entry: dict[str, Any]) -> float:
    """Of a metric in scores.json: the mean over the examples, or the score of the whole set."""
    value: float = entry["mean"] if "mean" in entry else entry["score"]
    return value


def novel_bigrams(document: str, summary: str) -> float | None:
    """Share (0 to 100) of the summary's bigrams that the document lacks; None where it has no bigram."""
    own = _bigrams(summary)
    return 100 * len(own - _bigrams(document)) / len(own) if own else None


def score(
    documents: Sequence[str], predictions: Sequence[str], references: References, seed: int, tokenize: str = "13a"
) -> dict[str, Any]:
    """All scores of a set; `tokenize` is BLEU's. `references` are whole, never cut at the training length."""
    novel = [share for pair in zip(documents, predictions, strict=True) if (share := novel_bigrams(*pair)) is not None]
    return {
        "examples": len(predictions),
        **{metric: interval(values, seed) for metric, values in rouge(predictions, references).items()},
        **translation(predictions, references, seed, tokenize),
        "summary_words": float(np.mean([len(text.split()) for text in predictions])),
        "reference_words": float(np.mean([len(text.split()) for several in references for text in several])),
        "novel_bigrams": float(np.mean(novel)) if novel else None,
        "empty_summaries": sum(not text for text in predictions),
    }


def _sentence_lines(text: str) -> str:
    return "\n".join(split_sentences(text))


def _translation(tokenize: str) -> dict[str, Any]:
    """The metrics of sacrebleu, by name."""
    return {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF()}


def _draws(examples: int, seed: int) -> np.ndarray:
    """Numbers of examples, with repetition: one row for each resample."""
    return np.random.default_rng(seed).integers(0, examples, size=(RESAMPLES, examples))


def _bounds(resampled: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"low": float(low), "high": float(high)}


def _bigrams(text: str) -> set[tuple[str, str]]:
    words = re.findall(r"\w+", text.lower())
    return set(itertools.pairwise(words))
