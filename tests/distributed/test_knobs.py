"""What may be turned in a training: optimizers, offload, gradient checkpointing, early stopping, seeds, determinism."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.optimization import Adafactor

from distill import engine as engine_module
from distill.batching import BatchPlan, StepSource
from distill.distributed import World
from distill.files import read_jsonl
from distill.plan import has_stalled, learning_rate
from distill.sections import EarlyStopping, Train
from distill.trainer import Trainer
from tests.distributed.harness import run_distributed
from tests.distributed.test_distillation import make_trainer as make_taught
from tests.distributed.test_training import BASE, losses, make_parts, make_trainer, weights

pytestmark = pytest.mark.distributed

STEPS = 4
QUIET = {"steps": STEPS, "evaluate": {"before_training": False, "num_beams": 1}}  # one validation, at the end
ADAFACTOR = {"zero_stage": 0, "optimizer": "adafactor"}
NOISY = {"dropout": 0.2, "micro_batch_tokens": 90}
CASES: dict[str, dict[str, Any]] = {
    **{f"zero{stage}": {"zero_stage": stage} for stage in (2, 3)},
    **{f"zero{stage}-offload": {"zero_stage": stage, "offload": "cpu"} for stage in (2, 3)},
    "bf16": {"zero_stage": 2, "precision": "bf16"},
    "bf16-offload": {"zero_stage": 2, "precision": "bf16", "offload": "cpu"},
    **{f"noisy{stage}": {"zero_stage": stage, **NOISY} for stage in (0, 2, 3)},
    **{f"noisy{stage}-checkpointed": {"zero_stage": stage, "gradient_checkpointing": True, **NOISY} for stage in (0, 3)},
    **{f"noisy{stage}-deterministic": {"zero_stage": stage, "deterministic": True, **NOISY} for stage in (0, 2, 3)},
    "t5": {"family": "t5", "zero_stage": 3, **NOISY},
    "t5-checkpointed": {"family": "t5", "zero_stage": 3, "gradient_checkpointing": True, **NOISY},
    "noisy0-seed": {"zero_stage": 0, "seed": 12, **NOISY},
    "adafactor": ADAFACTOR,
    "adafactor-accumulated": {**ADAFACTOR, "micro_batch_tokens": 90},
    "cosine": {"zero_stage": 0, "schedule": "cosine", "warmup_steps": 1},
}  # fmt: skip
LONGER = 6
SAVED = {**QUIET, "steps": LONGER, "save_every_steps": 3, "dropout": 0.2}
RESUMED: dict[str, dict[str, Any]] = {
    "adafactor": {**ADAFACTOR, **SAVED},
    "offload2": {"zero_stage": 2, "offload": "cpu", **SAVED},
    "offload3": {"zero_stage": 3, "offload": "cpu", "precision": "bf16", **SAVED},
    "stops": {**SAVED, "zero_stage": 2, "evaluate": {"every_steps": 1, "early_stopping": {"patience": 3}}, "steps": 9},
}


def cut_every_parameter() -> None:
    """ZeRO 3 keeps parameters as small as those of the tests whole; here it must gather every one of them."""
    usual = engine_module.deepspeed_config

    def cutting(train: Train) -> dict[str, Any]:
        config = usual(train)
        if train.zero_stage == 3:
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    engine_module.deepspeed_config = cutting


def train_all(world: World, folder: str, names: list[str]) -> None:
    cut_every_parameter()
    for name in names:
        trainer = make_trainer(world, f"{folder}/{world.size}-{name}", **QUIET | CASES[name])
        assert trainer.engine._engine.zero_use_cpu_optimizer() == name.endswith("offload")
        during: list[bool] = []
        at_every_record = lambda seen=during: seen.append(torch.are_deterministic_algorithms_enabled())  # noqa: E731
        trainer.check_claim = at_every_record
        trainer.run()
        assert world.rank > 0 or set(during) == {name.endswith("deterministic")}
        assert not torch.are_deterministic_algorithms_enabled()


def teach_all(world: World, folder: str) -> None:
    """With a live teacher and one frozen encoder for both."""
    cut_every_parameter()
    for name, more in (("taught", {}), ("taught-checkpointed", {"gradient_checkpointing": True})):
        case = {
            "train": {"zero_stage": 3, "freeze": ["encoder"], "steps": STEPS, **NOISY, **more},
            "teacher": {"zero_stage": 3},
        }
        make_taught(world, f"{folder}/{world.size}-{name}", case)[0].run()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run_distributed(train_all, 1, str(folder), ["adafactor"])
    run_distributed(train_all, 2, str(folder), list(CASES))
    run_distributed(teach_all, 2, str(folder))
    return folder


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = weights(one / "final"), weights(other / "final")
    return all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["zero2", "zero3", "bf16"])
def test_offload_changes_no_loss(trained: Path, name: str) -> None:
    rel = 1e-3 if name == "bf16" else 1e-5
    assert losses(trained / f"2-{name}-offload") == pytest.approx(losses(trained / f"2-{name}"), rel=rel)


@pytest.mark.parametrize("name", ["noisy0", "noisy3", "t5", "taught"])
def test_gradient_checkpointing_changes_no_bit(trained: Path, name: str) -> None:
    assert losses(trained / f"2-{name}-checkpointed") == losses(trained / f"2-{name}")
    assert same_weights(trained / f"2-{name}-checkpointed", trained / f"2-{name}")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_deterministic_algorithms_work_at_every_stage(trained: Path, stage: int) -> None:
    assert losses(trained / f"2-noisy{stage}-deterministic") == losses(trained / f"2-noisy{stage}")


def test_another_seed_is_another_training(trained: Path) -> None:
    assert losses(trained / "2-noisy0-seed") != losses(trained / "2-noisy0")


def test_the_schedule_is_the_recipes(trained: Path) -> None:
    rows = [row for row in read_jsonl(trained / "2-cosine" / "metrics.jsonl") if "loss" in row]
    train = Train(**BASE | {"steps": STEPS, "schedule": "cosine", "warmup_steps": 1})
    assert [row["learning_rate"] for row in rows] == [learning_rate(train, step, STEPS) for step in range(STEPS)]


def plain_adafactor() -> list[float]:
    """In plain PyTorch, one example at a time, with the settings of the published runs."""
    student, _, data = make_parts()
    for module in student.train().modules():
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    groups = [{"params": [p for p in student.parameters() if (p.dim() > 1) == matrix], "weight_decay": decay}
              for matrix, decay in ((True, 0.01), (False, 0.0))]  # fmt: skip
    optimizer = Adafactor(groups, lr=3e-3, scale_parameter=False, relative_step=False)
    lengths = [(len(s), len(t)) for s, t in zip(data.train.source, data.train.target, strict=True)]
    steps, found = StepSource(BatchPlan(lengths, 11, batch_examples=6)), []
    for step in range(STEPS):
        total, count = torch.zeros(()), 0
        for i in steps[step]:
            labels = torch.tensor([data.train.target[i]])
            log_p = student(input_ids=torch.tensor([data.train.source[i]]), labels=labels).logits[0].log_softmax(-1)
            total = total - 0.9 * log_p.gather(1, labels.T).sum() - 0.1 * log_p.mean(-1).sum()
            count += labels.numel()
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(Train(**BASE), step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def test_adafactor_is_that_of_plain_pytorch_at_any_world_size(trained: Path) -> None:
    expected = plain_adafactor()
    for name in ("1-adafactor", "2-adafactor", "2-adafactor-accumulated"):
        assert losses(trained / name) == pytest.approx(expected, rel=1e-5), name


# ------------------------------------------------------------------------------------------------ resume


def train_twice(world: World, folder: str) -> dict[str, int]:
    """Uninterrupted; then again from the first checkpoint, as if killed before the end. The steps where both ended."""
    ended = {}
    for name, settings in RESUMED.items():
        place, whole = Path(folder) / name, Path(folder) / f"{name}-whole"
        trainer = make_trainer(world, str(place), **settings)
        trainer.run()
        if world.is_main:
            shutil.copytree(place, whole)
            for later in sorted((place / "checkpoints").glob("step-*"))[1:]:
                shutil.rmtree(later)
            shutil.rmtree(place / "final")
        world.barrier()
        again: Trainer = make_trainer(world, str(place), **settings)
        again.run()
        ended[name] = again.step
        assert again.step == trainer.step and again.scores == trainer.scores
    return ended


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, int]]]:
    folder = tmp_path_factory.mktemp("resumed")
    return folder, run_distributed(train_twice, 2, str(folder))


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_training_ends_bit_for_bit_the_same(resumed: tuple[Path, list[dict[str, int]]], name: str) -> None:
    folder, ended = resumed
    assert same_weights(folder / name, folder / f"{name}-whole") and losses(folder / name)[3:]
    assert losses(folder / name) == losses(folder / f"{name}-whole")
    assert ended[0] == ended[1], "on all ranks"


MOVED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adafactor": (ADAFACTOR, ADAFACTOR),
    "to the host": ({"zero_stage": 2}, {"zero_stage": 2, "offload": "cpu"}),
    "from the host": ({"zero_stage": 3, "offload": "cpu"}, {"zero_stage": 3}),
}


def train_part(world: World, folder: str, part: int) -> None:
    for name, settings in MOVED.items():
        make_trainer(
            world, f"{folder}/{name}", **SAVED | {"dropout": 0.0, "save_every_steps": 4} | settings[part]
        ).run()


def test_a_training_goes_on_elsewhere_with_its_states_elsewhere(tmp_path: Path) -> None:
    """From step 4 on one process, where there were two."""
    run_distributed(train_part, 2, str(tmp_path), 0)
    expected = {name: losses(tmp_path / name) for name in MOVED}
    for name in MOVED:
        shutil.rmtree(tmp_path / name / "final")
    run_distributed(train_part, 1, str(tmp_path), 1)
    for name in MOVED:
        assert len(expected[name]) == LONGER and losses(tmp_path / name) == pytest.approx(expected[name], rel=1e-5), (
            name
        )


def test_a_training_that_has_stalled_ends_early_and_is_complete(resumed: tuple[Path, list[dict[str, int]]]) -> None:
    """Its checkpoint of step 3 lies in the middle of the wait."""
    folder, ended = resumed
    rows = read_jsonl(folder / "stops" / "metrics.jsonl")
    scores = [row["rouge2"] for row in rows if "rouge2" in row and row["step"] > 0]
    stall = [has_stalled(scores[: end + 1], EarlyStopping(patience=3)) for end in range(len(scores))]
    assert stall == [False] * (len(scores) - 1) + [True] and 4 <= ended[0]["stops"] == len(scores) < 9
    assert [row["step"] for row in rows if row.get("stopped_early")] == [len(scores)]
    assert (folder / "stops" / "final").is_dir() and (folder / "stops" / "best").is_dir()
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates == [learning_rate(Train(**BASE), step, 9) for step in range(len(rates))], "that of all steps"
