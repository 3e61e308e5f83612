"""Shrinking, for every family: the student's weights are the teacher's chosen layers and everything else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
from transformers.modeling_layers import GradientCheckpointingLayer

from distill.export import save_model
from distill.families import FAMILIES
from distill.forward import decode, encode
from distill.head import output_scale
from distill.student import checkpoint_activations, freeze, set_dropout, shrink
from tests.conftest import STARTS, make_model

ENCODER, DECODER = [0, 2], [1, 3]


def teacher_name(family: str, key: str) -> str:
    """The teacher's weight behind a student's, said independently of the library."""
    for prefix, layers in ((FAMILIES[family].encoder_layer, ENCODER), (FAMILIES[family].decoder_layer, DECODER)):
        if key.startswith(prefix):
            number, rest = key.removeprefix(prefix).split(".", 1)
            if "relative_attention_bias" in rest:
                return f"{prefix}0.{rest}"  # T5 keeps it in block 0 only
            return f"{prefix}{layers[int(number)]}.{rest}"
    return key


@pytest.mark.parametrize("family", sorted(STARTS))
def test_weight_for_weight(family: str, tokenizer: Any, tmp_path: Path) -> None:
    teacher = make_model(family, tokenizer)
    student = shrink(teacher, ENCODER, DECODER, {"teacher": "t"})
    save_model(student, tokenizer, tmp_path)
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    expected = teacher.state_dict()
    for model in (student, reloaded):
        weights = model.state_dict()
        assert len(weights) > 20
        for key, value in weights.items():
            assert torch.equal(value, expected[teacher_name(family, key)]), key
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, "as readable as any other file"
    assert reloaded.config.distilled_from == {"teacher": "t", "encoder_layers": ENCODER, "decoder_layers": DECODER}
    assert reloaded.generation_config.num_beams == 3 and reloaded.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("family", sorted(STARTS))
def test_tied_weights_stay_tied(family: str, tokenizer: Any, tmp_path: Path) -> None:
    save_model(shrink(make_model(family, tokenizer), ENCODER, DECODER), tokenizer, tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    shared = model.get_input_embeddings().weight
    assert model.lm_head.weight.data_ptr() == shared.data_ptr()
    assert model.get_encoder().embed_tokens.weight.data_ptr() == shared.data_ptr()
    assert model.get_decoder().embed_tokens.weight.data_ptr() == shared.data_ptr()


def test_a_t5_with_a_head_of_its_own_keeps_it(tokenizer: Any, tmp_path: Path) -> None:
    """T5 v1.1 and Flan-T5: transformers 5.23 builds every T5 tied and unties it when it is loaded."""
    teacher = make_model("t5", tokenizer, tie_word_embeddings=False)
    with torch.no_grad():
        teacher.lm_head.weight = torch.nn.Parameter(torch.randn_like(teacher.lm_head.weight))
    save_model(teacher, tokenizer, tmp_path / "teacher")
    teacher = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "teacher")
    assert not torch.equal(teacher.lm_head.weight, teacher.get_input_embeddings().weight)
    student = shrink(teacher, [0, 1, 2], [0, 1, 2, 3])
    save_model(student, tokenizer, tmp_path / "student")
    for model in (student, AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")):
        for key, value in model.state_dict().items():
            assert torch.equal(value, teacher.state_dict()[key]), key
        assert output_scale(model.config.to_dict()) == 1.0


def test_all_layers_make_the_same_function(tokenizer: Any) -> None:
    teacher = make_model("bart", tokenizer)
    student = shrink(teacher, [0, 1, 2], [0, 1, 2, 3])
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    torch.testing.assert_close(student(ids, decoder_input_ids=ids).logits, teacher(ids, decoder_input_ids=ids).logits)


def test_a_student_works_in_plain_transformers(tokenizer: Any, tmp_path: Path) -> None:
    """With generate, and in a pipeline (5.x keeps no text-to-text pipeline; feature extraction runs any model)."""
    save_model(shrink(make_model("bart", tokenizer), [0], [0]), tokenizer, tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    batch = reloaded(["the quick brown fox"], return_tensors="pt")
    assert batch["input_ids"].tolist() == [tokenizer("the quick brown fox")["input_ids"]]
    output = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generate(**batch)
    assert 1 < output.shape[1] <= 8  # the start token and the seven of its own generation config
    features = pipeline("feature-extraction", model=str(tmp_path), tokenizer=str(tmp_path))("the quick brown fox")
    assert len(features[0][0]) == 16


@pytest.mark.parametrize("family", sorted(STARTS))
def test_freezing(family: str, tokenizer: Any) -> None:
    model = make_model(family, tokenizer)
    freeze(model, ["encoder"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any(name.startswith(FAMILIES[family].encoder_layer) for name in frozen)
    assert not any(name.startswith(FAMILIES[family].decoder_layer) for name in frozen)
    model = make_model(family, tokenizer)
    freeze(model, ["embeddings"])
    assert not model.get_input_embeddings().weight.requires_grad
    layers = (FAMILIES[family].encoder_layer, FAMILIES[family].decoder_layer)
    assert all(p.requires_grad for name, p in model.named_parameters() if name.startswith(layers))


@pytest.mark.parametrize("family", sorted(STARTS))
def test_dropout_zero_makes_training_deterministic(family: str, tokenizer: Any) -> None:
    model = make_model(family, tokenizer).train()
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    set_dropout(model, None)
    assert not torch.equal(model(ids, decoder_input_ids=ids).logits, model(ids, decoder_input_ids=ids).logits)
    set_dropout(model, 0.0)
    assert torch.equal(model(ids, decoder_input_ids=ids).logits, model(ids, decoder_input_ids=ids).logits)


def gradients(model: Any, runs: list[str]) -> dict[str, torch.Tensor]:
    """Of a forward and a backward pass; `runs`: the layers whose first part ran, as often as it did."""
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    for name, layer in model.named_modules():
        if isinstance(layer, GradientCheckpointingLayer):
            leaf = next(part for part in layer.modules() if not list(part.children()))
            leaf.register_forward_pre_hook(lambda *_, name=name: runs.append(name))
    torch.manual_seed(1)
    encoded = encode(model, ids, torch.ones_like(ids)).last
    decode(model, ids, encoded, torch.ones_like(ids)).last.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", sorted(STARTS))
def test_checkpointed_activations_are_computed_again_with_the_same_gradient(family: str, tokenizer: Any) -> None:
    """With dropout: the second time with the masks of the first. Not in eval mode."""
    models = [make_model(family, tokenizer, encoder=2, decoder=2).train() for _ in range(3)]
    for model in models:
        set_dropout(model, 0.3)
    for model in models[1:]:
        checkpoint_activations(model)
    models[2].eval()
    counts: list[list[str]] = [[], [], []]
    found = [gradients(model, runs) for model, runs in zip(models, counts, strict=True)]
    assert [len(runs) for runs in counts] == [4, 8, 4] and len(set(counts[0])) == 4
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_no_layer_is_dropped_as_a_whole(tokenizer: Any) -> None:
    """M2M100's config asks for it. Under ZeRO 3 ranks that drop different layers would wait for each other."""
    rates = {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5, "dropout": 0.0, "attention_dropout": 0.0}
    model = make_model("m2m_100", tokenizer, **rates).train()
    ids = torch.tensor([[0, 5, 6, 7, 2]])

    def different() -> int:
        return len({tuple(model(ids, decoder_input_ids=ids).logits.flatten().tolist()) for _ in range(8)})

    assert different() > 1
    set_dropout(model, None)
    assert different() == 1 and model.config.encoder_layerdrop == 0.5
