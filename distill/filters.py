"""What a label is like beside its document and gold summary, and which rules it breaks. No torch."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from distill.recipe import KeepIf
from distill.scores import novel_bigrams, rouge

NGRAM = 3
Measures = dict[str, float | None]


def measure(label: str, document: str, gold: Sequence[str]) -> Measures:
    """By name, shares and ROUGE 0 to 100; None where there is nothing to compare with (no gold, no bigram).

    Of several gold summaries ROUGE takes the best, and the ratio of lengths that of the nearest length.
    """
    gold = [text for text in gold if text.strip()]
    novel = novel_bigrams(document, label)
    measures: Measures = {
        "repeated_ngrams": repeated_ngrams(label),
        "copied_share": None if novel is None else 100 - novel,
    }
    if not gold:
        return measures | dict.fromkeys(("rouge1", "rouge2", "rougeL", "length_ratio"))
    scores, words = rouge([label], [gold]), len(label.split())
    return {
        **{name: scores[name][0] for name in ("rouge1", "rouge2", "rougeL")},
        "length_ratio": words / min((len(text.split()) for text in gold), key=lambda length: abs(length - words)),
        **measures,
    }


def repeated_ngrams(text: str) -> float:
    """Share (0 to 100) of the text's trigrams that stood in it before; 0 for fewer than three words."""
    words = text.lower().split()
    ngrams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 100 * (1 - len(set(ngrams)) / len(ngrams)) if ngrams else 0.0


def broken_rules(label: str, measures: Mapping[str, Any], keep_if: KeepIf) -> list[str]:
    """Why students must not read a label: the rules of `keep_if` that it breaks, and `empty`.

    What cannot be measured (no bigram to be copied) breaks no rule.
    """
    rules = itertools.chain(keep_if.given.items(), [("empty", True)])
    return [rule for rule, bound in rules if _breaks(rule, bound, label, measures)]


def _breaks(rule: str, bound: Any, label: str, measures: Mapping[str, Any]) -> bool:
    if rule == "empty":
        return not label.strip()
    if rule == "finished":
        return not measures["finished"]
    name, _, side = rule.rpartition("_at_")
    value = measures[name]
    if value is None:
        return False
    return not (value >= bound if side == "least" else value <= bound)  # a nan breaks every rule
