"""Trainings on a cluster: several nodes, preemption, time limits, requeues, cancellation, nodes that go on writing."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.files import read_jsonl
from tests.cluster.conftest import PATIENT, Cluster, running_cluster
from tests.cluster.hold import HELD_STEPS, TRAINING, Hold
from tests.cluster.runs import (
    STUDENT,
    attempts,
    codes,
    command_line,
    ends_of_logs,
    job_of,
    launch,
    processes_of,
    states,
    steps,
    wait,
    weights,
    write_profile,
    write_recipe,
)
from tests.conftest import ROOT

pytestmark = pytest.mark.cluster

TRAIN: dict[str, Any] = {
    "batch_examples": 8,
    "steps": 40,
    "warmup_steps": 2,
    "zero_stage": 2,
    "dropout": 0.1,
    "save_every_steps": 12,
    "log_every_steps": 1,
}
DISTILLED = STUDENT | {"objective": {"kl": {"weight": 0.8}}}


@pytest.fixture(scope="module")
def prepared(tiny: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a recipe, a folder of runs in which its student is ready to be trained)"""
    folder = tmp_path_factory.mktemp("prepared")
    recipe = write_recipe(
        folder,
        *tiny,
        teachers={"t": {"model": str(tiny[0]), "zero_stage": 3}},
        students={"a": DISTILLED},
        train=TRAIN,
        evaluate={"every_steps": 20, "examples": 8, "before_training": False, "shards": 2},
    )
    for job in (["prepare"], ["shrink", "--student", "a"]):
        command = [sys.executable, "-m", f"jobs.{job[0]}", str(recipe), *job[1:], "--runs", str(folder / "runs")]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return recipe, folder / "runs"


@pytest.fixture(scope="module")
def undisturbed(prepared: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a training on this machine, two processes, that nobody disturbs."""
    recipe, runs = prepared
    own = tmp_path_factory.mktemp("undisturbed") / "runs"
    shutil.copytree(runs, own)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "jobs.train", str(recipe), "--student", "a", "--runs", str(own)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return own / "tiny"


class Training:
    """The prepared student's training on a cluster, in a folder of its own.

    Every attempt stands still after HELD_STEPS steps, until it is asked to stop or `let_go` is called.
    """

    def __init__(self, cluster: Cluster, prepared: tuple[Path, Path], folder: Path, **profile: Any) -> None:
        self.cluster, self.runs = cluster, folder / "runs"
        shutil.copytree(prepared[1], self.runs)
        self.run = self.runs / "tiny"
        self.hold = Hold(folder / "hold", TRAINING)
        self.profile = write_profile(folder, setup=self.hold.setup, **profile)
        self.recipe = prepared[0]

    def submit(self, *overrides: str) -> "Training":
        launch(self.cluster, "run", self.recipe, "--on", self.profile, "--runs", self.runs, *overrides)
        return self

    def wait(self, condition: Callable[[], bool]) -> None:
        wait(condition, self.run)

    def wait_for_hold(self, attempt: int) -> None:
        """Until attempt number `attempt` (from 1) has recorded its steps and stands still."""
        log = self.run / "logs" / "train-student-a.rank0.log"

        def begun() -> bool:
            words = [
                line
                for line in log.read_text().splitlines()
                if "starting at step" in line or "resuming at step" in line
            ]
            if len(words) < attempt:
                return False
            first = int(words[-1].split("at step ")[1].split()[0])
            return len([step for step in steps(self.run) if step > first]) == HELD_STEPS

        self.wait(lambda: log.exists() and begun())

    def preempt(self) -> None:
        """A job of more importance takes all nodes, for a moment."""
        options = ("--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null")
        job = self.cluster.run("sbatch", "--parsable", *options, "--wrap=true")
        self.cluster.wait_for(job, "COMPLETED")

    def move_the_limit(self, minutes: int) -> None:
        """Give the job so many minutes in all."""
        job = job_of(self.run, "train-student-a")
        self.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def bring_the_limit_near(self) -> None:
        """The job ends in one to two minutes."""
        hours, minutes, _ = self.cluster.job(job_of(self.run, "train-student-a"))["RunTime"].split(":")
        self.move_the_limit(60 * int(hours) + int(minutes) + 2)

    def let_go(self) -> None:
        """All attempts, this one and later ones, go on to the end."""
        self.hold.release()

    def wait_for_end(self) -> None:
        self.wait((self.run / "students" / "a" / "final").exists)

    def is_as(self, undisturbed: Path) -> None:
        """The same weights, bit for bit, and every step once."""
        assert weights(self.run) == weights(undisturbed), ends_of_logs(self.run)
        assert steps(self.run) == list(range(1, TRAIN["steps"] + 1))


def test_preempted_three_times(
    cluster: Cluster, prepared: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    training = Training(cluster, prepared, tmp_path).submit()
    for attempt in (1, 2, 3):
        training.wait_for_hold(attempt)
        training.preempt()
    assert states(cluster, training.run)["train-student-a"] in ("preempted", "running")
    training.let_go()
    training.wait_for_end()
    assert codes(training.run, "train-student-a")[:3] == [75, 75, 75]
    assert cluster.job(job_of(training.run, "train-student-a"))["Restarts"] == "3"
    training.is_as(undisturbed)
    launch(cluster, "cancel", training.run)


def test_two_nodes_with_two_ranks_each_give_the_losses_of_one_process(
    cluster: Cluster, prepared: tuple[Path, Path], tmp_path: Path
) -> None:
    short = ("train.steps=8", "train.dropout=0.0")
    wide = Training(cluster, prepared, tmp_path / "wide", stages={"train": {"nodes": 2}})
    alone = Training(cluster, prepared, tmp_path / "alone")
    for training in (wide, alone):
        (training.run / "recipe.yaml").unlink()  # it is another training of the prepared student
        training.let_go()
    wide.submit(*short)
    command = [
        sys.executable,
        "-m",
        "jobs.train",
        str(alone.recipe),
        "--student",
        "a",
        "--runs",
        str(alone.runs),
        *short,
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    wide.wait_for_end()
    assert "on 4 process(es)" in (wide.run / "logs" / "train-student-a.rank0.log").read_text()
    assert cluster.job(job_of(wide.run, "train-student-a"))["NumNodes"] == "2"
    rows = [read_jsonl(training.run / "students" / "a" / "metrics.jsonl") for training in (wide, alone)]
    losses = [[row["loss"] for row in one if "loss" in row] for one in rows]
    assert len(losses[0]) == 8 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    launch(cluster, "cancel", wide.run)


def test_the_time_limit_comes_twice(
    cluster: Cluster, prepared: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    """A job is told before its end, leaves and is requeued, as often as the profile allows."""
    training = Training(cluster, prepared, tmp_path, signal_lead_seconds=40, max_requeues=1).submit()
    training.wait_for_hold(1)
    with cluster.no_starts():
        training.bring_the_limit_near()
        training.wait(lambda: codes(training.run, "train-student-a") == [75])
        training.move_the_limit(30)
    training.wait_for_hold(2)
    training.bring_the_limit_near()
    training.wait(lambda: codes(training.run, "train-student-a") == [75, 75])
    training.wait(lambda: states(cluster, training.run)["train-student-a"] == "stopped")
    assert "max_requeues: 1" in "".join(log.read_text() for log in training.run.glob("logs/slurm/*/*_0_log.out"))
    training.profile = write_profile(tmp_path)  # the same command, with more time
    training.submit().wait_for_end()
    training.is_as(undisturbed)
    launch(cluster, "cancel", training.run)


def test_requeued_by_hand_it_goes_on_and_cancelled_by_hand_it_does_not_come_back(
    cluster: Cluster, prepared: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    training = Training(cluster, prepared, tmp_path).submit()
    training.wait_for_hold(1)
    cluster.run("scontrol", "requeue", job_of(training.run, "train-student-a"))
    training.wait_for_hold(2)
    job = job_of(training.run, "train-student-a")
    cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    assert codes(training.run, "train-student-a")[-1] == 75  # it saved, and was not brought back
    training.wait(lambda: states(cluster, training.run)["evaluate-student-a"] == "cancelled")
    shown = launch(cluster, "status", training.run).stdout
    assert states(cluster, training.run)["train-student-a"] == "cancelled" and "(by scancel)" in shown
    assert "(train-student-a cancelled)" in shown, "why the stages that need it will not run"
    training.let_go()
    training.submit().wait_for_end()
    training.is_as(undisturbed)
    launch(cluster, "cancel", training.run)


@pytest.mark.parametrize("settings, partition", [({}, "nograce"), ({"PREEMPT_SIGNAL": "no"}, "low")])
def test_without_grace_or_with_term_alone(
    prepared: tuple[Path, Path], undisturbed: Path, tmp_path: Path, settings: dict[str, str], partition: str
) -> None:
    """Where SLURM kills five seconds after its signal, or never sends the one that was asked for."""
    with running_cluster(**PATIENT | {"KILL_WAIT": "5"} | settings) as cluster:
        training = Training(cluster, prepared, tmp_path, partition=partition).submit()
        training.wait_for_hold(1)
        training.preempt()
        training.let_go()
        training.wait_for_end()
        assert cluster.job(job_of(training.run, "train-student-a"))["Restarts"] == "1"
        assert "resuming at step" in (training.run / "logs" / "train-student-a.rank0.log").read_text()
        training.is_as(undisturbed)
        launch(cluster, "cancel", training.run)


def test_a_node_that_was_cut_off_stops_writing_when_it_is_back(
    cluster: Cluster, prepared: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    """Its processes stand still while SLURM runs the job elsewhere; then they go on, and find that it is not theirs."""
    training = Training(cluster, prepared, tmp_path).submit()
    training.wait_for_hold(1)
    node = attempts(training.run, "train-student-a")[0]["host"]
    asleep = processes_of(training.run)
    for process in asleep:
        os.kill(process, signal.SIGSTOP)
    daemon = daemon_of(cluster, node)
    os.kill(daemon, signal.SIGSTOP)
    try:
        cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        training.wait_for_hold(2)
        training.let_go()
        for process in asleep:
            os.kill(process, signal.SIGCONT)
        log = training.run / "logs" / "train-student-a.rank0.log"
        training.wait(lambda: "was taken over by another attempt" in log.read_text())
        training.wait_for_end()
    finally:
        os.kill(daemon, signal.SIGCONT)
        cluster.node("kill", node)
        cluster.node("start", node)
    training.is_as(undisturbed)
    job = job_of(training.run, "train-student-a")
    cluster.wait_for(job, "COMPLETED")  # the run's files are there before the job has left
    assert cluster.job(job)["Restarts"] == "1", "the old attempt did not requeue its successor"
    launch(cluster, "cancel", training.run)


def daemon_of(cluster: Cluster, node: str) -> int:
    """The slurmd of a node of this cluster."""
    for folder in Path("/proc").glob("[0-9]*"):
        if command_line(folder).startswith(f"slurmd -D -N {node}"):
            environment = (folder / "environ").read_bytes().decode(errors="replace")
            if str(cluster.folder) in environment:
                return int(folder.name)
    raise AssertionError(f"no slurmd of {node}")


# ------------------------------------------------------------------------------------------------ without submitit


def sbatch(training: Training, script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
    environment = training.cluster.environment | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(training.hold.folder)
    output = f"--output={training.runs.parent}/%x-%j.log"
    command = ["sbatch", "--parsable", "--mem-per-cpu=1500", output, *options, str(ROOT / "slurm" / script)]
    line = [*command, str(training.recipe), *arguments, "--runs", str(training.runs)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_training_script_is_preempted_and_resumes_and_is_cancelled_for_good(
    cluster: Cluster, prepared: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    training = Training(cluster, prepared, tmp_path)
    job = sbatch(training, "train.sbatch", "--student", "a", options=("--ntasks-per-node=2",))
    training.wait_for_hold(1)
    training.preempt()
    training.wait_for_hold(2)
    cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    training.let_go()
    job = sbatch(training, "train.sbatch", "--student", "a", options=("--nodes=2", "--ntasks-per-node=1"))
    cluster.wait_for(job, "COMPLETED")
    training.is_as(undisturbed)
