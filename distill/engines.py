"""Before an engine other than Hugging Face labels anything: conversion, and a comparison of the two on some documents."""

import random
import time
from collections.abc import Sequence
from typing import Any

import torch

from distill.ctranslate import CTranslate2, convert
from distill.errors import InputError
from distill.files import atomic_folder, read_json, write_json
from distill.generation import Engine, HuggingFace, plan_batches
from distill.run import LabelSet
from distill.scores import rouge
from distill.task import Task


def make_engine(labels: LabelSet, task: Task, seed: int, device: torch.device) -> dict[str, Any]:
    """Convert the teacher and let both engines summarize a sample; leaves `labels.engine` with the model and the figures.

    InputError where they agree less than the recipe asks for; then nothing is left but the message.
    """
    settings = labels.settings.engine
    numbers = random.Random(seed).sample(range(len(task.ids)), min(settings.documents, len(task.ids)))
    source = [task.source[i] for i in numbers]
    with atomic_folder(labels.engine) as folder:
        convert(task.model, task.tokenizer, task.weights, settings.compute, folder / "model", device)
        converted = CTranslate2(folder / "model", task.tokenizer, task.config, settings.compute, device)
        theirs, their_seconds = _summaries(converted, source, labels.settings.batch_tokens)
        original = HuggingFace(task.model.to(device), task.tokenizer, task.config, device)
        ours, our_seconds = _summaries(original, source, labels.settings.batch_tokens)
        agreement = mean_agreement(theirs, ours)
        figures = {
            "agreement": agreement,
            "identical": sum(one == other for one, other in zip(theirs, ours, strict=True)),
            "documents": len(ours),
            "documents_per_second": {
                "huggingface": len(ours) / our_seconds,
                settings.name: len(ours) / their_seconds,
            },
            "device": device.type,
            "made_of": _made_of(task),
        }
        write_json(folder / labels.parity.name, figures)
        if agreement < settings.agreement_at_least:
            raise InputError(
                f"labels.{labels.name}.engine: on {len(ours)} documents the summaries of {settings.name} "
                f"({settings.compute}) agree with those of huggingface by ROUGE-L {agreement:.2f}, expected at least "
                f"{settings.agreement_at_least:g} (engine.agreement_at_least); {figures['identical']} are identical. "
                "Take another compute, the engine huggingface, or a lower bound."
            )
    return figures


def parity_of(labels: LabelSet, task: Task) -> dict[str, Any]:
    """The figures of the comparison; InputError where it was not made, or for another model, decoding or compute."""
    file = labels.parity
    if not labels.has_engine():
        raise InputError(
            f"{labels}: the engine {labels.settings.engine.name} has not been compared with huggingface. "
            f"Run jobs.convert --labels {labels.name} first."
        )
    figures: dict[str, Any] = read_json(file)
    if figures["made_of"] != _made_of(task):
        raise InputError(
            f"{labels.engine} was made for another model, decoding or compute. Expected those of the recipe; "
            f"delete it and run jobs.convert --labels {labels.name} again."
        )
    return figures


def mean_agreement(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Mean ROUGE-L of pairs of summaries; 100 for equal ones, also where ROUGE sees no words (it knows a-z and digits)."""
    scores = rouge(ours, [[text] for text in theirs])["rougeL"]
    pairs = zip(ours, theirs, scores, strict=True)
    return sum(100.0 if one == other else score for one, other, score in pairs) / len(ours)


def _made_of(task: Task) -> dict[str, Any]:
    return {"model": task.contents.model, "decoding": task.contents.decoding, "engine": task.contents.engine}


def _summaries(engine: Engine, source: Sequence[list[int]], batch_tokens: int) -> tuple[list[str], float]:
    """(the first candidate of each document, seconds)"""
    engine(source[:1])  # warm-up
    began = time.perf_counter()
    texts: dict[int, str] = {}
    for batch in plan_batches([len(row) for row in source], batch_tokens):
        candidates = engine([source[i] for i in batch])
        texts |= {i: each[0].text for i, each in zip(batch, candidates, strict=True)}
    return [texts[i] for i in range(len(source))], time.perf_counter() - began
