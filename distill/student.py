"""Shrink a teacher: a student with some of its layers and everything else as it is."""

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from distill.families import depth_fields, family_of, first_layer_key, teacher_key

RECORD = "distilled_from"  # the config field that says where a student comes from


def shrink(
    teacher: PreTrainedModel,
    encoder_layers: list[int],
    decoder_layers: list[int],
    origin: Mapping[str, Any] = MappingProxyType({}),
) -> PreTrainedModel:
    """Return a student of the given teacher layers (0-based); all other weights are copied as they are.

    The student's config records `origin` and the copied layers under `distilled_from`. (Shleifer & Rush 2020, 2.1.)
    """
    family = family_of(teacher.config.model_type, "shrink")
    config = copy.deepcopy(teacher.config)
    for field, depth in depth_fields(family, len(encoder_layers), len(decoder_layers)).items():
        if hasattr(config, field):
            setattr(config, field, depth)
    record = {**origin, "encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    setattr(config, RECORD, record)
    student: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config, dtype=teacher.dtype)
    tied = head_is_tied(teacher)
    if not tied and head_is_tied(student):
        # transformers ties every T5 that is built from a config, and unties those that are loaded with another head.
        head = student.get_output_embeddings()
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    source = teacher.state_dict()
    weights = {}
    for key in student.state_dict():
        copied_from = teacher_key(family, key, encoder_layers, decoder_layers)
        weights[key] = source[copied_from if copied_from in source else first_layer_key(family, copied_from)]
    student.load_state_dict(weights)
    if tied:
        student.tie_weights()
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())
    student.generation_config = copy.deepcopy(teacher.generation_config)
    student.eval()
    return student


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> None:
    """Stop the training of the `encoder`, the `embeddings` (tokens and positions), or both.

    Token embeddings are shared in these families: freezing the encoder freezes them for the decoder and the
    projection to the vocabulary too, as in the published runs.
    """
    if "encoder" in parts:
        for parameter in model.get_encoder().parameters():
            parameter.requires_grad = False
    if "embeddings" in parts:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Embedding) and not _inside_layer(model, name):
                module.weight.requires_grad = False


def set_dropout(model: PreTrainedModel, rate: float | None) -> None:
    """Give every dropout of the model this rate; None leaves the model's own. Whole layers are never dropped.

    The config keeps the model's own rates, so that an exported model is as its teacher was.
    """
    for module in model.modules():
        if hasattr(module, "layerdrop"):
            module.layerdrop = 0.0  # each rank would drop others, and the shards of a layer be waited for forever
        if rate is None:
            continue
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):  # BART-like layers keep rates as plain numbers
                setattr(module, name, rate)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep of each layer only what it reads, and run it again in the backward pass; in training mode only."""
    model.activation_checkpointing_enable({"use_reentrant": False})


def head_is_tied(model: PreTrainedModel) -> bool:
    """Return whether the projection to the vocabulary is the table of the token embeddings."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _inside_layer(model: PreTrainedModel, name: str) -> bool:
    """T5 keeps its relative position bias as an Embedding inside block 0: a part of the layer."""
    family = family_of(model.config.model_type, "freeze")
    return name.startswith((family.encoder_layer, family.decoder_layer))
