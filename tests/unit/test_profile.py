"""Profiles, and what of them reaches sbatch."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.errors import InputError
from distill.files import write_text
from distill.recipe_file import parse_recipe
from distill.run import Run
from distill.stages import Stage, stages
from launch.profile import Profile, load_profile
from launch.queue import ENDED, NEVER, QueuedJob, _parse
from launch.slurm import RunQueue, Submission, job_name, plan, run_id, sbatch_parameters
from launch.state import GraphState, cancelled_file
from launch.task import Task, _end_time
from tests.conftest import ROOT

PROFILES = sorted((ROOT / "slurm" / "profiles").glob("*.yaml"))
RECIPE: dict[str, Any] = {
    "name": "r",
    "corpus": {"train": "docstrings"},
    "teachers": {"t": {"model": "some/model"}},
    "labels": {"t": {"shards": 3}},
    "students": {"s": {"teacher": "t", "decoder_layers": 2, "train_on": ["t"]}},
    "train": {"steps": 10},
}


def load(folder: Path, **keys: Any) -> Profile:
    (folder / "p.yaml").write_text(yaml.safe_dump(keys))
    return load_profile(folder / "p.yaml")


def stage(folder: Path, job: str) -> Stage:
    run = Run(parse_recipe(RECIPE), folder / "r")
    return next(stage for stage in stages(run) if stage.job == job)


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_the_profiles_that_are_there_are_valid(file: Path) -> None:
    load_profile(file)


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"partiton": "x"}, "partiton: unknown key; did you mean 'partition'?"),
        ({"stages": {"train": {"nodes": 0}}}, "stages.train.nodes: 0 given"),
        ({"stages": {"trian": {}}}, "stages.trian"),
        ({"nodes": True}, "nodes: True given; a number is expected"),
        ({"setup": ["a\nb"]}, "setup.0"),
        ({"environment": {"A=B": "c"}}, "environment.A=B"),
        ({"options": {"a b": "c"}}, "options.a b"),
        ({"stages": {"train": {"options": {"array": "0-3"}}}}, "stages.train.options: array given"),
        ({"time_limit_min": 2}, "signal_lead_seconds: 120 given, but the time limit is 2 min"),
        ({"stages": {"label": {"time_limit_min": 1}}}, "stages.label.signal_lead_seconds"),
        ({"partition": "a\n#SBATCH --wrap=x"}, "partition"),
    ],
)
def test_a_wrong_profile_is_explained(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, **keys)
    assert words in str(error.value)


def test_an_error_of_the_shared_part_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, nodes=0, stages={"train": {}, "label": {"qos": "q"}})
    assert str(error.value).count("nodes") == 1


def test_each_kind_of_stage_asks_for_its_own(tmp_path: Path) -> None:
    profile = load(tmp_path, nodes=2, gpus_per_node=8, partition="big", stages={"label": {"partition": "small"}})
    train, label, merge = (profile.of(stage(tmp_path, job)) for job in ("train", "label", "merge"))
    assert (train.nodes, train.processes, train.partition) == (2, 8, "big")
    assert (label.nodes, label.processes, label.gpus_per_node, label.partition) == (1, 1, 1, "small")
    assert (merge.nodes, merge.processes, merge.gpus_per_node) == (1, 1, 0)


def test_memory_and_options_reach_sbatch(tmp_path: Path) -> None:
    profile = load(
        tmp_path, processes_per_node=2, memory_gb_per_process=1.5, options={"reservation": "x y", "requeue": False}
    )
    run = Run(parse_recipe(RECIPE), tmp_path / "r")
    asked = sbatch_parameters(
        run, Submission(stage(tmp_path, "train"), profile.of(stage(tmp_path, "train"))), "afterok:1", []
    )
    assert (asked["mem"], asked["dependency"], asked["ntasks_per_node"]) == ("3072M", "afterok:1", 2)
    more = asked["additional_parameters"]
    assert (more["kill-on-invalid-dep"], more["reservation"]) == ("yes", "x y") and "requeue" not in more


def test_two_runs_of_one_name_have_jobs_of_different_names(tmp_path: Path) -> None:
    one, two = (Run(parse_recipe(RECIPE), tmp_path / folder / "r") for folder in ("a", "b"))
    assert run_id(one) != run_id(two)
    assert job_name(one, "train-student-s") == f"r.train-student-s.{run_id(one)}"


def test_a_line_of_squeue() -> None:
    assert _parse("17_3|PENDING|Dependency||r.x|y.0a") == QueuedJob("17_3", "r.x|y.0a", "PENDING", "Dependency")
    assert _parse("17|RUNNING|None|n[1-2]|n").nodes == "n[1-2]"
    assert _parse("17|CANCELLED by 0|None||n").state in ENDED
    assert not _parse("17|PENDING|DependencyNeverSatisfied||n").is_active
    assert _parse("17|COMPLETING|None|n1|n").is_active


def test_the_end_of_a_job() -> None:
    assert _end_time("N/A") is None and _end_time("") is None
    assert _end_time("1970-01-02T00:00:00\n") is not None


@pytest.mark.parametrize(
    "earlier, code, words",
    [
        ([], 2, "wrong input"),
        ([75, 75], 75, "after 3 stops"),
        ([75], 75, None),
        ([100], 137, "after 2 failures"),
        ([75, 75], 137, None),
        ([], 100, None),
    ],
)
def test_a_job_comes_back_so_often_and_no_more(
    tmp_path: Path, earlier: list[int], code: int, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    old = Task("s", "old", (), tmp_path)
    for _ in range(9):
        old._record(event="end", code=code)  # another submission's do not count
    task = Task("s", "new", (), tmp_path, max_requeues=2, max_retries=1)
    for ended in [*earlier, code]:
        task._record(event="end", code=ended)
    reason = task._why_not_again(code)
    assert reason is None if words is None else words in str(reason)
    write_text(cancelled_file(tmp_path), "")
    assert task._why_not_again(code) is not None


def test_what_begins_anew_does_not_come_back_from_its_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    task = Task("s", "new", (), tmp_path, max_requeues=9, begins_anew=True, signal_lead_seconds=60)
    assert "raise time_limit_min" in str(task._why_not_again(75, end=time.time() + 90))
    assert task._why_not_again(75, end=time.time() + 900) is None  # it was preempted
    assert replace(task, begins_anew=False)._why_not_again(75, end=time.time() + 90) is None


# ------------------------------------------------------------------------------------------------ what is submitted


def planned(
    folder: Path, *queued: tuple[str, str, str], done: tuple[str, ...] = ()
) -> tuple[dict[str, object], list[str]]:
    """(what is submitted: its shards by stage, what is cancelled before) with jobs (id, stage, state) in the queue."""
    run = Run(parse_recipe(RECIPE), folder / "r")
    graph = [replace(stage, is_complete=lambda name=stage.name: name in done) for stage in stages(run)]
    state = GraphState(run.logs)
    run.logs.mkdir(parents=True, exist_ok=True)
    for job, stage, _ in queued:
        if job.endswith("_0"):
            state.submitted(stage, job.split("_")[0], (2, 0, 1), "a")
    jobs = [
        QueuedJob(job, job_name(run, stage), *(["PENDING", NEVER] if word == NEVER else [word, ""]))
        for job, stage, word in queued
    ]
    queue = RunQueue(run, state, [*jobs, QueuedJob("99", "another.prepare.00000000", "RUNNING")])
    missing, outdated = plan(graph, Profile(), queue)
    return {one.stage.name: one.shards for one in missing}, outdated


ALL = ("prepare", "evaluate-teacher-t", "label-t", "merge-t", "shrink-student-s", "train-student-s",
       "evaluate-student-s", "benchmark", "report")  # fmt: skip


def test_everything_is_submitted_at_first_and_nothing_twice(tmp_path: Path) -> None:
    assert planned(tmp_path)[0] == {stage: (0, 1, 2) if stage == "label-t" else None for stage in ALL}
    queued = [(str(number), stage, "PENDING") for number, stage in enumerate(ALL) if stage != "label-t"]
    shards = [(f"17_{index}", "label-t", "RUNNING") for index in range(3)]
    assert planned(tmp_path, *queued, *shards) == ({}, [])


def test_of_an_array_only_what_is_neither_done_nor_queued(tmp_path: Path) -> None:
    """Its task 0 makes shard 2, as it was submitted; tasks 1 and 2 have failed."""
    missing, _ = planned(tmp_path, ("17_0", "label-t", "RUNNING"), done=("prepare",))
    assert missing["label-t"] == (0, 1)


def test_what_waits_for_a_stage_that_is_submitted_again_is_replaced(tmp_path: Path) -> None:
    """Its jobs still look as if they waited, but SLURM will never start them."""
    queued = [("4", "train-student-s", "PENDING"), ("5", "benchmark", "PENDING"), ("6", "merge-t", "RUNNING")]
    missing, outdated = planned(tmp_path, *queued, done=("prepare", "label-t"))
    assert {"shrink-student-s", "train-student-s", "benchmark", "report"} <= set(missing) and "merge-t" not in missing
    assert outdated == ["4", "5"]


def test_jobs_that_wait_for_ever_are_cancelled(tmp_path: Path) -> None:
    missing, outdated = planned(tmp_path, ("4", "report", NEVER), done=ALL[:-1])
    assert (list(missing), outdated) == (["report"], ["4"])
