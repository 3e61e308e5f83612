import numpy as np
import pytest
from rouge_score import rouge_scorer
from sacrebleu import corpus_bleu, corpus_chrf

from distill.scores import (
    ROUGE,
    corpus_scores,
    first_sentence,
    interval,
    novel_bigrams,
    rouge,
    score,
    split_sentences,
    translation,
)

TRANSLATED = ["the cat sat on the mat", "a dog barked at the tree", "it rains", "seven birds flew over old trees"] * 6
GOLD = ["the cat sat on a mat", "the dog barked at a tree", "it is raining", "seven birds flew over the old trees"] * 6


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
    ours = rouge([a for a, _ in pairs], [[b] for _, b in pairs])
    for metric in ("rouge1", "rouge2", "rougeL"):
        expected = [100 * scorer.score(b, a)[metric].fmeasure for a, b in pairs]
        assert ours[metric] == pytest.approx(expected)
    assert ours["rouge1"][2] == 100


def test_lsum_knows_sentences() -> None:
    scores = rouge(["B came second. A came first."], [["A came first. B came second."]])
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
    scores = score(["a b c", "d e f"], ["a b", ""], [["a b"], ["d e", "d e f g"]], seed=0)
    assert scores["examples"] == 2 and scores["empty_summaries"] == 1
    assert scores["rouge1"]["mean"] == 50 and scores["summary_words"] == 1.0 and scores["novel_bigrams"] == 0
    assert scores["reference_words"] == pytest.approx(8 / 3), "the mean over all references"


def test_of_several_references_each_metric_takes_its_best() -> None:
    prediction, words, order = "b a c", "c b a x", "a c y z w"
    both, first, second = (rouge([prediction], [several]) for several in ([words, order], [words], [order]))
    assert both == {metric: [max(first[metric][0], second[metric][0])] for metric in ROUGE}
    assert both == rouge([prediction], [[order, words]]) and len({first["rouge1"][0], second["rouge1"][0]}) == 2


def test_bleu_and_chrf_are_those_of_sacrebleu_on_the_whole_set() -> None:
    ours = translation(TRANSLATED, [[text] for text in GOLD], 0, "13a")
    assert ours["bleu"]["score"] == pytest.approx(corpus_bleu(TRANSLATED, [GOLD]).score)
    assert ours["chrf"]["score"] == pytest.approx(corpus_chrf(TRANSLATED, [GOLD]).score)
    assert "tok:13a" in ours["bleu"]["signature"] and "nrefs:1" in ours["chrf"]["signature"]
    each = [corpus_bleu([a], [[b]]).score for a, b in zip(TRANSLATED, GOLD, strict=True)]
    assert abs(ours["bleu"]["score"] - np.mean(each)) > 1, "no mean over examples"
    means = corpus_scores(TRANSLATED, [[text] for text in GOLD], "13a")
    assert means["bleu"] == pytest.approx(ours["bleu"]["score"]) and means["chrf"] == pytest.approx(
        ours["chrf"]["score"]
    )


def test_ragged_references_count_as_sacrebleu_counts_them() -> None:
    """An example with fewer references must not gain or lose by the padding."""
    several = [[gold, "something else"] if i % 2 else [gold] for i, gold in enumerate(GOLD)]
    streams = [GOLD, ["something else" if i % 2 else None for i in range(len(GOLD))]]
    ours = translation(TRANSLATED, several, 0, "13a")
    assert ours["bleu"]["score"] == pytest.approx(corpus_bleu(TRANSLATED, streams).score)
    assert ours["chrf"]["score"] == pytest.approx(corpus_chrf(TRANSLATED, streams).score)
    assert "nrefs:var" in ours["bleu"]["signature"]
    perfect = [[gold, text] for gold, text in zip(GOLD, TRANSLATED, strict=True)]
    assert translation(TRANSLATED, perfect, 0, "13a")["bleu"]["score"] == pytest.approx(100)


def test_the_intervals_of_bleu_and_chrf_repeat_and_shrink() -> None:
    first, again, other = (translation(TRANSLATED, [[text] for text in GOLD], seed, "13a") for seed in (1, 1, 2))
    assert first == again != other
    more = translation(TRANSLATED * 4, [[text] for text in GOLD * 4], 1, "13a")
    for name in ("bleu", "chrf"):
        assert first[name]["low"] < first[name]["score"] < first[name]["high"]
        widths = [scores[name]["high"] - scores[name]["low"] for scores in (more, first)]
        assert widths[0] == pytest.approx(widths[1] / 2, rel=0.25), "four times the examples, half the width"


def test_texts_that_rouge_cannot_read() -> None:
    """Chinese has no words of a-z, and a Romanian word of marks alone is none."""
    chinese = corpus_scores(["我们都爱你们大家"], [["我们都爱你们"]], "zh")
    assert chinese["rouge1"] == 0 and chinese["bleu"] > 50 and chinese["chrf"] > 50
    assert corpus_scores(["我们都爱你们大家"], [["我们都爱你们"]], "13a")["bleu"] == 0
    assert rouge(["ță"], [["ță"]])["rouge1"] == [0] and corpus_scores(["ță"], [["ță"]], "13a")["chrf"] == 100
    assert corpus_scores(["", ""], [["a"], ["b", "c"]], "13a")["bleu"] == 0
