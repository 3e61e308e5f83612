"""Why a stage failed, in one sentence; what is done about a run that the user cancels."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.begun import OLD_WARMUP_STEPS, with_begun_defaults
from distill.errors import InputError
from distill.failure import FAILURES_VARIABLE, Failure, one_line, read_failures, report_failure
from distill.files import append_jsonl, write_text
from distill.recipe_file import dump_recipe, load_recipe, parse_recipe
from distill.run import Run
from distill.stages import stages
from launch.failures import Exit, Place, exit_code, explain, explain_srun
from launch.queue import QueuedJob
from launch.slurm import RunQueue, job_name
from launch.state import GraphState, cancelled_file
from launch.status import Row, _row
from launch.task import attempts_file
from tests.conftest import ROOT
from tests.forked import run_forked

TRAINING = Place("train-student-s", 2)
OLD_LOG = "ValueError: what the first attempt said\n"
RECIPE: dict[str, Any] = {
    "name": "r",
    "corpus": {"train": "docstrings"},
    "teachers": {"t": {"model": "some/model", "train": {}}},
    "students": {"s": {"teacher": "t", "decoder_layers": 2, "train": {"seed": 3}}},
    "train": {"steps": 100},
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log to which an earlier attempt wrote `OLD_LOG`."""
    file = tmp_path / "train-student-s.log"
    file.write_text(OLD_LOG)
    return file


def why(log: Path, exits: list[Exit], *failures: Failure, place: Place = TRAINING, new: str = "") -> str:
    with log.open("a") as file:
        file.write(new)
    return explain(place, exits, list(failures), log, len(OLD_LOG))


PEER = Failure(0, 100, "RuntimeError: Connection closed by peer", 2.0)


def test_a_killed_process_is_the_reason_not_what_the_others_say(log: Path) -> None:
    exits = [Exit(0, 100), Exit(1, -signal.SIGKILL)]
    assert why(log, exits, PEER) == (
        "one of 2 processes was killed (SIGKILL, often out of memory): lower train.micro_batch_tokens or --processes"
    )
    assert exit_code(exits) == 137


@pytest.mark.parametrize(
    ("stage", "processes", "on_slurm", "advice"),
    [
        ("label-bart", 2, False, "lower labels.bart.batch_tokens or --processes"),
        ("label-bart.shard-00003", 1, True, "lower labels.bart.batch_tokens, or raise memory_gb_per_process"),
        ("evaluate-student-s", 1, False, "lower evaluate.batch_tokens"),
        ("prepare", 1, False, "close what else needs memory, or use a larger machine"),
        ("prepare", 1, True, "raise memory_gb_per_process"),
    ],
)
def test_the_advice_fits_the_stage(stage: str, processes: int, on_slurm: bool, advice: str, log: Path) -> None:
    place = Place(stage, processes, on_slurm)
    exits = [Exit(rank, -signal.SIGKILL if rank == 0 else 0) for rank in range(processes)]
    assert why(log, exits, place=place).endswith(f"(SIGKILL, often out of memory): {advice}")
    memory = Failure(0, 100, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 1.0)
    assert why(log, [Exit(0, 100)], memory, place=place).endswith(f"({advice})")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE])
def test_a_crash_is_named(number: signal.Signals, log: Path) -> None:
    text = why(log, [Exit(0, -number), Exit(1, 100)], PEER)
    assert text.startswith(f"one of 2 processes was ended by a crash ({number.name}), ")


def test_the_first_failure_counts_and_wrong_input_before_all(log: Path) -> None:
    exits = [Exit(0, 100), Exit(1, 100)]
    first = Failure(1, 100, "ValueError: bad", 1.0)
    assert why(log, exits, first, PEER) == "rank 1: ValueError: bad"
    wrong = Failure(1, 2, "line 8: no field 'document'.", 3.0)
    assert why(log, [Exit(0, -9), Exit(1, 2)], PEER, wrong) == "line 8: no field 'document'."
    assert exit_code([Exit(0, 100), Exit(1, 2)]) == 2


def test_without_words_the_last_line_of_this_attempt_counts(log: Path) -> None:
    new = "Traceback:\n  File x\nModuleNotFoundError: No module named 'y'\nLoading: 100%|###| 3/3\n"
    assert why(log, [Exit(0, 1)], new=new) == "ModuleNotFoundError: No module named 'y'"
    log.write_text(OLD_LOG)
    assert why(log, [Exit(0, 1)]) == "it left without a word", "what an earlier attempt said is no reason"


def test_what_the_launcher_killed_itself_is_no_failure() -> None:
    """A process that did not leave when it was asked to; after a failure the failure counts."""
    stuck = Exit(1, -signal.SIGKILL, was_killed_here=True)
    assert exit_code([Exit(0, 75), stuck]) == 75
    assert exit_code([Exit(0, 100), stuck]) == 100


SRUN = "srun: error: n1: task {}: {}\n"


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        ([(0, "Killed"), (1, "Exited with exit code 100")], 137, "one of 2 processes was killed (SIGKILL"),
        ([(1, "Exited with exit code 100"), (0, "Killed")], 137, "rank 0: RuntimeError: Connection closed by peer"),
        ([(0, "Out Of Memory"), (1, "Killed")], 137, "one of 2 processes was killed (SIGKILL"),
        ([(1, "Segmentation fault (core dumped)")], 139, "one of 2 processes was ended by a crash (SIGSEGV)"),
    ],
)
def test_srun_tells_which_task_ended_first(lines: list[tuple[int, str]], code: int, expected: str, log: Path) -> None:
    begin = log.stat().st_size
    with log.open("a") as file:
        file.writelines(SRUN.format(*line) for line in lines)
    assert explain_srun(TRAINING, code, [PEER], log, begin).startswith(expected)


CANCELLED = "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-28T10:04:19 ***\n"


def test_what_slurm_ended_itself_was_not_killed_for_its_memory(log: Path) -> None:
    begin = log.stat().st_size
    killed = SRUN.format("0-1", "Killed")
    log.write_text(OLD_LOG + "srun: Job step aborted: Waiting up to 7 seconds\n" + CANCELLED + killed)
    assert explain_srun(TRAINING, 137, [], log, begin).startswith("SLURM ended it")
    log.write_text(OLD_LOG + SRUN.format(1, "Killed") + CANCELLED + SRUN.format(0, "Killed"))
    assert "(SIGKILL" in explain_srun(TRAINING, 137, [], log, begin), "the first was killed by somebody else"


def test_processes_tell_their_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_failure(0, 2, "nobody asked")
    monkeypatch.setenv(FAILURES_VARIABLE, str(tmp_path))
    report_failure(1, 100, one_line(ValueError("bad\nand more")))
    time.sleep(0.01)
    report_failure(0, 100, one_line(KeyError()))
    assert [(each.rank, each.text) for each in read_failures(tmp_path)] == [(1, "ValueError: bad"), (0, "KeyError")]
    monkeypatch.setenv(FAILURES_VARIABLE, str(tmp_path / "gone" / "x"))
    (tmp_path / "gone").touch()
    report_failure(0, 100, "a folder that cannot be written does not hide the failure")


def test_without_its_environment_the_launcher_says_what_to_do() -> None:
    no_packages = [sys.executable, "-S", "-m", "launch", "schema"]
    result = subprocess.run(no_packages, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "typer is not installed in this Python" in result.stderr
    assert "source .venv/bin/activate" in result.stderr and "Traceback" not in result.stderr


# ------------------------------------------------------------------------------------------------ cancelled


@pytest.fixture
def silent_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SLURM client that does not answer, as one without slurm.conf."""
    (tmp_path / "bin").mkdir()
    for name in ("squeue", "scancel", "scontrol", "sacct"):
        command = tmp_path / "bin" / name
        command.write_text("#!/bin/sh\necho 'squeue: error: Unknown host' >&2\nexit 1\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def begun_run(folder: Path) -> Run:
    recipe = parse_recipe(RECIPE)
    run = Run(recipe, folder / "runs" / "r")
    run.logs.mkdir(parents=True)
    run.recipe_file.write_text(dump_recipe(recipe))
    return run


HOLDER = """
import signal, sys, time
from pathlib import Path
from launch.lock import RunLock
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_local_run_is_cancelled_where_slurm_does_not_answer(tmp_path: Path, silent_slurm: None) -> None:
    run = begun_run(tmp_path)
    nothing = run_forked("launch", "cancel", str(run.folder))
    assert nothing.returncode == 0 and "nothing of" in nothing.stdout, nothing.stderr
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.logs)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        result = run_forked("launch", "cancel", str(run.folder))
        assert result.returncode == 0 and f"cancelled process {holder.pid} on" in result.stdout, result.stderr
        assert holder.wait(30) == 75 and cancelled_file(run.logs).exists()
    finally:
        holder.kill()
        holder.communicate()
    status = run_forked("launch", "status", str(run.folder))
    assert status.returncode == 0 and "does not answer" not in status.stdout


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_submitted_run_is_not_cancelled_unasked(is_recorded: bool, tmp_path: Path, silent_slurm: None) -> None:
    """Also if the submission was killed before it could be recorded."""
    run = begun_run(tmp_path)
    (run.logs / "slurm" / "abc" / "code").mkdir(parents=True)
    if is_recorded:
        GraphState(run.logs).submitted("prepare", "17", None, "abc")
    result = run_forked("launch", "cancel", str(run.folder))
    assert result.returncode == 2 and "SLURM does not answer" in result.stderr
    assert not cancelled_file(run.logs).exists()


Submission = tuple[str, str, list[dict[str, Any]]]
"""A job's number, its state in the queue, and what it recorded."""


def on_slurm(run: Run, **submissions: Submission) -> dict[str, str]:
    """Return what `status` says of stages that were submitted one after the other, by the name of the stage."""
    state = GraphState(run.logs)
    queued = []
    for stage, (job, word, recorded) in submissions.items():
        name = stage.replace("_", "-").removesuffix("-again")
        state.submitted(name, job, None, f"submission of {job}")
        queued.append(QueuedJob(job, job_name(run, name), word))
        for row in recorded:
            file = attempts_file(run.logs, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(file, {"submission": f"submission of {job}"} | row)
    queue = RunQueue(run, state, queued)
    rows: dict[str, Row] = {}
    for each in stages(run):
        rows[each.name] = _row(run, each, state, queue, rows)
    return {name: f"{row.state} {row.detail} {row.reason or ''}".strip() for name, row in rows.items()}


def ended(code: int, **more: Any) -> list[dict[str, Any]]:
    return [{"event": "start", "time": 0.0}, {"event": "end", "time": 1.0, "code": code, **more}]


def test_what_was_cancelled_on_slurm_says_by_what(tmp_path: Path) -> None:
    run = begun_run(tmp_path)
    write_text(cancelled_file(run.logs), "")
    states = on_slurm(
        run,
        prepare=("1", "FAILED", ended(100, reason="ValueError: bad", cancelled=False)),
        teacher_t=("2", "CANCELLED", []),
        train_teacher_t=("3", "CANCELLED", ended(137, reason="it was killed", cancelled=True)),
        shrink_student_s=("4", "COMPLETED", ended(75, cancelled=True)),
        train_student_s=("5", "CANCELLED", []),
    )
    assert states["prepare"] == "failed (exit code 100) ValueError: bad", "it had failed before"
    assert states["teacher-t"] == "cancelled (prepare failed)"
    assert states["train-teacher-t"].startswith("cancelled (by launch cancel)")
    assert states["shrink-student-s"] == states["train-student-s"] == "cancelled (by launch cancel)"


def test_what_scancel_ended_is_cancelled_until_it_is_submitted_again(tmp_path: Path) -> None:
    run = begun_run(tmp_path)
    states = on_slurm(
        run,
        prepare=("1", "CANCELLED", ended(75)),
        teacher_t=("2", "CANCELLED", []),
        train_teacher_t=("3", "CANCELLED", ended(75)),
        train_teacher_t_again=("4", "FAILED", ended(100, reason="ValueError: bad")),
    )
    assert states["prepare"] == "cancelled (by scancel)"
    assert states["teacher-t"] == "cancelled (prepare cancelled)"
    assert states["train-teacher-t"] == "failed (exit code 100) ValueError: bad"


# ------------------------------------------------------------------------------------------------ old defaults


def test_a_run_goes_on_with_the_warm_up_it_was_begun_with(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    new = load_recipe(file)
    assert new.train.warmup_steps is None and with_begun_defaults(new, runs) == new
    run = begun_run(tmp_path)
    run.recipe_file.write_text(dump_recipe(load_recipe(file, [f"train.warmup_steps={OLD_WARMUP_STEPS}"])))
    assert with_begun_defaults(new, runs) == new, "nothing is made yet"
    run.corpus_record.write_text("{}")
    kept = with_begun_defaults(load_recipe(file, ["students.new={teacher: t, decoder_layers: 1}"]), runs)
    trains = [kept.train, kept.teachers["t"].train, kept.students["s"].train, kept.students["new"].train]
    assert [train.warmup_steps for train in trains if train] == [500] * 4
    assert kept.students["s"].train.seed == 3
    given = with_begun_defaults(load_recipe(file, ["students.s.train.warmup_steps=7"]), runs)
    assert given.students["s"].train.warmup_steps == 7
    dry = run_forked("launch", "run", str(file), "--dry-run", "--runs", str(runs), "train.steps=100")
    assert dry.returncode == 0 and "after 100 warm-up steps" in dry.stdout, dry.stderr


def test_a_list_of_reasons_is_never_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_examples.train: 0 given; input should be greater than 0"):
        parse_recipe(RECIPE | {"corpus": {"train": "docstrings", "max_examples": {"train": 0}}})
