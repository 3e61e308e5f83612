"""ROUGE of a whole set at once, with bootstrap intervals, lengths, novel bigrams. Nothing is downloaded."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from rouge_score import rouge_scorer

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
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


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F-measures (0 to 100) of each pair, with Porter stemming (Lin 2004, the rouge-score package)."""
    scorer = rouge_scorer.RougeScorer(list(METRICS), use_stemmer=True)
    scores: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for prediction, reference in zip(predictions, references, strict=True):
        pair = scorer.score("\n".join(split_sentences(reference)), "\n".join(split_sentences(prediction)))
        for metric in METRICS:
            scores[metric].append(100 * pair[metric].fmeasure)
    return scores


def interval(values: Sequence[float], seed: int) -> dict[str, float]:
    """Mean and 95 % percentile bootstrap interval (Efron 1979) over the examples; seeded, so it repeats."""
    array = np.asarray(values)
    draws = np.random.default_rng(seed).integers(0, len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"mean": float(array.mean()), "low": float(low), "high": float(high)}


def novel_bigrams(document: str, summary: str) -> float | None:
    """Share (0 to 100) of the summary's bigrams that the document lacks; None where it has no bigram."""
    own = _bigrams(summary)
    return 100 * len(own - _bigrams(document)) / len(own) if own else None


def score(documents: Sequence[str], predictions: Sequence[str], references: Sequence[str], seed: int) -> dict[str, Any]:
    """All scores of a set. `references` are whole, never cut at the training length."""
    novel = [share for pair in zip(documents, predictions, strict=True) if (share := novel_bigrams(*pair)) is not None]
    return {
        "examples": len(predictions),
        **{metric: interval(values, seed) for metric, values in rouge(predictions, references).items()},
        "summary_words": float(np.mean([len(text.split()) for text in predictions])),
        "reference_words": float(np.mean([len(text.split()) for text in references])),
        "novel_bigrams": float(np.mean(novel)) if novel else None,
        "empty_summaries": sum(not text for text in predictions),
    }


def _bigrams(text: str) -> set[tuple[str, str]]:
    words = re.findall(r"\w+", text.lower())
    return set(itertools.pairwise(words))
