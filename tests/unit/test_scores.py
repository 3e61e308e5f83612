import pytest
from rouge_score import rouge_scorer

from distill.scores import first_sentence, interval, novel_bigrams, rouge, score, split_sentences


def test_sentences() -> None:
    text = 'Dr. Smith paid $3.50 to J. Doe. "Really?" he asked. Yes! See e.g. Figure 2\nA new line'
    assert split_sentences(text) == [
        "Dr. Smith paid $3.50 to J. Doe.", '"Really?" he asked.', "Yes!", "See e.g. Figure 2", "A new line",
    ]  # fmt: skip
    assert split_sentences("C'est fini. Ça va? Été. no capital. это. Всё.") == [
        "C'est fini.", "Ça va?", "Été. no capital. это.", "Всё.",
    ]  # fmt: skip
    assert split_sentences("") == [] and first_sentence("  ") == ""
    assert first_sentence("One. Two.") == "One."


def test_rouge_is_that_of_the_package() -> None:
    pairs = [("the cats sat on mats", "a cat sat on the mat"), ("", "something"), ("x y z", "x y z")]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    ours = rouge([a for a, _ in pairs], [b for _, b in pairs])
    for metric in ("rouge1", "rouge2", "rougeL"):
        expected = [100 * scorer.score(b, a)[metric].fmeasure for a, b in pairs]
        assert ours[metric] == pytest.approx(expected)
    assert ours["rouge1"][2] == 100


def test_lsum_knows_sentences() -> None:
    scores = rouge(["B came second. A came first."], ["A came first. B came second."])
    assert scores["rougeLsum"][0] == 100 and scores["rougeL"][0] < 100


def test_intervals_repeat_and_hold_the_mean() -> None:
    values = [float(i % 7) for i in range(200)]
    first = interval(values, seed=1)
    assert first == interval(values, seed=1) != interval(values, seed=2)
    assert first["low"] < first["mean"] < first["high"]
    assert first["mean"] == pytest.approx(sum(values) / 200)
    spread = (sum((v - first["mean"]) ** 2 for v in values) / 200) ** 0.5 / 200**0.5
    assert first["high"] - first["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_novel_bigrams() -> None:
    assert novel_bigrams("a b c d", "a b c") == 0
    assert novel_bigrams("a b c d", "A b, d e") == pytest.approx(200 / 3)
    assert novel_bigrams("a b", "a") is None


def test_a_whole_set_is_scored_at_once() -> None:
    scores = score(["a b c", "d e f"], ["a b", ""], ["a b", "d e"], seed=0)
    assert scores["examples"] == 2 and scores["empty_summaries"] == 1
    assert scores["rouge1"]["mean"] == 50 and scores["summary_words"] == 1.0 and scores["novel_bigrams"] == 0
