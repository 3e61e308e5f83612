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
from launch.slurm import read_queue
from launch.state import GraphState
from launch.task import cancelled_file

PATIENCE_SECONDS = 600.0  # a save may take long


def cancel(run: Run, console: Console) -> int:
    """0 when nothing of the run is active any more; InputError where something goes on, which is named."""
    ended = (_cancel_queued(run) if has_slurm() else []) + _cancel_launcher(run)
    what = f"cancelled {', '.join(ended)}" if ended else f"nothing of {run.folder} is running or queued"
    console.print(what, highlight=False, soft_wrap=True)
    return 0


def _cancel_queued(run: Run) -> list[str]:
    def active() -> list[str]:
        return read_queue(run, GraphState(run.logs)).active_ids()

    ended = active()  # an InputError here leaves everything as it was
    write_text(cancelled_file(run.logs), "")
    try:
        _ask_until_gone(active, scancel)  # again and again: one that was just being requeued comes back
    except InputError:
        cancelled_file(run.logs).unlink()
        raise
    return [f"SLURM job(s) {', '.join(ended)}"] if ended else []


def _cancel_launcher(run: Run) -> list[str]:
    holder = holder_of(run.logs)
    if holder is None:
        return []
    name = f"process {holder['process']} on {holder['host']}"
    if holder.get("job") and has_slurm():  # slurm/run.sbatch
        _ask_until_gone(lambda: [job.id for job in queued_jobs() if job.id == holder["job"] and job.is_active], scancel)
        return [f"SLURM job {holder['job']}"]
    if holder["host"] != socket.gethostname():
        raise InputError(f"{run.folder} is being run by {name}. Cancel it on that machine.")
    os.kill(holder["process"], signal.SIGTERM)
    _ask_until_gone(lambda: [name] if holder_of(run.logs) == holder else [], lambda _: None)
    return [name]


def _ask_until_gone(active: Callable[[], list[str]], ask: Callable[[list[str]], None]) -> None:
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.5
    while names := active():
        if time.monotonic() > deadline:
            raise InputError(f"{', '.join(names)} did not end within {PATIENCE_SECONDS:.0f} s. Look at the logs.")
        ask(names)
        time.sleep(pause)
        pause = min(2 * pause, 10.0)
