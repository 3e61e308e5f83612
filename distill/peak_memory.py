"""The room that a model needs: memory, measured in a process of its own, and disk."""

import logging
import multiprocessing
import re
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from distill.reading import Row
from distill.speed import Candidate, batch_of, is_out_of_memory, load_candidate

log = logging.getLogger(__name__)


def peak_memory(candidate: Candidate, rows: Sequence[Row], batch: int) -> int | None:
    """Return the bytes of a process that loads the model and summarizes one batch; None if they do not fit.

    On a GPU this is the most that torch held there, on a CPU the growth of the peak resident memory.
    Raises RuntimeError if the process fails for another reason.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send_peak_memory, args=(theirs, candidate, list(rows), batch))
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    try:
        found: int | None = ours.recv()
    except EOFError:
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the process that measures the memory of {candidate.name} failed") from None
        found = None  # the system kills a process if it is out of memory
    except BaseException:  # asked to stop meanwhile
        process.kill()
        raise
    process.join()
    if found is None:
        log.warning("%s does not fit into memory with a batch of %d", candidate.name, batch)
    return found


def _send_peak_memory(to: Connection, candidate: Candidate, rows: list[Row], batch: int) -> None:
    try:
        to.send(_peak_memory_here(candidate, rows, batch))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        to.send(None)


def _peak_memory_here(candidate: Candidate, rows: list[Row], batch: int) -> int:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    before = 0 if on_gpu else peak_resident_bytes()  # of the libraries, before the model
    load_candidate(candidate, rows, device).summarize(batch_of(batch, len(rows)))
    return torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    """Return the most memory that this process ever had resident."""
    # Not getrusage: its maximum is inherited from the parent process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def disk_bytes(weights: str) -> int | None:
    """Return the size of a model folder; None for a hub name."""
    folder = Path(weights)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else None
