"""How far the stages of a run are, read from its files and SLURM's queue."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from distill.compiling import compilation
from distill.errors import InputError
from distill.files import read_json, read_jsonl
from distill.run import Run
from distill.stages import Stage, stages
from launch.logs import logs_of
from launch.queue import DEPENDENCY, QueuedJob, ended_jobs, has_slurm, queued_jobs
from launch.results import result
from launch.slurm import RunQueue
from launch.state import EXIT_STOPPED, GraphState, cancelled_file, stage_state
from launch.steps import planned_steps
from launch.task import attempts_file


@dataclass(frozen=True)
class Progress:
    """Of a training stage in steps, of one with shards in shards; empty for the others."""

    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    unit: str = "step"
    loss: float | None = None

    def text(self) -> str:
        loss = "" if self.loss is None else f"loss {self.loss:.3f}"
        parts = [
            self.done() and f"{self.unit} {self.done()}",
            self.speed(),
            loss,
            self.left() and f"{self.left()} left",
        ]
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
        loss=last.get("loss"),
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


def progress_of(run: Run, stage: Stage) -> Progress:
    """Return how far a stage is; of a training that has not said yet how many steps it takes, what the recipe says."""
    how_far = progress(stage)
    if stage.job != "train" or stage.member is None or how_far.steps:
        return how_far
    return replace(how_far, step=how_far.step or 0, steps=planned_steps(run, stage.member))


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
    seconds: float | None = None
    """How long the last attempt has run, or ran."""
    jobs: str = ""
    """SLURM's numbers."""
    nodes: str = ""
    remark: str = ""
    """The result of a finished stage, or why one does not go on."""


def read(run: Run, ask: Callable[[], list[QueuedJob]] = queued_jobs) -> tuple[list[Row], str]:
    """Return the rows, and a note if SLURM could not be asked. A run that is complete needs no SLURM."""
    state, queue, note = GraphState(run.logs), None, ""
    if state.is_on_slurm and not all(stage.is_complete() for stage in stages(run)):
        try:
            queue = RunQueue(run, state, ask()) if has_slurm() else None
            note = "" if queue else "squeue is not on this machine: only the files were looked at"
        except InputError as error:
            note = f"{error} Only the files were looked at."
    graph = stages(run)
    rows: dict[str, Row] = {}
    for stage in graph:
        rows[stage.name] = _row(run, stage, state, queue, rows)
    return list(rows.values()), note


def _row(
    run: Run,
    stage: Stage,
    state: GraphState,
    queue: RunQueue | None,
    earlier: dict[str, Row],
) -> Row:
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
    active = [job for job in jobs if job.is_active]
    return Row(
        stage=stage,
        state=what,
        detail=detail,
        progress=progress_of(run, stage),
        restarts=restarts,
        log=_log(run, stage, what, attempts),
        is_begun=begun,
        seconds=_seconds(state, stage, what, attempts),
        jobs=_job_ids(state, stage),
        nodes=",".join(sorted({job.nodes for job in active if job.nodes})),
        reason=_reason_of_failure(stage, state, attempts),
        remark=_remark(run, stage, what, active, earlier),
    )


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


def _job_ids(state: GraphState, stage: Stage) -> str:
    """Return the numbers of the newest submission; an array has one."""
    jobs = state.jobs(stage.name)
    return ",".join(job["job"] for job in jobs if job["submission"] == jobs[-1]["submission"])


def _remark(run: Run, stage: Stage, what: str, active: list[QueuedJob], earlier: dict[str, Row]) -> str:
    """Return the result of a finished stage, why a job waits, or that a training still compiles."""
    if what == "done":
        return result(run, stage)
    if what == "running":
        begins = stage.job == "train" and stage.member is not None and not stage.member.metrics.exists()
        compiled = compilation() if begins else None  # as far as this machine sees the folder
        return compiled.text() if compiled else ""
    return _why_it_waits(active, [need for need in stage.needs if need in earlier and earlier[need].state != "done"])


def _why_it_waits(active: list[QueuedJob], needs: list[str]) -> str:
    """Return the reasons in words; none while any of the stage's jobs runs."""
    if any(job.state != "PENDING" for job in active):
        return ""
    reasons = {job.why_it_waits for job in active} - {""}
    if any(job.reason == DEPENDENCY for job in active) and needs:
        return f"after {', '.join(needs)} ({DEPENDENCY})"
    return "; ".join(sorted(reasons))


def _seconds(state: GraphState, stage: Stage, what: str, attempts: dict[str, list[dict[str, Any]]]) -> float | None:
    """Return the time of the last attempt; of a stage in several jobs, from the first start to the last end."""
    if what in ("waiting", "preempted"):
        return None
    if attempts:
        starts = [[row["time"] for row in rows if row["event"] == "start"] for rows in attempts.values()]
        ends = [rows[-1]["time"] for rows in attempts.values() if rows]
        begun = min((times[-1] for times in starts if times), default=None)
        return None if begun is None else (time.time() if what == "running" else max(ends)) - begun
    entry = state.stages.get(stage.name, {})
    if "started" not in entry:
        return None
    end = time.time() if what == "running" else entry.get("ended")
    return None if end is None else float(end - entry["started"])


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
        return ("preempted" if restarted else "waiting"), ""
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


def is_moving(run: Run, stage: str) -> bool:
    """Return True while a stage runs, or waits to run again by itself."""
    rows, _ = read(run)
    return any(
        row.is_begun and row.state in ("running", "waiting", "preempted") for row in rows if row.stage.name == stage
    )
