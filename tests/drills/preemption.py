"""python -m tests.drills.preemption [--signals 100] [--kills 50] [--steps 120]

A small distillation (two processes; student at ZeRO 2, teacher at ZeRO 3) that is stopped at random times: first by signals
to a random process, in training, validation or saving; then by SIGKILL to all, with a writer that is slowed down, so that
many fall into a save. Each attempt goes on where the one before stopped. At the end the weights must be those of an
undisturbed training, bit for bit; a signal must leave a complete checkpoint of the step that was reached; a kill must never
lose a complete one.
"""

import argparse
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from distill.checkpoint import newest_intact
from distill.files import read_jsonl, sha256_file
from tests.conftest import PATIENCE_SECONDS
from tests.ports import reserved_port

ROOT = Path(__file__).parents[2]
SLOWED = """
import sys, time
import distill.files
write = distill.files.fsync
distill.files.fsync = lambda path: (time.sleep({seconds}), write(path))
from jobs import train
from jobs.start import main
main(train.train, "train", works_on="member", stops="between batches")
"""


@dataclass
class Outcome:
    """What a drill saw."""

    attempts: int = 0
    stopped: int = 0
    """Attempts that a signal or a kill ended; the others had reached the end and begun anew."""
    saved: int = 0
    """Of those, that left a complete checkpoint of the step they had reached (signals), or lost none (kills)."""
    hung: int = 0
    finished: int = 0
    identical: int = 0
    """Of the finished trainings, those with the weights of the undisturbed one."""
    during: dict[str, int] = field(default_factory=dict)
    """Where a signal came: training, validation, saving."""
    seconds: list[float] = field(default_factory=list)
    """From a signal to the exit of the last process."""

    def show(self) -> str:
        times = f"; seconds to exit: median {statistics.median(self.seconds):.1f}, worst {max(self.seconds):.1f}" if self.seconds else ""  # fmt: skip
        return f"{self.stopped} stopped, {self.saved} saved, {self.hung} hung, {self.finished} finished, {self.identical} of them identical{times}"  # fmt: skip


@dataclass(frozen=True)
class Drill:
    """The training that is disturbed."""

    recipe: Path
    runs: Path
    port: int
    """Where the processes meet; reserved."""
    slowed_seconds: float = 0.0

    @property
    def student(self) -> Path:
        return self.runs / "drill" / "students" / "kd"

    def start(self) -> list[subprocess.Popen[bytes]]:
        job = ["-c", SLOWED.format(seconds=self.slowed_seconds)] if self.slowed_seconds else ["-m", "jobs.train"]
        command = [sys.executable, *job, str(self.recipe), "--student", "kd", "--runs", str(self.runs)]
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "OMP_NUM_THREADS": "1"}
        with (self.runs / "drill.log").open("ab") as log:
            return [
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
                for rank in range(2)
            ]

    def forget(self) -> None:
        """Begin anew: all but the initial student goes."""
        for name in ("checkpoints", "final", "best", "metrics.jsonl", "tensorboard"):
            path = self.student / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def is_finished(self) -> bool:
        return (self.student / "final").exists()

    def weights(self) -> str:
        return sha256_file(self.student / "final" / "model.safetensors")


Processes = list[subprocess.Popen[bytes]]
Strike = Callable[[Drill, Processes, random.Random, Outcome], bool]
"""Stops an attempt in its own way, counts what it saw, and says whether it did."""


def disturb(drill: Drill, strike: Strike, count: int, expected: str, chance: random.Random, longest: float) -> Outcome:
    """Attempts that are struck at a random time after their training has begun, until `count` were stopped by it."""
    outcome = Outcome()
    while outcome.stopped < count:
        outcome.attempts += 1
        processes = drill.start()
        try:
            _wait_for_training(drill, processes)
            time.sleep(chance.uniform(0, longest))
            place = _place(drill)
            if strike(drill, processes, chance, outcome):
                outcome.stopped += 1
                outcome.during[place] = outcome.during.get(place, 0) + 1
        finally:
            for process in processes:
                process.kill()  # those that an error has left
        _count_finished(drill, outcome, expected)
    assert _wait(drill.start()) == [0, 0]
    _count_finished(drill, outcome, expected)
    return outcome


def signal_one(drill: Drill, processes: Processes, chance: random.Random, outcome: Outcome) -> bool:
    """A signal to a random process: both must leave with 75, and a complete checkpoint of the step they had reached."""
    alive = [process for process in processes if process.poll() is None]
    began = time.monotonic()
    if alive:
        chance.choice(alive).send_signal(chance.choice([signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]))
    codes = _wait(processes)
    if codes == [0, 0]:
        return False
    outcome.hung += codes is None
    assert codes in (None, [75, 75]), f"{codes}\n{(drill.runs / 'drill.log').read_text()[-5000:]}"
    outcome.seconds.append(time.monotonic() - began)
    outcome.saved += _said_and_saved(drill)
    return True


def kill_all(drill: Drill, processes: Processes, chance: random.Random, outcome: Outcome) -> bool:
    """SIGKILL to both: what was complete before must be there after."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)  # nothing changes between this look and the kill
    before = _newest_step(drill)
    if any(process.poll() is not None for process in processes):
        for process in processes:
            process.send_signal(signal.SIGCONT)
        assert _wait(processes) == [0, 0]
        return False
    for process in processes:
        process.kill()
    _wait(processes)
    outcome.saved += _newest_step(drill) >= before
    return True


def _count_finished(drill: Drill, outcome: Outcome, expected: str) -> None:
    if drill.is_finished():
        outcome.finished += 1
        outcome.identical += drill.weights() == expected
        rows = [row["step"] for row in read_jsonl(drill.student / "metrics.jsonl") if "loss" in row]
        assert rows == sorted(set(rows)), "a step was recorded twice"
        drill.forget()


def _wait_for_training(drill: Drill, processes: list[subprocess.Popen[bytes]]) -> None:
    """Until this attempt has said that it starts or resumes; signals before that find nothing to save."""
    log = drill.runs / "drill" / "logs" / "train-student-kd.rank0.log"
    seen = len(re.findall("starting at step|resuming at step", log.read_text())) if log.exists() else 0
    while all(process.poll() is None for process in processes):
        if log.exists() and len(re.findall("starting at step|resuming at step", log.read_text())) > seen:
            return
        time.sleep(0.02)


def _place(drill: Drill) -> str:
    if list((drill.student / "checkpoints").glob("*.partial")):
        return "saving"
    rows = read_jsonl(drill.student / "metrics.jsonl")
    return "validation" if rows and rows[-1]["step"] % 20 == 0 and "loss" in rows[-1] else "training"


def _said_and_saved(drill: Drill) -> bool:
    """True where the newest intact checkpoint is of the step that the job said it stopped at; before the first there is none."""
    log = (drill.runs / "drill" / "logs" / "train-student-kd.rank0.log").read_text()
    said, newest = int(re.findall(r"stopping at step (\d+)", log)[-1]), _newest_step(drill)
    if newest != (said or -1):
        print(f"stopped at step {said}, but the newest checkpoint is of step {newest}\n{log[-3000:]}", flush=True)
    return newest == (said or -1)


def _newest_step(drill: Drill) -> int:
    newest = newest_intact(drill.student / "checkpoints")
    return int(newest.name.removeprefix("step-")) if newest else -1


def _wait(processes: list[subprocess.Popen[bytes]]) -> list[int] | None:
    """The exit codes; None where they hang, which are then killed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
            process.wait()
        return None


def write_recipe(folder: Path, teacher: Path, steps: int, **corpus: Any) -> Path:
    """A small distillation of a model folder, validated and saved every 20 and 10 steps."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "name": "drill",
        "corpus": {"max_source_tokens": 40, "max_target_tokens": 16} | corpus,
        "teachers": {"t": {"model": str(teacher), "zero_stage": 3}},
        "students": {
            "kd": {
                "teacher": "t",
                "decoder_layers": 1,
                "objective": {"kl": {"weight": 0.8}, "hidden": {"weight": 1.0, "supervise": "spread"}},
            }
        },
        "train": {"batch_examples": 8, "steps": steps, "warmup_steps": 5, "zero_stage": 2, "dropout": 0.1,
                  "micro_batch_tokens": 200, "save_every_steps": 10, "log_every_steps": 1},
        "evaluate": {"every_steps": 20, "examples": 8, "before_training": False},
    }  # fmt: skip
    (folder / "drill.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "drill.yaml"


def prepare(recipe: Path, runs: Path, port: int) -> Drill:
    runs.mkdir(parents=True)
    for job in (["prepare"], ["shrink", "--student", "kd"]):
        command = [sys.executable, "-m", f"jobs.{job[0]}", str(recipe), *job[1:], "--runs", str(runs)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return Drill(recipe, runs, port)


def undisturbed(drill: Drill) -> tuple[str, float]:
    """(the weights of a training that nobody disturbs, its seconds)"""
    began = time.monotonic()
    assert _wait(drill.start()) == [0, 0]
    rows = read_jsonl(drill.student / "metrics.jsonl")
    weights, seconds = drill.weights(), rows[-1]["time"] - rows[0]["time"]
    drill.forget()
    assert seconds < time.monotonic() - began
    return weights, seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.preemption")
    for option, default in (("signals", 100), ("kills", 50), ("steps", 120)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--slow", type=float, default=0.1, help="seconds that each file of a save takes longer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, reserved_port() as port:
        corpus = {"train": "docstrings", "max_examples": {"train": 400, "validation": 20, "test": 20}}
        recipe = write_recipe(Path(folder), ROOT / "jobs" / "recipes" / "demo-teacher", options.steps, **corpus)
        drill = prepare(recipe, Path(folder) / "runs", port)
        expected, seconds = undisturbed(drill)
        print(f"undisturbed: {options.steps} steps in {seconds:.1f} s", flush=True)
        if options.signals:
            outcome = disturb(drill, signal_one, options.signals, expected, random.Random(0), longest=seconds / 2)
            print("signals:", outcome.show(), outcome.during, flush=True)
            assert outcome.saved == outcome.stopped and not outcome.hung and outcome.identical == outcome.finished
        if options.kills:
            slowed = replace(drill, slowed_seconds=options.slow)
            outcome = disturb(slowed, kill_all, options.kills, expected, random.Random(1), longest=seconds / 2)
            print("kills:", outcome.show(), outcome.during, flush=True)
            assert outcome.saved == outcome.stopped and outcome.identical == outcome.finished


if __name__ == "__main__":
    main()
