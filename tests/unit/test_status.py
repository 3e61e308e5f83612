"""What `launch status` shows: at any size of the screen, on SLURM, of all runs."""

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from distill.errors import InputError
from distill.files import append_jsonl, write_json, write_text
from distill.run import Run
from distill.stages import Stage, stages
from launch import table
from launch.cli import app
from launch.logs import find_log, follow, last_lines
from launch.runs import all_runs, find_run, list_of_runs
from launch.slurm import job_name
from launch.status import Row, progress_of, read
from launch.version import version
from tests.unit.test_recipe import recipe
from tests.unit.test_run import make_run

LONG = "summaries-of-long-papers-12-3"


def many_stages(folder: Path) -> Run:
    return make_run(folder, students={f"{LONG}-{number}": {"teacher": "t"} for number in range(12)})


def drawn(shown: RenderableType, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get().splitlines()


def rows_with(run: Run, states: dict[str, str]) -> list[Row]:
    """The rows of a run, of which some have another state."""
    rows, _ = read(run)
    return [
        Row(**{**vars(row), "state": states.get(row.stage.name, row.state), "is_begun": row.stage.name in states})
        for row in rows
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (100, 30), (200, 50), (60, 20)])
def test_a_table_fits_the_screen_and_never_folds_a_name(tmp_path: Path, width: int, height: int) -> None:
    run = many_stages(tmp_path)
    names = [stage.name for stage in stages(run)]
    running = names[-4]
    rows = rows_with(run, {**dict.fromkeys(names[:20], "done"), running: "running"})
    lines = drawn(table.fitted(run, rows, width, height, ["warning: x"]), width, height)
    assert len(lines) < height and all(len(line) <= width for line in lines)
    shown = [line.split()[0] for line in lines if line.split() and line.split()[0] in names]
    assert running in shown
    assert "warning: x" in lines
    if len(names) + table.LINES_AROUND + 2 <= height:
        assert shown == names, "all of them, in their order"
    else:
        assert shown[0] == running and "20 stages done" in lines
        assert any("more stages wait" in line for line in lines) or len(shown) == len(names) - 20


def test_what_failed_stands_before_what_waits(tmp_path: Path) -> None:
    run = many_stages(tmp_path)
    names = [stage.name for stage in stages(run)]
    rows = rows_with(run, {names[5]: "running", names[3]: "failed", names[8]: "preempted"})
    lines = drawn(table.fitted(run, rows, 80, 12), 80, 12)
    shown = [line.split()[0] for line in lines if line.split() and line.split()[0] in names]
    assert shown[:3] == [names[5], names[8], names[3]]


def test_columns_leave_one_after_the_other(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows, _ = read(run)
    full = [
        Row(
            **{
                **vars(row),
                "state": "done",
                "restarts": 3,
                "jobs": "123456",
                "nodes": "n[1-2]",
                "seconds": 7300.0,
                "remark": "r" * 30,
            }
        )
        for row in rows
    ]
    heads = {width: drawn(table.table(run, full, width), width, 50)[2] for width in (160, 90, 60, 40)}
    assert "restarts" in heads[160] and "result" in heads[160] and "job" in heads[160]
    assert "restarts" not in heads[60] and "elapsed" in heads[60]
    assert heads[40].split()[:2] == ["stage", "state"]
    for width in (*heads, 15):
        assert len(drawn(table.table(run, full, width), width, 50)) == len(rows) + table.LINES_AROUND, (
            "no line is folded"
        )
        assert all(len(line) <= width for line in drawn(table.table(run, full, width), width, 50)[2:])


def test_a_training_that_has_written_nothing_is_at_step_0_of_all(tmp_path: Path) -> None:
    run = make_run(tmp_path, train={"steps": 10})
    stage = training(run)
    assert progress_of(run, stage).text() == "step 0/10"
    assert stage.member is not None
    stage.member.folder.mkdir(parents=True)
    append_jsonl(stage.member.metrics, {"step": 0, "rouge2": 1.0})  # the validation before training
    assert progress_of(run, stage).done() == "0/10"
    unknown = make_run(tmp_path, train={"epochs": 2})
    assert progress_of(unknown, training(unknown)).done() == "0/?", "before the corpus is counted"


def test_a_training_that_compiles_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (time.time() - 9, time.time() - 9))
    run = make_run(tmp_path)
    run.logs.mkdir(parents=True)
    running = {"state": "running", "host": socket.gethostname(), "processes": [os.getpid()], "started": time.time()}
    write_json(run.logs / "graph.json", dict.fromkeys(("prepare", "train-student-s"), running))
    remarks = {row.stage.name: row.remark for row in read(run)[0]}
    assert remarks["train-student-s"].startswith("compiling DeepSpeed's communication library")
    assert remarks["prepare"] == ""


def training(run: Run) -> Stage:
    return next(stage for stage in stages(run) if stage.job == "train")


# ------------------------------------------------------------------------------------------------ SLURM


def on_slurm(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, *jobs: tuple[str, str]) -> None:
    """Jobs of the run, submitted as 17, 18, ..., and a squeue that shows (the part before the name, the stage)."""
    lines = [f"{begin}|{job_name(run, stage)}" for begin, stage in jobs]
    squeue = folder / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:/bin:/usr/bin")
    entries = {
        stage: {"state": "submitted", "jobs": [{"job": begin.split("|")[0], "shards": None, "submission": "s"}]}
        for begin, stage in jobs
    }
    run.logs.mkdir(parents=True)
    write_json(run.logs / "graph.json", entries)


def test_jobs_nodes_times_and_reasons_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    on_slurm(
        run,
        tmp_path,
        monkeypatch,
        ("17|RUNNING|None|n[1-2]", "prepare"),
        ("18|PENDING|Priority|", "shrink-student-s"),
        ("19|PENDING|ReqNodeNotAvail, UnavailableNodes:n3|", "train-student-s"),
        ("20|PENDING|Dependency|", "evaluate-student-s"),
        ("21|PENDING|SomethingNew|", "benchmark"),
    )
    start = {"submission": "s", "event": "start", "time": time.time() - 300, "restart": 0}
    (run.logs / "slurm" / "attempts").mkdir(parents=True)
    append_jsonl(run.logs / "slurm" / "attempts" / "prepare.jsonl", start)
    rows, note = read(run)
    found = {row.stage.name: row for row in rows}
    assert note == ""
    prepare = found["prepare"]
    assert (prepare.state, prepare.jobs, prepare.nodes) == ("running", "17", "n[1-2]")
    assert prepare.seconds is not None and 299 < prepare.seconds < 330
    assert found["shrink-student-s"].remark == "jobs of a higher priority are before it (Priority)"
    assert found["train-student-s"].remark == "nodes that it needs are down or reserved (ReqNodeNotAvail)"
    assert found["evaluate-student-s"].remark == "after train-student-s (Dependency)"
    assert found["benchmark"].remark == "SomethingNew"
    lines = drawn(table.table(run, rows, 160), 160, 50)
    assert any("17" in line and "n[1-2]" in line and "5 min" in line for line in lines)
    narrow = drawn(table.fitted(run, rows, 80, 24), 80, 24)
    assert any("jobs of a higher" in line for line in narrow) and all(len(line) <= 80 for line in narrow)


# ------------------------------------------------------------------------------------------------ runs


def write_run(runs: Path, name: str, **changes: Any) -> Run:
    import yaml

    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(name=name, **changes)))
    return find_run(folder, runs)


def test_a_run_is_found_by_folder_and_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", "debt")
    assert find_run(Path("debt"), tmp_path / "runs") == run
    assert find_run(tmp_path / "runs" / "debt", Path("elsewhere")) == run
    with pytest.raises(InputError, match=r"dept is no run.*Expected one of the runs in .*: debt"):
        find_run(Path("dept"), tmp_path / "runs")
    with pytest.raises(InputError, match=r"no runs\. Expected folders with a recipe\.yaml"):
        all_runs(tmp_path)


def test_all_runs_are_listed_the_newest_first(tmp_path: Path) -> None:
    for age, name in enumerate(("old", "broken", "new")):
        run = write_run(tmp_path, name)
        os.utime(run.recipe_file, (1000 * age, 1000 * age))
    write_text(tmp_path / "broken" / "recipe.yaml", "name: [")
    os.utime(tmp_path / "broken" / "recipe.yaml", (500, 500))
    old = find_run(Path("old"), tmp_path)
    old.logs.mkdir()
    write_json(old.logs / "graph.json", {"prepare": {"state": "failed", "host": "x", "processes": []}})
    os.utime(old.logs / "graph.json", (600, 600))
    lines = {line.name: line for line in all_runs(tmp_path)}
    assert list(lines) == ["new", "old", "broken"]
    assert (lines["new"].state, lines["old"].state, lines["broken"].state) == ("not started", "failed", "unknown")
    assert any("0 of 7 stages" in line for line in drawn(list_of_runs(tmp_path), 80, 24))


def test_commands_without_a_run(tmp_path: Path) -> None:
    write_run(tmp_path, "debt")
    ask = CliRunner().invoke
    assert "debt" in ask(app, ["status", "--runs", str(tmp_path)]).output
    assert "prepare" in ask(app, ["status", "debt", "--runs", str(tmp_path)]).output
    refused = ask(app, ["status", "--watch", "--runs", str(tmp_path)])
    assert refused.exit_code == 2 and "--watch given without a run" in refused.output
    shown = ask(app, ["--version"])
    assert shown.exit_code == 0 and shown.output.strip() == version() and "0.1.0" in shown.output


# ------------------------------------------------------------------------------------------------ logs


def test_a_log_is_followed_to_the_end_also_when_it_is_replaced(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("old\n")
    steps = [
        lambda: append(log, "one\n"),
        lambda: replace(log, "two, a longer text than before\n"),
        lambda: append(log, "three\n"),
    ]

    def goes_on() -> bool:
        if steps:
            steps.pop(0)()
        return bool(steps)

    assert "".join(follow(log, log.stat().st_size, goes_on)) == "one\ntwo, a longer text than before\nthree\n"


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def replace(log: Path, text: str) -> None:
    new = log.with_suffix(".new")
    new.write_text(text)
    new.replace(log)


def test_the_newest_log_of_a_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.logs.mkdir(parents=True)
    with pytest.raises(InputError, match="prepare has no log"):
        find_log(run, "prepare", None)
    with pytest.raises(InputError, match="'x' is no stage of this run; expected one of prepare"):
        find_log(run, "x", None)
    (run.logs / "prepare.log").write_text("a\nb\nc\n")
    assert last_lines(find_log(run, "prepare", None), 2) == "b\nc"
