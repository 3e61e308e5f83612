"""Checks on this machine, or through one short job on a cluster, whether a recipe's trainings can run there.

The processes (`launch/doctor/probe.py`) write what they see into a folder of their own below --runs, `judge.py` judges it.
"""

import contextlib
import dataclasses
import getpass
import math
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill.errors import InputError
from distill.files import check_writable, read_json, read_jsonl, write_json, write_text
from distill.preemption import GPU_VARIABLE
from distill.recipe import Recipe
from distill.stages import Stage
from launch import local, sbatch
from launch.doctor.doing import Doing, what_the_slowest_does
from launch.doctor.findings import Answer, Check, Expected, Seen
from launch.doctor.judge import judge
from launch.doctor.needs import Needs, needs_of
from launch.doctor.probe import Request, request_file, requeued_file, versions
from launch.profile import Profile, Resources
from launch.queue import QueuedJob, ask, queued_jobs
from launch.state import cancelled_file
from launch.task import attempts_file

NAME = "probe"
CHECKS_SECONDS = 75
"""Of the job beside the lead of its signal."""
POLL_SECONDS = 2.0
LEAVE_SECONDS = 60.0
SETTLE_SECONDS = 20.0
LOG_LINES = 30
FEW_REQUEUES = 3  # a preemption may come first


def examine_this_machine(recipe: Recipe | None, processes: local.Processes, runs: Path, console: Console) -> int:
    """0 where nothing failed, else 1."""
    needs = needs_of(recipe, processes.count) if recipe else Needs()
    expected = Expected(processes.count, len(processes.gpus), versions(), needs, runs=str(runs))
    with _folder(runs) as folder:
        _ask_for(folder, needs.request(None))
        end = _run_here(folder, processes, console)
        return _report(folder, Seen(_answers(folder), end), expected, console)


def examine_cluster(
    recipe: Recipe | None, profile: Profile, file: Path, runs: Path, wait_min: float, console: Console
) -> int:
    """The same for the nodes that the profile gives to a training."""
    block = profile.stages.get("train", profile)
    lead = block.signal_lead_seconds
    resources = block.model_copy(update={"time_limit_min": math.ceil((lead + CHECKS_SECONDS) / 60)})
    processes = resources.nodes * resources.processes
    needs = needs_of(recipe, processes) if recipe else Needs()
    expected = Expected(processes, resources.gpus_per_node, versions(), needs, lead, str(runs), str(file))
    with _folder(runs) as folder:
        _ask_for(folder, needs.request(resources.time_limit_min))
        job = ProbeJob(folder, resources, console)
        try:
            job.submit()
            job.wait(60 * wait_min)
            seen = job.seen(processes)
        finally:
            job.cancel()
        return _report(folder, seen, expected, console)


@contextlib.contextmanager
def _folder(runs: Path) -> Iterator[Path]:
    """The doctor's own, which goes when it is done. InputError where it cannot be made."""
    check_writable(runs)
    folder = runs.resolve() / f".doctor-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        for _ in range(5):  # a process of another node may just have written something
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(1)


def _ask_for(folder: Path, request: Request) -> None:
    write_json(request_file(folder), dataclasses.asdict(request))


def _run_here(folder: Path, processes: local.Processes, console: Console) -> str:
    """Run the probes as a training's processes; what there is to say about their end."""
    group = Stage("doctor", None, (), lambda: False, "process group")
    line = [sys.executable, "-m", "launch.doctor.probe", str(folder)]
    children: list[subprocess.Popen[bytes]] = []
    with (folder / f"{NAME}.log").open("ab") as log, Doing(console) as doing:
        try:
            for environment in local.environments(group, processes):
                there = os.environ | environment
                children.append(subprocess.Popen(line, stdout=log, stderr=log, env=there, **local.OF_THIS_LAUNCHER))
            while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
                doing.say(f"this machine: {what_the_slowest_does(_answers(folder), len(children))}")
                time.sleep(0.2)
        finally:
            codes = [each.code for each in local.end(children)]
    return f"exit codes {', '.join(map(str, codes))}" if any(codes) else ""


class ProbeJob:
    """One SLURM job that runs the probes on the nodes of a training."""

    def __init__(self, folder: Path, resources: Resources, console: Console) -> None:
        self._folder, self._resources, self._console = folder, resources, console
        self._token = folder.name.removeprefix(".doctor-")
        self._name = f"doctor-{self._token}"  # no dots: no name of a run's job
        self._end = ""
        self._last: QueuedJob | None = None

    def submit(self) -> None:
        """InputError where sbatch refuses."""
        command = (sys.executable, "-m", "launch.doctor.probe", str(self._folder))
        task = sbatch.task_on(self._resources, NAME, self._token, command, self._folder)
        # Without GPUs a training refuses to begin; the doctor is here to say so.
        environment = {name: value for name, value in task.environment.items() if name != GPU_VARIABLE}
        task = dataclasses.replace(task, environment=environment, max_requeues=FEW_REQUEUES)
        place = self._folder / "slurm" / self._token
        sbatch.snapshot(place)
        setup = sbatch.setup_lines(self._resources, place)
        try:
            job = sbatch.send([task], sbatch.resource_parameters(self._name, self._resources, setup), place)
        except Exception as error:  # submitit raises several kinds, each with sbatch's own words
            raise InputError(f"SLURM did not take the doctor's job: {str(error).strip()}\nMend the profile.") from error
        asked = f"{self._resources.nodes} node(s), {self._resources.time_limit_min} min at most"
        self._console.print(f"job {job}: {asked}; it waits for the signal of its time limit", highlight=False)

    def wait(self, patience_seconds: float) -> None:
        """Until the job has ended, or has waited too long for nodes."""
        pending_since, answered = time.monotonic(), time.monotonic()
        with Doing(self._console) as doing:
            while True:
                now = time.monotonic()
                with contextlib.suppress(InputError):  # SLURM may be away for a while
                    self._last, answered = self._look(), now
                if self._last is None or not self._last.is_active:
                    break
                if self._last.state == "RUNNING":
                    pending_since = now
                if now - pending_since > patience_seconds or now - answered > patience_seconds:
                    break
                doing.say(self._progress(self._last))
                time.sleep(POLL_SECONDS)
        self._end = self._how_it_ended(patience_seconds)

    def _look(self) -> QueuedJob | None:
        return next((job for job in queued_jobs() if job.name == self._name), None)

    def _progress(self, job: QueuedJob) -> str:
        if job.state != "RUNNING":
            why = f": {job.why_it_waits}" if job.why_it_waits else ""
            return f"job {job.id} is {job.state.lower()}{why}"
        processes = self._resources.nodes * self._resources.processes
        return f"job {job.id} on {job.nodes} {what_the_slowest_does(_answers(self._folder), processes)}"

    def _how_it_ended(self, patience_seconds: float) -> str:
        if self._last is None:
            return "SLURM knows the job no more"
        if self._last.is_active:
            return (
                f"its job was {self._last.state} ({self._last.reason}) for {patience_seconds / 60:.0f} min and is "
                "cancelled: --wait-min, or a partition with free nodes"
            )
        return "" if self._last.state == "COMPLETED" else f"its job ended as {self._last.state}"

    def seen(self, processes: int) -> Seen:
        if not self._end:
            self._settle(processes)
        requeued = requeued_file(self._folder)
        ends = [row for row in read_jsonl(attempts_file(self._folder, NAME)) if row["event"] == "end"]
        is_back = bool(ends) and self._last is not None and self._last.is_active
        return Seen(
            answers=_answers(self._folder),
            end=self._end,
            requeued=read_json(requeued) if requeued.exists() else None,
            is_requeued=is_back,
            refusal=self._refusal(),
        )

    def _settle(self, processes: int) -> None:
        """What the nodes wrote may come late on NFS."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            if sum(bool(answer["is_whole"]) for answer in _answers(self._folder)) == processes:
                return
            time.sleep(POLL_SECONDS)

    def _refusal(self) -> str:
        """SLURM's words, from the log of the job's batch script."""
        text = "\n".join(log.read_text(errors="replace") for log in self._slurm_logs())
        _, found, after = text.partition("SLURM refuses to requeue it (")
        return after.partition(");")[0] if found else ""

    def _slurm_logs(self) -> list[Path]:
        return sorted((self._folder / "slurm" / self._token).glob("*_log.out"))

    def cancel(self) -> None:
        """By its name, so also where it was being submitted; it must not be requeued either."""
        with contextlib.suppress(OSError):
            write_text(cancelled_file(self._folder), "")
        deadline = time.monotonic() + LEAVE_SECONDS
        with contextlib.suppress(InputError):
            while (job := self._look()) and job.is_active and time.monotonic() < deadline:
                ask("scancel", f"--name={self._name}", f"--user={getpass.getuser()}")
                time.sleep(POLL_SECONDS)


def _answers(folder: Path) -> tuple[Answer, ...]:
    files = sorted(folder.glob("rank-*.json"), key=lambda file: int(file.stem.removeprefix("rank-")))
    return tuple(read_json(file) for file in files)


def _report(folder: Path, seen: Seen, expected: Expected, console: Console) -> int:
    checks = judge(seen, expected)
    console.print(_table(checks))
    failed = [check for check in checks if check.result == "FAILED"]
    if any(check.name == "processes" for check in failed):
        _show_logs(folder, console)
    console.print(f"{len(failed)} of {len(checks)} checks failed" if failed else "nothing failed", highlight=False)
    return 1 if failed else 0


def _table(checks: list[Check]) -> Table:
    table = Table("check", "", "seen", box=SIMPLE_HEAD)
    colours = {"ok": "green", "FAILED": "bold red", "not checked": "dim"}
    for check in checks:
        change = f"\n[bold]change:[/] {escape(check.change)}" if check.change else ""
        table.add_row(check.name, f"[{colours[check.result]}]{check.result}[/]", escape(check.seen) + change)
    return table


def _show_logs(folder: Path, console: Console) -> None:
    """Of the processes; where none has begun, of the batch script."""
    own = folder / f"{NAME}.log"
    for log in [own] if own.exists() else sorted((folder / "slurm").glob("*/*_log.out")):
        lines = [line for line in log.read_text(errors="replace").splitlines() if not line.startswith("frame #")]
        console.print(f"--- {log.name}", *lines[-LOG_LINES:], sep="\n", markup=False, highlight=False, soft_wrap=True)
