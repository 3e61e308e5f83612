"""A whole run from one submission: arrays, dependencies, what fails, what is submitted again, status, cancel."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.hold import SHARDS, Hold
from tests.cluster.runs import (
    LABELS,
    STUDENT,
    attempts,
    codes,
    ends_of_logs,
    job_of,
    launch,
    processes_of,
    states,
    wait,
    wait_for_report,
    write_profile,
    write_recipe,
)
from tests.conftest import ROOT

pytestmark = pytest.mark.cluster

TWO_TEACHERS = {
    "labels": {"t": LABELS["t"], "u": LABELS["t"] | {"teacher": "u", "num_beams": 2}},
    "students": {"a": STUDENT, "b": STUDENT | {"train_on": ["t"]}, "c": STUDENT | {"train_on": ["gold", "u"]}},
}
HARMLESS = "my 'runs'; touch harm $(touch harm) \" & #"


def checkout(folder: Path) -> Path:
    """A copy of the code, to edit."""
    for package in ("distill", "jobs", "launch"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_one_submission_goes_to_the_report(
    cluster: Cluster, tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two teachers label, three students read. The code is edited after the submission, the folder's name is nasty, another
    launcher's variables lie in the environment, and other recipes are tried while its jobs wait.
    """
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("SQUEUE_PARTITION", "high")):
        monkeypatch.setitem(cluster.environment, name, value)
    teacher, corpus = tiny
    recipe = write_recipe(
        tmp_path, teacher, corpus, teachers={"t": {"model": str(teacher)}, "u": {"model": str(teacher)}}, **TWO_TEACHERS
    )
    profile, code, runs = write_profile(tmp_path), checkout(tmp_path / "code"), tmp_path / HARMLESS
    submit = ("run", recipe, "--on", profile, "--runs", runs)
    run = runs / "tiny"
    with cluster.no_starts():
        submitted = launch(cluster, *submit, cwd=code).stdout
        assert submitted.count(": job ") == 18
        for job in (code / "jobs").glob("*.py"):
            job.write_text("raise SystemExit(1)\n")
        assert states(cluster, run)["report"] == "waiting"
        again = launch(cluster, *submit, code=2)
        assert f"job(s) {job_of(run, 'prepare')}" in again.stderr and "Nothing is missing or failed" in again.stderr
        assert "is being run by SLURM" in launch(cluster, "run", recipe, "--runs", runs, code=2).stderr
        resolved = (run / "recipe.yaml").read_text()
        assert "train.steps: 6 when the run began, 9 now" in launch(cluster, *submit, "train.steps=9", code=2).stderr
        launch(cluster, "run", recipe, "--runs", runs, "train.steps=9", code=2)
        assert (run / "recipe.yaml").read_text() == resolved, "the queued jobs read it"
    wait_for_report(run)

    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert all(f"student {name}" in text for name in "abc")
    assert set(states(cluster, run).values()) == {"done"}
    assert "on 2 process(es)" in (run / "logs" / "train-student-a.rank0.log").read_text()
    assert "nothing to do" in launch(cluster, *submit).stdout
    assert not list(tmp_path.rglob("harm")) and not (ROOT / "harm").exists()


def test_what_fails_for_good_cancels_what_needs_it_and_nothing_else(
    cluster: Cluster, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """Once the cause is removed the same command submits what is missing, and only that."""
    teacher, corpus = tiny
    recipe = write_recipe(tmp_path, teacher, corpus, students={"a": STUDENT, "b": STUDENT})
    profile = write_profile(tmp_path, max_retries=1)
    submit = ("run", recipe, "--on", profile, "--runs", tmp_path / "runs")
    run = tmp_path / "runs" / "tiny"
    (run / "students").mkdir(parents=True)
    (run / "students" / "b").write_text("a file where the student's folder should be")
    launch(cluster, *submit)
    wait(lambda: not {"running", "waiting"} & set(states(cluster, run).values()), run)

    now = states(cluster, run)
    assert now["shrink-student-b"] == "failed", ends_of_logs(run)
    assert codes(run, "shrink-student-b") == [100, 100]  # tried once more
    expected = {"train-student-b", "evaluate-student-b", "benchmark", "report"}
    assert {stage for stage, state in now.items() if state == "cancelled"} == expected
    assert {now[stage] for stage in ("train-student-a", "evaluate-student-a", "evaluate-teacher-t")} == {"done"}
    shown = launch(cluster, "status", run).stdout
    assert "shrink-student-b.log" in shown and "cancelled (shrink-student-b failed)" in shown
    assert "shrink-student-b failed: FileExistsError" in shown or "shrink-student-b failed: NotADirectory" in shown, (
        shown
    )
    assert "students/b" in launch(cluster, "logs", run, "shrink-student-b").stdout

    (run / "students" / "b").unlink()
    submitted = launch(cluster, *submit).stdout
    stages = {line.split(":")[0] for line in submitted.splitlines() if ": job " in line}
    assert stages == {"shrink-student-b", *expected}
    wait_for_report(run)


def test_a_killed_task_and_a_dead_node_cost_no_label(cluster: Cluster, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    """A shard's process is killed: it is tried again. A node dies: SLURM runs its shards elsewhere. `cancel` ends only this run.

    The shards' processes are held before they do anything, so that they are there when something happens to them.
    """
    teacher, corpus = tiny
    recipe = write_recipe(tmp_path, teacher, corpus, labels=LABELS, students={"b": STUDENT | {"train_on": ["t"]}})
    run = tmp_path / "runs" / "tiny"
    hold = Hold(tmp_path / "hold", SHARDS)
    profile = write_profile(tmp_path, setup=hold.setup)
    launch(cluster, "run", recipe, "--on", profile, "--runs", tmp_path / "runs")
    wait(lambda: len(processes_of(run, "--shard")) == 4, run)
    node = attempts(run, "label-t.shard-00003")[0]["host"]
    os.kill(processes_of(run, "--shard 2")[0], signal.SIGUSR2)  # it does not listen yet
    os.kill(processes_of(run, "--shard 1")[0], signal.SIGKILL)
    wait(lambda: (codes(run, "label-t.shard-00001"), codes(run, "label-t.shard-00002")) == ([137], [75]), run)
    cluster.node("fail", node)
    hold.release()
    try:
        wait((run / "labels" / "t" / "labels.parquet").exists, run)
    finally:
        cluster.node("start", node)
    assert codes(run, "label-t.shard-00001") == [137, 0]
    killed = [row["reason"] for row in attempts(run, "label-t.shard-00001") if row["event"] == "end"]
    assert killed[0].startswith("it was killed (SIGKILL, often out of memory): lower labels.t.batch_tokens"), killed
    assert codes(run, "label-t.shard-00002") == [75, 0]
    restarts = [row["restart"] for row in attempts(run, "label-t.shard-00003") if row["event"] == "start"]
    assert restarts == [0, 1] and set(codes(run, "label-t.shard-00003")) == {0}

    other = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600")
    launch(cluster, "cancel", run)
    ended = set(states(cluster, run).values())
    assert "cancelled" in ended and ended <= {"cancelled", "done"}, launch(cluster, "status", run).stdout
    assert "(by launch cancel)" in launch(cluster, "status", run).stdout
    assert cluster.job(other)["JobState"] in ("RUNNING", "PENDING")
    cluster.run("scancel", other)


def test_dry_run_and_status_import_no_torch_and_ask_nobody(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "launch",
        "run",
        "jobs/recipes/demo-pl.yaml",
        "--on",
        "slurm/dev.yaml",
    ]
    done = subprocess.run([*command, "--dry-run", "--runs", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "an array of 8" in done.stdout
    assert not any(heavy in done.stderr for heavy in ("| torch\n", "| submitit", "| transformers\n"))
