"""Each rule drops what it says, and nothing else."""

from typing import Any

import pytest

from distill.filters import broken_rules, measure, repeated_ngrams
from distill.recipe import KeepIf

DOCUMENT = "the quick brown fox jumps over a lazy dog while birds watch"
GOLD = "the quick fox jumps over a dog"
COPIED, NOVEL = "the quick brown fox jumps over a lazy dog", "animals were seen leaping"
SAID: dict[str, Any] = {"log_probability": -0.5, "finished": True}


def broken(label: str, **rules: Any) -> list[str]:
    said = {key: rules.pop(key) for key in list(rules) if key in SAID and key != "finished"} or {}
    ended = rules.pop("ended", True)
    return broken_rules(label, measure(label, DOCUMENT, [GOLD]) | SAID | said | {"finished": ended}, KeepIf(**rules))


def test_measures() -> None:
    own = measure(GOLD, DOCUMENT, [GOLD])
    assert (own["rouge1"], own["rouge2"], own["rougeL"], own["length_ratio"]) == (100, 100, 100, 1)
    assert measure(COPIED, DOCUMENT, [GOLD])["copied_share"] == 100
    assert measure(NOVEL, DOCUMENT, [GOLD])["copied_share"] == 0 and measure(NOVEL, DOCUMENT, [GOLD])["rouge1"] == 0
    assert measure("dog", DOCUMENT, [GOLD])["copied_share"] is None, "one word has no bigram"
    without = measure(NOVEL, DOCUMENT, [""])
    assert [without[name] for name in ("rouge1", "rouge2", "rougeL", "length_ratio")] == [None] * 4


def test_of_several_gold_summaries_the_best_counts() -> None:
    several = measure(GOLD, DOCUMENT, [NOVEL, GOLD, " "])
    assert (several["rouge1"], several["length_ratio"]) == (100, 1)
    assert measure("a b", DOCUMENT, ["a b c d", "a"])["length_ratio"] == 2, "of the nearest length"


def test_repeated_trigrams() -> None:
    assert repeated_ngrams("a b c a b c a b c") == pytest.approx(100 * 4 / 7)
    assert repeated_ngrams("a b c d") == repeated_ngrams("a b") == repeated_ngrams("") == 0


@pytest.mark.parametrize(
    ("rule", "bound", "bad", "good"),
    [
        ("rouge1_at_least", 50, NOVEL, GOLD),
        ("rouge2_at_least", 50, NOVEL, GOLD),
        ("rougeL_at_least", 50, NOVEL, GOLD),
        ("length_ratio_at_least", 0.5, "fox jumps", GOLD),
        ("length_ratio_at_most", 1.2, COPIED, GOLD),
        ("repeated_ngrams_at_most", 10, "the fox and the fox and the fox", GOLD),
        ("copied_share_at_most", 90, COPIED, NOVEL),
    ],
)
def test_a_rule_on_the_text(rule: str, bound: float, bad: str, good: str) -> None:
    assert broken(bad, **{rule: bound}) == [rule] and broken(good, **{rule: bound}) == []
    assert broken(bad) == [], "no rule, nothing dropped"


def test_rules_on_what_the_teacher_said() -> None:
    assert broken(GOLD, log_probability_at_least=-0.4) == ["log_probability_at_least"]
    assert broken(GOLD, log_probability_at_least=-0.6) == []
    assert broken(GOLD, log_probability_at_least=-0.5) == [], "the bound itself passes"
    assert broken(COPIED, copied_share_at_most=100) == broken(GOLD, rouge1_at_least=100) == []
    assert broken_rules(GOLD, SAID | {"log_probability": float("nan")}, KeepIf(log_probability_at_least=-9)) != []
    assert broken(GOLD, finished=True, ended=False) == ["finished"] and broken(GOLD, finished=True) == []


def test_an_empty_label_is_never_read_and_several_rules_are_all_named() -> None:
    assert broken(" ") == ["empty"]
    assert broken("", rouge1_at_least=1, finished=True, ended=False) == ["rouge1_at_least", "finished", "empty"]


def test_what_cannot_be_measured_breaks_no_rule() -> None:
    assert broken_rules("dog", measure("dog", DOCUMENT, [GOLD]) | SAID, KeepIf(copied_share_at_most=0)) == []
