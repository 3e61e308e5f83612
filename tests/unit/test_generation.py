from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

from distill.attention import divide_attention_scores
from distill.distributed import World
from distill.generation import (
    HuggingFace,
    generate,
    generation_config,
    plan_batches,
    summarize,
    tokens_that_count,
)
from distill.pretrained import build_model, train_tokenizer
from distill.sections import Architecture, Generation, Tokenizer
from tests.conftest import STARTS, make_model, make_rows

ALONE = World(0, 1, 0, torch.device("cpu"))


def test_batches_hold_every_document_once() -> None:
    lengths = [5, 90, 17, 17, 3, 40]
    batches = plan_batches(lengths, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches[0] == [1], "longest first"
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100 for batch in batches)


def test_summaries_come_in_corpus_order_whatever_the_batches(tokenizer: Any) -> None:
    model = make_model("t5", tokenizer, noise=0.5)
    source = [ids[:40] for ids in tokenizer([row["document"] for row in make_rows(7)])["input_ids"]]
    config = generation_config(model, Generation(), 12)
    one_by_one = [next(generate(model, tokenizer, source, config, [[i]], ALONE.device))[1][0] for i in range(7)]
    assert len(set(one_by_one)) > 1
    assert summarize(model, tokenizer, source, config, 60, ALONE) == one_by_one
    assert summarize(model, tokenizer, source, config, 10**6, ALONE) == one_by_one


def test_the_models_own_settings_and_overrides(tokenizer: Any) -> None:
    model = make_model("bart", tokenizer)
    own = generation_config(model, Generation(), 12)
    assert (own.num_beams, own.max_new_tokens) == (3, 7)
    over = generation_config(model, Generation(num_beams=5, max_new_tokens=9, length_penalty=0.5), 12)
    assert (over.num_beams, over.max_new_tokens, over.length_penalty) == (5, 9, 0.5)
    assert model.generation_config.num_beams == 3, "the model's own stay as they are"
    model.generation_config.max_new_tokens = None
    assert generation_config(model, Generation(), 12).max_new_tokens == 12, "never the default of 20"
    model.generation_config.max_length = 142
    assert generation_config(model, Generation(), 12).max_length == 142


def test_a_model_from_scratch(tmp_path: Any) -> None:
    rows = make_rows(300)
    for family in ("bart", "t5"):
        for kind, vocabulary in (("bpe", 320), ("sentencepiece", 45)):
            settings = Tokenizer.model_construct(kind=kind, vocabulary=vocabulary)
            texts = (row["document"] for row in rows)
            tokenizer = train_tokenizer(settings, family, texts)
            assert len(tokenizer) == vocabulary
            ids = tokenizer(rows[0]["document"])["input_ids"]
            assert ids[-1] == tokenizer.eos_token_id and (family == "t5" or ids[0] == tokenizer.bos_token_id)
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == rows[0]["document"]
            shape = Architecture(family=family, width=16, encoder_layers=1, decoder_layers=2, heads=2, feed_forward=8)
            model = build_model(shape, tokenizer, 9)
            assert (model.generation_config.max_new_tokens, model.generation_config.num_beams) == (9, 4)
            summary = summarize(model.eval(), tokenizer, [ids], generation_config(model, Generation(), 9), 99, ALONE)
            assert summary is not None and len(summary) == 1


@pytest.mark.parametrize("family", sorted(STARTS))
def test_candidates_have_the_texts_of_generate_and_the_log_probabilities_of_the_model(
    family: str, tokenizer: Any
) -> None:
    model = make_model(family, tokenizer, noise=0.3)
    source = [ids[:40] for ids in tokenizer([row["document"] for row in make_rows(6)])["input_ids"]]
    config = generation_config(model, Generation(), 12)
    plain = next(generate(model, tokenizer, source, config, [list(range(6))], ALONE.device))[1]
    config.num_return_sequences = 2
    candidates = HuggingFace(model, tokenizer, config, ALONE.device)(source)
    assert [each[0].text for each in candidates] == plain and all(len(each) == 2 for each in candidates)
    for ids, each in zip(source, candidates, strict=True):  # one by one, from whole logits in float64
        output = model.generate(
            torch.tensor([ids]),
            generation_config=config,
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
        )
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids] * 2), decoder_input_ids=output[:, :-1]).logits.double()
        for row, one, candidate in zip(output, logits.log_softmax(-1), each, strict=True):
            tokens = row[1:].tolist()
            end = tokens.index(2) + 1 if 2 in tokens else len(tokens)
            expected = sum(float(one[i, token]) for i, token in enumerate(tokens[:end])) / end
            assert (candidate.tokens, candidate.finished) == (end, 2 in tokens)
            assert candidate.log_probability == pytest.approx(expected, rel=1e-5)


def test_an_end_token_forced_at_the_longest_length_finishes_nothing(tokenizer: Any) -> None:
    model = make_model("bart", tokenizer, noise=0.3)
    source = [ids[:40] for ids in tokenizer([row["document"] for row in make_rows(3)])["input_ids"]]
    config = generation_config(model, Generation(), 12)
    config.forced_eos_token_id = tokenizer.eos_token_id
    cut = HuggingFace(model, tokenizer, config, ALONE.device)(source)
    assert [(each[0].tokens, each[0].finished) for each in cut] == [(7, False)] * 3
    config.max_new_tokens, config.max_length = None, 8  # the same, the start token counted
    cut = HuggingFace(model, tokenizer, config, ALONE.device)(source)
    assert [(each[0].tokens, each[0].finished) for each in cut] == [(7, False)] * 3


def test_tokens_up_to_the_first_end_count() -> None:
    tokens = torch.tensor([[5, 2, 1, 1], [5, 6, 7, 8], [2, 2, 9, 2]])
    expected = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert tokens_that_count(tokens, torch.tensor([2])).tolist() == expected


@pytest.mark.parametrize("family", sorted(STARTS))
def test_an_attention_temperature_divides_the_scores(family: str, tokenizer: Any) -> None:
    """Against the eager attention of transformers with its scores divided before the softmax."""
    model = make_model(family, tokenizer, noise=0.3)
    ids = torch.tensor([tokenizer(make_rows(1)[0]["document"])["input_ids"]])
    plain = model(input_ids=ids, decoder_input_ids=ids[:, :5]).logits
    softmax = torch.nn.functional.softmax
    model.set_attn_implementation("eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", lambda scores, *a, **k: softmax(scores / 3.0, *a, **k))
        expected = model(input_ids=ids, decoder_input_ids=ids[:, :5]).logits
    divide_attention_scores(model, 3.0)
    divided = model(input_ids=ids, decoder_input_ids=ids[:, :5]).logits
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.allclose(divided, expected, atol=1e-5)
