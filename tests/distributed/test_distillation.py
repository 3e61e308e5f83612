"""Teacher and student in one process group, each with its ZeRO stage: the same losses, the same weights."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from distill.distillation import Distillation
from distill.distributed import World
from distill.engine import LiveTeacher
from distill.files import read_jsonl
from distill.objective import ScoredStudent, TeacherSource
from distill.recipe import Evaluate, Objective, Teacher, Train
from distill.run import Member
from distill.student import shrink
from distill.trainer import Trainer
from tests.conftest import make_model
from tests.distributed.harness import run_distributed
from tests.distributed.test_training import BASE, losses, make_parts, weights

pytestmark = pytest.mark.distributed

STEPS = 10
KD = {"cross_entropy": 0.5, "kl": {"weight": 0.8}, "hidden": {"weight": 3.0, "normalize": True}}
PAIRS = Distillation(decoder_pairs=((0, 1), (1, 3)), encoder_pairs=((0, 0), (1, 2)))
FROZEN = Distillation(decoder_pairs=((0, 1), (1, 3)), shares_encoder=True)


def make_trainer(world: World, folder: str, case: dict[str, Any]) -> tuple[Trainer, LiveTeacher]:
    """A trainer whose student learns from a live teacher with other weights than its own layers had."""
    family, settings = case.get("family", "bart"), BASE | {"steps": STEPS} | case.get("train", {})
    _, tokenizer, data = make_parts(family)
    teacher_settings = Teacher(model="here", **case.get("teacher", {}))
    pairs = FROZEN if "freeze" in settings else PAIRS
    teacher_model = make_model(family, tokenizer, noise=0.1)
    student = shrink(teacher_model, [0, 1, 2] if "freeze" in settings else [0, 2], [1, 3], "t")
    if settings.get("precision") == "bf16":
        student.bfloat16()
    if "bf16" in (teacher_settings.precision, settings.get("precision")):
        teacher_model.bfloat16()
    pairs = case.get("pairs", pairs)
    live = LiveTeacher(teacher_model, teacher_settings, pairs, world)
    scored = ScoredStudent(student, Objective.model_validate(KD), 0.1, pairs)
    member = Member("students", "s", Path(folder))
    evaluate = Evaluate(every_steps=4, num_beams=2)
    return Trainer(member, scored, tokenizer, data, Train(**settings), evaluate, 11, world, live), live


def train_all(world: World, folder: str, cases: dict[str, dict[str, Any]]) -> dict[str, int]:
    """The bytes that the teacher of every case holds between steps."""
    held = {}
    for name, case in cases.items():
        trainer, live = make_trainer(world, f"{folder}/{world.size}-{name}", case)
        trainer.run()
        held[name] = live.bytes_held()
    return held


MATRIX: dict[str, dict[str, Any]] = {
    f"{student}-{teacher}": {"train": {"zero_stage": student}, "teacher": {"zero_stage": teacher}}
    for student in range(4)
    for teacher in (0, 3)
}
SHARED: dict[str, dict[str, Any]] = {
    f"shared-{student}-{teacher}": {
        "train": {"zero_stage": student, "freeze": ["encoder"]},
        "teacher": {"zero_stage": teacher},
    }
    for student in (0, 2, 3)
    for teacher in (0, 3)
}
SHARED["apart"] = {"train": {"zero_stage": 0, "freeze": ["encoder"]}, "pairs": Distillation(FROZEN.decoder_pairs)}
OTHERS: dict[str, dict[str, Any]] = {
    "accumulated": {"train": {"zero_stage": 3, "micro_batch_tokens": 90}, "teacher": {"zero_stage": 3}},
    "offloaded": {"train": {"zero_stage": 2}, "teacher": {"zero_stage": 3, "offload": "cpu"}},
    "few": {"train": {"zero_stage": 3, "batch_examples": 1}, "teacher": {"zero_stage": 3}},
    "bf16-teacher": {"train": {"zero_stage": 2}, "teacher": {"zero_stage": 3, "precision": "bf16"}},
    "bf16": {"train": {"zero_stage": 3, "precision": "bf16"}, "teacher": {"zero_stage": 3, "precision": "bf16"}},
}
FAMILIES: dict[str, dict[str, Any]] = {
    f"{family}-{stage}": {"family": family, "train": {"zero_stage": stage}, "teacher": {"zero_stage": 3}}
    for family in ("t5", "pegasus", "mbart", "marian")
    for stage in (2, 3)
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[dict[str, int]]]]:
    folder = tmp_path_factory.mktemp("trained")
    held = {size: run_distributed(train_all, size, str(folder), MATRIX | SHARED | OTHERS) for size in (1, 2)}
    run_distributed(train_all, 1, str(folder), {name: FAMILIES[name] for name in FAMILIES if name.endswith("2")})
    run_distributed(train_all, 2, str(folder), FAMILIES)
    return folder, held


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", MATRIX)
def test_the_same_losses_at_every_pair_of_stages(trained: Any, name: str, world_size: int) -> None:
    folder, _ = trained
    found, expected = losses(folder / f"{world_size}-{name}"), losses(folder / "1-0-0")
    assert len(found) == STEPS and found == pytest.approx(expected, rel=1e-5)
