"""How far a run is, read from its files and SLURM's queue: the table of `python -m launch status`."""

import time
from collections import Counter, deque
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distill.errors import InputError
from distill.files import read_json, read_jsonl
from distill.run import Run
from distill.stages import Stage, shard_name, stages
from launch.queue import QueuedJob, ended_jobs, has_slurm
from launch.slurm import RunQueue, read_queue
from launch.state import EXIT_STOPPED, GraphState, cancelled_file, stage_state
from launch.task import attempts_file

WATCH_SECONDS = 3.0


@dataclass(frozen=True)
class Progress:
    """Of a training stage in steps, of one with shards in shards; empty for the others."""

    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    unit: str = "step"

    def text(self) -> str:
        parts = [self.done() and f"{self.unit} {self.done()}", self.speed(), self.left() and f"{self.left()} left"]
        return "  ".join(part for part in parts if part)

    def done(self) -> str:
        return "" if self.step is None else f"{self.step}/{self.steps or '?'}"

    def speed(self) -> str:
        return "" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f} tokens/s"

    def left(self) -> str:
        return "" if self.seconds_left is None else str(timedelta(seconds=round(self.seconds_left)))


def progress(stage: Stage) -> Progress:
    """Read from metrics.jsonl or the job's own file, or counted in files."""
    if stage.shards_done:
        done, shards = stage.shards_done()
        return Progress(done, shards, unit="shard")
    if stage.progress_file:
        return _written_progress(stage.progress_file)
    if stage.job != "train" or stage.member is None:
        return Progress()
    rows = read_jsonl(stage.member.metrics)
    timed = [row for row in rows if "tokens_per_second" in row]
    if not timed:
        return Progress(rows[-1]["step"], None) if rows else Progress()
    last = timed[-1]
    complete, stopped_early = stage.is_complete(), any("stopped_early" in row for row in rows)
    return Progress(
        step=last["step"],
        steps=last["step"] if stopped_early else last["steps"],
        tokens_per_second=last["tokens_per_second"],
        seconds_left=None if complete else last["seconds_left"],
    )


def _written_progress(file: Path) -> Progress:
    """Read the job's own file, which is there while it works."""
    try:
        written = read_json(file)
    except FileNotFoundError:
        return Progress()
    seconds_left = None if written["ends_at"] is None else written["ends_at"] - time.time()
    if seconds_left is not None and seconds_left < 0:
        seconds_left = None  # it takes longer than planned: nobody knows
    return Progress(written["step"], written["steps"], seconds_left=seconds_left, unit=written["doing"])


def watch(run: Run, console: Console) -> None:
    """Show the table again and again, until nothing is running or waiting to run, or Ctrl-C."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows, note = read(run)
            live.update(table(run, rows, note), refresh=True)
            if not note and not any(row.state in ("running", "waiting", "preempted") for row in rows if row.is_begun):
                return
            time.sleep(WATCH_SECONDS)


@dataclass(frozen=True)
class Row:
    """A stage as the table shows it."""

    stage: Stage
    state: str  # waiting, running, preempted, stopped, failed, cancelled, done
    detail: str
    progress: Progress
    restarts: int
    log: Path | None
    is_begun: bool
    """Submitted or running: it moves by itself."""
    reason: str | None = None
    """Why it failed."""


def read(run: Run) -> tuple[list[Row], str]:
    """(the rows, a note where SLURM could not be asked)"""
    state, queue, note = GraphState(run.logs), None, ""
    if state.is_on_slurm:
        try:
            queue = read_queue(run, state) if has_slurm() else None
            note = "" if queue else "squeue is not on this machine: only the files were looked at"
        except InputError as error:
            note = f"{error} Only the files were looked at."
    rows: dict[str, Row] = {}
    for stage in stages(run):
        rows[stage.name] = _row(run, stage, state, queue, rows)
    return list(rows.values()), note


def table(run: Run, rows: list[Row], note: str = "") -> RenderableType:
    shown = Table(title=f"{run.folder} (logs: {run.logs})", title_justify="left", box=SIMPLE_HEAD)
    for column in ("stage", "state", "done", "tokens/s", "time left", "restarts", "log to open"):
        shown.add_column(column, overflow="fold")
    for row in rows:
        far = row.progress
        shown.add_row(
            row.stage.name,
            f"{row.state} {row.detail}".strip(),
            far.done(),
            far.speed().removesuffix(" tokens/s"),
            far.left() if row.state == "running" else "",
            str(row.restarts or ""),
            row.log.name if row.log else "",
        )
    reasons = [f"{row.stage.name} failed: {row.reason}" for row in rows if row.state == "failed" and row.reason]
    below = [Text(line) for line in [*reasons, note] if line]
    return Group(shown, *below) if below else shown


def _row(run: Run, stage: Stage, state: GraphState, queue: RunQueue | None, earlier: dict[str, "Row"]) -> Row:
    jobs = queue.jobs(stage.name) if queue else []
    attempts = _attempts(run, stage, state)
    begun = bool(jobs)
    if stage.is_complete():
        what, detail = "done", ""
    elif state.jobs(stage.name):
        what, detail = _state_on_slurm(stage, state, jobs, attempts, queue is not None)
        if what == "cancelled":
            detail = f"({_why_cancelled(run, stage, attempts, earlier)})"
    else:
        what, detail = _state_here(run, stage, state)
        begun = what == "running"
    restarts = sum(sum(row["event"] == "start" for row in rows) - 1 for rows in attempts.values() if rows)
    log = _log(run, stage, what, attempts)
    return Row(stage, what, detail, progress(stage), restarts, log, begun, _reason_of_failure(stage, state, attempts))


def _state_here(run: Run, stage: Stage, state: GraphState) -> tuple[str, str]:
    """Return (state, what there is to say about it) of a stage that a launcher on a machine ran."""
    what = stage_state(state.stages, stage.name, False)
    entry = state.stages.get(stage.name, {})
    if what == "stopped" and entry["state"] == "running" and cancelled_file(run.logs).exists():
        return "cancelled", "(by launch cancel)"  # its launcher was killed before it could record that
    canceller = entry.get("cancelled_by") if what == "cancelled" else None
    return what, f"(by {canceller})" if canceller else ""


def _reason_of_failure(stage: Stage, state: GraphState, attempts: dict[str, list[dict[str, Any]]]) -> str | None:
    """Return why a stage failed, as far as a launcher or a job recorded it."""
    if not state.jobs(stage.name):
        reason: str | None = state.stages.get(stage.name, {}).get("reason")
        return reason
    reasons = [rows[-1].get("reason") for rows in attempts.values() if rows]
    return next((reason for reason in reasons if reason), None)


def _state_on_slurm(
    stage: Stage, state: GraphState, jobs: list[QueuedJob], attempts: dict[str, list[dict[str, Any]]], asked: bool
) -> tuple[str, str]:
    """(state, what there is to say about it) of a stage that was submitted and is not complete."""
    active = Counter(job.state for job in jobs if job.is_active)
    if active:
        running = active.total() - active["PENDING"]
        counts = f"({running} of {active.total()})" if stage.kind == "workers" else ""
        if running:
            return "running", counts
        restarted = any(
            rows[-1]["event"] == "end" and rows[-1]["code"] == EXIT_STOPPED for rows in attempts.values() if rows
        )
        return ("preempted" if restarted else "waiting"), _reason(jobs)
    newest = state.jobs(stage.name)[-1]["job"]
    own = [job for job in jobs if job.id.split("_")[0] in _newest_jobs(stage, state)]
    ended = {job.state for job in own}
    if "CANCELLED" in ended or any(rows[-1].get("cancelled") for rows in attempts.values() if rows):
        return "cancelled", ""
    codes = [int(rows[-1]["code"]) for rows in attempts.values() if rows and rows[-1].get("code")]
    if codes:
        return ("stopped" if set(codes) == {EXIT_STOPPED} else "failed"), f"(exit code {max(codes)})"
    if not asked:
        begun = any(rows[-1]["event"] == "start" for rows in attempts.values() if rows)
        return ("running" if begun else "waiting"), "(as far as the files tell)"
    ended |= set(ended_jobs([newest]).values())
    if "CANCELLED" in ended or any(job.is_stuck for job in own):
        return "cancelled", ""
    return "failed", f"({', '.join(sorted(ended)).lower() or 'no longer in the queue'})"


def _why_cancelled(run: Run, stage: Stage, attempts: dict[str, list[dict[str, Any]]], earlier: dict[str, Row]) -> str:
    """Return what ended the jobs of a stage: the user, or a stage that it needs."""
    has_begun = any(attempts.values())
    if not has_begun:
        failed = [f"{name} {earlier[name].state}" for name in stage.needs if earlier[name].state == "failed"]
        if failed:
            return ", ".join(failed)
    if cancelled_file(run.logs).exists():
        return "by launch cancel"
    needed = [f"{name} {earlier[name].state}" for name in stage.needs if earlier[name].state in NOT_COMING]
    return ", ".join(needed) if needed and not has_begun else "by scancel"


NOT_COMING = ("failed", "cancelled", "stopped")
"""States of a stage for which the stages that need it do not wait."""


def _reason(jobs: list[QueuedJob]) -> str:
    reasons = {job.reason for job in jobs if job.is_active} - {"None", "Dependency", ""}
    return f"({', '.join(sorted(reasons))})" if reasons else ""


def _newest_jobs(stage: Stage, state: GraphState) -> set[str]:
    """Return the jobs of a stage's newest submission: several if it has many shards."""
    jobs = state.jobs(stage.name)
    return {entry["job"] for entry in jobs if entry["submission"] == jobs[-1]["submission"]}


def _attempts(run: Run, stage: Stage, state: GraphState) -> dict[str, list[dict[str, Any]]]:
    """What the jobs of the newest submission recorded, by stage or shard."""
    if not state.jobs(stage.name):
        return {}
    newest = state.jobs(stage.name)[-1]["submission"]
    folder = attempts_file(run.logs, stage.name).parent
    files = [*folder.glob(f"{stage.name}.jsonl"), *folder.glob(f"{stage.name}.shard-*.jsonl")]
    return {file.stem: [row for row in read_jsonl(file) if row["submission"] == newest] for file in sorted(files)}


def _log(run: Run, stage: Stage, state: str, attempts: dict[str, list[dict[str, Any]]]) -> Path | None:
    """The log that says most: of a shard that failed, else the newest."""
    if state in ("waiting", "done", "cancelled"):
        return None
    failed = [name for name, rows in attempts.items() if rows and rows[-1].get("code") not in (None, 0, EXIT_STOPPED)]
    if failed:
        return run.logs / f"{failed[0]}.log"
    logs = logs_of(run, stage.name)
    return max(logs, key=lambda file: file.stat().st_mtime) if logs else None


def logs_of(run: Run, stage: str) -> list[Path]:
    """The logs of a stage: one, or one for every shard."""
    return sorted([*run.logs.glob(f"{stage}.log"), *run.logs.glob(f"{stage}.shard-?????.log")])


def end_of_log(run: Run, stage: str, shard: int | None, lines: int) -> tuple[str, str]:
    """(the file, its last lines). InputError where there is no such stage, or no log of it yet."""
    names = [known.name for known in stages(run)]
    if stage not in names:
        raise InputError(f"{stage!r} is no stage of this run; expected one of {', '.join(names)}.")
    found = logs_of(run, stage)
    if shard is not None:
        found = [file for file in found if file.stem == shard_name(stage, shard)]
    if not found:
        raise InputError(f"{stage if shard is None else shard_name(stage, shard)} has no log in {run.logs} yet.")
    newest = max(found, key=lambda file: file.stat().st_mtime)
    with newest.open(encoding="utf-8", errors="replace") as file:
        return str(newest), "".join(deque(file, lines)).rstrip("\n")
