"""Teacher and student in one process group, each with its ZeRO stage: the same losses, the same weights."""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from distill.distillation import Distillation
from distill.distributed import World
from distill.engine import LiveTeacher
from distill.files import read_jsonl
from distill.objective import ScoredStudent
from distill.recipe import Objective, Teacher
from distill.run import Member
from distill.sections import Evaluate, Train
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
    student = shrink(teacher_model, [0, 1, 2] if "freeze" in settings else [0, 2], [1, 3])
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
FAMILIES: dict[str, dict[str, Any]] = {  # at the other stages: test_families.py
    family: {"family": family, "train": {"zero_stage": 3}, "teacher": {"zero_stage": 3}}
    for family in ("t5", "pegasus", "mbart", "marian")
}


@dataclass(frozen=True)
class Trained:
    folder: Path
    held: dict[int, list[dict[str, int]]]  # by world size, of each rank: the teacher's bytes by case


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    alone = MATRIX | {name: case for name, case in (SHARED | OTHERS).items() if name in ("apart", "few", "shared-3-3")}
    held = {
        1: run_distributed(train_all, 1, str(folder), alone),
        2: run_distributed(train_all, 2, str(folder), MATRIX | SHARED | OTHERS),
        4: run_distributed(train_all, 4, str(folder), {"3-3": MATRIX["3-3"]}),
    }
    run_distributed(train_all, 1, str(folder), FAMILIES)
    run_distributed(train_all, 2, str(folder), FAMILIES)
    return Trained(folder, held)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", MATRIX)
def test_the_same_losses_at_every_pair_of_stages(trained: Trained, name: str, world_size: int) -> None:
    found, expected = losses(trained.folder / f"{world_size}-{name}"), losses(trained.folder / "1-0-0")
    assert len(found) == STEPS and found == pytest.approx(expected, rel=1e-5)
    reference = weights(trained.folder / "1-0-0" / "final")
    for key, value in weights(trained.folder / f"{world_size}-{name}" / "final").items():
        if "k_proj.bias" not in key:  # the softmax cancels it: its gradient is rounding, which AdamW makes large
            torch.testing.assert_close(value, reference[key], rtol=1e-3, atol=2e-5, msg=key)


def test_four_processes(trained: Trained) -> None:
    assert losses(trained.folder / "4-3-3") == pytest.approx(losses(trained.folder / "1-0-0"), rel=1e-5)


@pytest.mark.parametrize("name", ["1-shared-3-3", *(f"2-{name}" for name in SHARED)])
def test_a_shared_encoder_gives_the_losses_of_two(trained: Trained, name: str) -> None:
    assert losses(trained.folder / name) == pytest.approx(losses(trained.folder / "1-apart"), rel=1e-5)


@pytest.mark.parametrize("name", ["accumulated", "offloaded", "few"])
def test_accumulation_offload_and_ranks_without_examples_change_nothing(trained: Trained, name: str) -> None:
    same = "few" if name == "few" else "0-0"
    assert losses(trained.folder / f"2-{name}") == pytest.approx(losses(trained.folder / f"1-{same}"), rel=1e-5)


@pytest.mark.parametrize("name", ["bf16-teacher", "bf16"])
def test_bf16_follows_fp32(trained: Trained, name: str) -> None:
    assert losses(trained.folder / f"2-{name}") == pytest.approx(losses(trained.folder / "1-0-0"), rel=5e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(trained: Trained, name: str) -> None:
    assert losses(trained.folder / f"2-{name}") == pytest.approx(losses(trained.folder / f"1-{name}"), rel=1e-5)


def test_a_sharded_teacher_weighs_its_share_on_every_rank(trained: Trained) -> None:
    """Its matrices do; vectors (biases and norms) stay whole on every rank."""
    whole = make_model("bart", make_parts()[1])
    matrices = sum(4 * p.numel() for p in whole.parameters() if p.dim() > 1)
    vectors = sum(4 * p.numel() for p in whole.parameters() if p.dim() == 1)
    assert [held["2-0"] for held in trained.held[2]] == [matrices + vectors] * 2
    for held in trained.held[2]:
        assert held["2-3"] == pytest.approx(matrices / 2 + 1.5 * vectors, rel=1e-2)
        assert held["bf16"] == pytest.approx(held["2-3"] / 2, rel=1e-2)
        assert held["shared-2-3"] < held["2-3"], "its encoder is the student's"
    for held in trained.held[4]:
        assert held["3-3"] == pytest.approx(matrices / 4 + 1.25 * vectors, rel=1e-2)


def test_every_term_is_recorded(trained: Trained) -> None:
    rows = [row for row in read_jsonl(trained.folder / "2-2-3" / "metrics.jsonl") if "loss" in row]
    for row in rows:
        hidden = 3.0 * (row["hidden_decoder"] + row["hidden_encoder"])
        assert row["loss"] == pytest.approx(0.5 * row["cross_entropy"] + 0.8 * row["kl"] + hidden, rel=1e-5)
    assert rows[-1]["kl"] < rows[0]["kl"]


# ------------------------------------------------------------------------------------------------ resume


def shards(live: LiveTeacher) -> list[torch.Tensor]:
    """The teacher's weights on this rank: shards, or whole where it is a replica."""
    return [getattr(parameter, "ds_tensor", parameter.data) for parameter in live._model.parameters()]


def stop_and_resume(world: World, folder: str, names: list[str]) -> None:
    for name in names:
        case = copy.deepcopy(MATRIX[name])
        case["train"] |= {"save_every_steps": 4, "dropout": 0.1}
        make_trainer(world, f"{folder}/{name}-whole", case)[0].run()
        trainer, _ = make_trainer(world, f"{folder}/{name}-cut", case)
        trainer.steps = 6  # stops here as if killed: the newest checkpoint is of step 4
        trainer.run()
        world.barrier()
        if world.is_main:
            for exported in ("best", "final"):
                shutil.rmtree(f"{folder}/{name}-cut/{exported}")
        world.barrier()
        resumed, live = make_trainer(world, f"{folder}/{name}-cut", case)
        before = [shard.clone() for shard in shards(live)]
        resumed.run()
        assert resumed.step == STEPS
        assert all(torch.equal(a, b) for a, b in zip(before, shards(live), strict=True)), "the teacher was trained"
        assert not is_deepspeed_zero3_enabled(), "process-global state of transformers"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed")
    run_distributed(stop_and_resume, 2, str(folder), ["2-3", "3-3", "0-0"])
    return folder


@pytest.mark.parametrize("name", ["2-3", "3-3", "0-0"])
def test_resume_is_exact(resumed: Path, name: str) -> None:
    whole, cut = weights(resumed / f"{name}-whole" / "final"), weights(resumed / f"{name}-cut" / "final")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_the_teacher_is_in_no_checkpoint(resumed: Path) -> None:
    """A student of 2-2 layers: less than the weights, gradients and moments of the 3-4 teacher would take."""
    student, _, _ = make_parts()
    own = sum(p.numel() for p in student.parameters())
    for checkpoint in (resumed / "2-3-whole" / "checkpoints").glob("step-*"):
        model = torch.load(checkpoint / "mp_rank_00_model_states.pt", weights_only=False)
        assert not any("teacher" in key for key in model["module"])
        assert sum({v.data_ptr(): v.numel() for v in model["module"].values()}.values()) < own * 1.05
