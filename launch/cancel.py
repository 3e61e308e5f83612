"""Ends all jobs of a run, and only those: on SLURM, and of a launcher on this machine."""

import os
import signal
import socket
import time
from collections.abc import Callable

from rich.console import Console

from distill.errors import InputError
from distill.files import write_text
from distill.run import Run
from launch.lock import holder_of
from launch.queue import has_slurm, queued_jobs, scancel
from launch.slurm import read_queue, was_submitted
from launch.state import GraphState, cancelled_file

PATIENCE_SECONDS = 600.0  # a save may take long


def cancel(run: Run, console: Console) -> int:
    """Return 0 when nothing of the run is active any more. Raise InputError if something goes on.

    SLURM is asked only about a run that it has, or had, jobs of: its commands may be here and not answer.
    """
    ended = []
    for cancel_there in (_cancel_launcher, _cancel_queued):
        for name in cancel_there(run):
            console.print(f"cancelled {name}", highlight=False, soft_wrap=True)
            ended.append(name)
    if not ended:
        console.print(f"nothing of {run.folder} is running or queued", highlight=False, soft_wrap=True)
    return 0


def _cancel_queued(run: Run) -> list[str]:
    def active() -> list[str]:
        return read_queue(run, GraphState(run.logs)).active_ids()

    if not was_submitted(run):
        return []
    ended = active()  # an InputError here leaves everything as it was
    # Again and again: a job that was just being requeued comes back.
    _ask_until_gone(run, active, scancel)
    return [f"SLURM job(s) {', '.join(ended)}"] if ended else []


def _cancel_launcher(run: Run) -> list[str]:
    holder = holder_of(run.logs)
    if holder is None:
        return []
    name = f"process {holder['process']} on {holder['host']}"
    if holder.get("job") and has_slurm():  # slurm/run.sbatch
        job = holder["job"]
        _ask_until_gone(run, lambda: [each.id for each in queued_jobs() if each.id == job and each.is_active], scancel)
        return [f"SLURM job {job}"]
    if holder["host"] != socket.gethostname():
        raise InputError(f"{run.folder} is being run by {name}. Cancel it on that machine.")

    def ask(_: list[str]) -> None:
        if holder_of(run.logs) == holder:  # further signals change nothing
            os.kill(holder["process"], signal.SIGTERM)

    _ask_until_gone(run, lambda: [name] if holder_of(run.logs) == holder else [], ask)
    return [name]


def _ask_until_gone(run: Run, active: Callable[[], list[str]], ask: Callable[[list[str]], None]) -> None:
    """Ask what is active to end, until it has. What ends meanwhile knows from a file that it was cancelled."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = 0.5
    try:
        while names := active():
            if time.monotonic() > deadline:
                raise InputError(f"{', '.join(names)} did not end within {PATIENCE_SECONDS:.0f} s. Look at the logs.")
            write_text(cancelled_file(run.logs), "")  # an attempt that begins meanwhile removes it
            ask(names)
            time.sleep(pause)
            pause = min(2 * pause, 10.0)
    except InputError:
        cancelled_file(run.logs).unlink(missing_ok=True)
        raise
