"""Training that is stopped anywhere, resumed on any number of processes, and never torn."""

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.checkpoint import newest_intact
from distill.claim import Claim, TakenOverError
from distill.distributed import World
from distill.errors import InputError
from distill.files import read_jsonl
from distill.preemption import StopFlag, StoppedError
from distill.tracking import NullTracker
from tests.conftest import make_model, write_corpus
from tests.distributed.harness import run_distributed
from tests.distributed.test_training import STEPS, losses, make_trainer, weights
from tests.drills.preemption import Drill, disturb, kill_all, prepare, signal_one, undisturbed, write_recipe
from tests.ports import reserved_port

pytestmark = pytest.mark.distributed

SAVED: dict[str, Any] = {"save_every_steps": 3, "log_every_steps": 1, "weight_decay": 0.1}


def run_until(trainer: Any, step: int) -> None:
    """Train as if asked to stop before step `step`."""
    train_step = trainer.train_step

    def wrapped(*args: Any) -> Any:
        if trainer.step == step:
            trainer.stop.ask("enough")
        return train_step(*args)

    trainer.train_step = wrapped
    with contextlib.suppress(StoppedError):
        trainer.run()


def go_on(world: World, folder: str, cases: dict[str, dict[str, Any]], step: int = STEPS) -> list[str]:
    """Begin or continue each case up to a step; the messages of those that are refused."""
    messages = []
    for name, settings in cases.items():
        try:
            run_until(make_trainer(world, f"{folder}/{name}", **(SAVED | settings)), step)
        except InputError as error:
            messages.append(str(error))
    return messages


STAGES: dict[str, dict[str, Any]] = {f"zero{stage}": {"zero_stage": stage} for stage in range(4)}
FROZEN: dict[str, dict[str, Any]] = {f"frozen{stage}": {"zero_stage": stage, "freeze": ["encoder"]} for stage in (2, 3)}


@pytest.fixture(scope="module")
def resized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 -> 1 -> 4 -> 3 -> 2 processes; uninterrupted on one."""
    folder = tmp_path_factory.mktemp("resized")
    for world_size, step in ((2, 2), (1, 4), (4, 5), (3, 7), (2, STEPS)):
        run_distributed(go_on, world_size, str(folder), STAGES | FROZEN, step)
    run_distributed(whole, 1, str(folder))
    return folder


def whole(world: World, folder: str) -> None:
    make_trainer(world, f"{folder}/whole", **SAVED, zero_stage=0).run()
    make_trainer(world, f"{folder}/frozen", **SAVED, zero_stage=0, freeze=["encoder"]).run()


@pytest.mark.parametrize("name", [*STAGES, *FROZEN])
def test_the_same_losses_on_changing_numbers_of_processes(resized: Path, name: str) -> None:
    expected = losses(resized / ("frozen" if name in FROZEN else "whole"))
    assert losses(resized / name) == pytest.approx(expected, rel=1e-5)
    assert not list((resized / name / "checkpoints").glob("universal*"))


@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_weights_are_not_written_again(resized: Path, stage: int) -> None:
    sizes = [
        sum(file.stat().st_size for file in (resized / name / "checkpoints" / "step-00000007").rglob("*.pt"))
        for name in (f"zero{stage}", f"frozen{stage}")
    ]
    assert sizes[1] < 0.65 * sizes[0]


@pytest.mark.parametrize("stage", range(4))
def test_a_flipped_byte_in_any_file_is_detected(resized: Path, stage: int, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(resized / f"zero{stage}" / "checkpoints", checkpoints)
    newest = newest_intact(checkpoints)
    assert newest is not None
    files = [file for file in sorted(newest.rglob("*")) if file.is_file()]
    assert len(files) >= 2
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        previous = newest_intact(checkpoints)
        assert previous is not None and previous < newest, file
        file.write_bytes(content)
    assert newest_intact(checkpoints) == newest


def change_stage(world: World, folder: str) -> list[str]:
    cases = {"12": {"zero_stage": 1}, "20": {"zero_stage": 2}, "23": {"zero_stage": 2}}
    go_on(world, folder, cases, 4)
    return go_on(world, folder, {"12": {"zero_stage": 2}, "20": {"zero_stage": 0}, "23": {"zero_stage": 3}})


def test_another_stage_where_deepspeed_can_and_a_refusal_where_not(resized: Path, tmp_path: Path) -> None:
    messages = run_distributed(change_stage, 1, str(tmp_path))[0]
    assert losses(tmp_path / "12") == pytest.approx(losses(resized / "whole"), rel=1e-5)
    assert len(messages) == 2
    for message, stage in zip(messages, (0, 3), strict=True):
        assert f"was saved at ZeRO stage 2, but train.zero_stage is {stage}" in message and "delete" in message


# ------------------------------------------------------------------------------------------------ signals

STOPS = {  # where the signal comes: (function of the trainer that is interrupted, at its n-th call)
    "at a micro-batch": ("_accumulate", 5),
    "in validation": ("_before_batch", 2),
    "while saving": ("_save", 1),
    "before the first step": ("_before_batch", 1),
}


def stop_everywhere(world: World, folder: str) -> dict[str, tuple[int, str]]:
    """For each place: run until the signal, then again to the end; (the step it stopped at, its newest checkpoint)."""
    settings = {**SAVED, "zero_stage": 2, "dropout": 0.2, "micro_batch_tokens": 90, "save_every_steps": 2}
    make_trainer(world, f"{folder}/whole", **settings).run()
    stopped = {}
    for name, (where, call) in STOPS.items():
        trainer = make_trainer(world, f"{folder}/{name}", **settings)
        stop = trainer.stop = StopFlag()
        stop.listen()
        _signal_at(trainer, where, call, sender=1)
        try:
            trainer.run()
        except StoppedError:
            newest = newest_intact(Path(folder) / name / "checkpoints")
            stopped[name] = (trainer.step, newest.name if newest else "none")
        world.barrier()
        make_trainer(world, f"{folder}/{name}", **settings).run()
    return stopped


def _signal_at(trainer: Any, where: str, call: int, sender: int) -> None:
    """Rank `sender` sends itself SIGUSR1, and then SIGTERM, at the n-th call of a function."""
    owner, name = {
        "_accumulate": (trainer.engine, "accumulate"),
        "_before_batch": (trainer, "leave_if_asked"),
        "_save": (trainer.engine, "save"),
    }[where]
    original, calls = getattr(owner, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call and trainer.world.rank == sender:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, tuple[int, str]]]]:
    folder = tmp_path_factory.mktemp("stopped")
    return folder, run_distributed(stop_everywhere, 2, str(folder))


@pytest.mark.parametrize("name", STOPS)
def test_stopped_anywhere_all_ranks_save_together_and_go_on_exactly(
    name: str, stopped: tuple[Path, list[dict[str, tuple[int, str]]]]
) -> None:
    folder, ranks = stopped
    assert ranks[0][name] == ranks[1][name], "all ranks stop at the same step, although one alone had the signal"
    step, newest = ranks[0][name]
    assert newest == (f"step-{step:08d}" if step else "none"), "what was done is saved"
    expected = weights(folder / "whole" / "final")
    for key, value in weights(folder / name / "final").items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("name", STOPS)
def test_no_record_is_missing_or_doubled(name: str, stopped: tuple[Path, list[dict[str, tuple[int, str]]]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = stopped
    kept = ("step", "loss", "rouge1", "learning_rate")
    records = [
        [{key: row[key] for key in kept if key in row} for row in read_jsonl(folder / which / "metrics.jsonl")
         if "loss" in row or "rouge1" in row]
        for which in ("whole", name)
    ]  # fmt: skip
    assert records[0] == records[1]
    board = EventAccumulator(str(folder / name / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(1, STEPS + 1))
    assert [event.step for event in board.Scalars("rouge1")] == [0, 4, 8]


def no_time(world: World, folder: str) -> tuple[int, str]:
    trainer = make_trainer(world, folder, **SAVED, zero_stage=1)
    trainer.stop = StopFlag(grace_seconds=0.5)
    trainer.slowest_save = 5.0  # as measured before
    trainer.stop.listen()
    _signal_at(trainer, "_accumulate", 5, sender=0)
    with contextlib.suppress(StoppedError):
        trainer.run()
    return trainer.step, str(newest_intact(Path(folder) / "checkpoints"))


def test_where_there_is_no_time_to_save_the_last_checkpoint_stands(tmp_path: Path) -> None:
    step, newest = run_distributed(no_time, 1, str(tmp_path))[0]
    assert step == 5 and newest.endswith("step-00000003")


def near_its_limit(world: World, folder: str) -> list[int]:
    """Stopped by a limit that moves near at step 5; then again to the end. The steps of the checkpoints before that."""
    trainer = make_trainer(world, folder, zero_stage=1, save_every_steps=100)
    trainer.stop = StopFlag(ends_at=time.time() + 1e6)
    train_step = trainer.train_step

    def until_the_limit(*args: Any) -> Any:
        if trainer.step == 5:
            trainer.stop._ends_at = time.time() + trainer.stop.seconds_to_leave
        return train_step(*args)

    trainer.train_step = until_the_limit  # type: ignore[method-assign]
    with pytest.raises(StoppedError, match="the time limit is near"):
        trainer.run()
    saved = [int(path.name.removeprefix("step-")) for path in sorted(Path(folder, "checkpoints").glob("step-*"))]
    make_trainer(world, folder, zero_stage=1).run()
    return saved


def test_a_training_with_a_limit_saves_early_and_leaves_in_time(tmp_path: Path) -> None:
    """The early one tells how long a save takes."""
    assert run_distributed(near_its_limit, 1, str(tmp_path))[0] == [1, 5]
    assert len(losses(tmp_path)) == STEPS


def write_after_another(world: World, folder: str) -> list[list[str]]:
    """What is in the folder of a trainer whose claim was taken, after every way to write."""
    trainer = make_trainer(world, folder)
    trainer.claim = Claim(Path(folder) / "claim.json")
    Claim(Path(folder) / "claim.json")
    found = []
    for write in (lambda: trainer.save(NullTracker()), lambda: trainer.export("final"), trainer.run):
        with pytest.raises(TakenOverError):
            write()
        found.append([path.name for path in Path(folder).iterdir()])
    return found


def test_a_trainer_whose_claim_was_taken_writes_nothing(tmp_path: Path) -> None:
    assert run_distributed(write_after_another, 1, str(tmp_path))[0] == [["claim.json"]] * 3


# ------------------------------------------------------------------------------------------------ real processes


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[tuple[Drill, str, float]]:
    folder = tmp_path_factory.mktemp("drill")
    write_corpus(folder / "corpus")
    make_model("bart", tokenizer).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    recipe = write_recipe(folder, folder / "teacher", 60, train=str(folder / "corpus"))
    with reserved_port() as port:
        drill = prepare(recipe, folder / "runs", port)
        yield (drill, *undisturbed(drill))


def test_signals_to_a_random_process_at_random_times(drilled: tuple[Drill, str, float]) -> None:
    drill, expected, seconds = drilled
    outcome = disturb(drill, signal_one, 3, expected, random.Random(4), longest=seconds / 2)
    assert (outcome.saved, outcome.hung) == (3, 0)
    assert outcome.identical == outcome.finished >= 1


def test_kills_at_random_times_never_lose_a_complete_checkpoint(drilled: tuple[Drill, str, float]) -> None:
    drill, expected, seconds = drilled
    slowed = replace(drill, slowed_seconds=0.05)
    outcome = disturb(slowed, kill_all, 2, expected, random.Random(5), longest=seconds / 2)
    assert outcome.saved == 2 and outcome.identical == outcome.finished >= 1
