"""The logs of a run's stages: which there are, their last lines, and what is still being written."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from distill.errors import InputError
from distill.run import Run
from distill.stages import shard_name, stages

POLL_SECONDS = 0.5


def logs_of(run: Run, stage: str) -> list[Path]:
    """Return the logs of a stage: one, or one for every shard."""
    return sorted([*run.logs.glob(f"{stage}.log"), *run.logs.glob(f"{stage}.shard-?????.log")])


def find_log(run: Run, stage: str, shard: int | None) -> Path:
    """Return the log of a stage or a shard; by default the newest. Raise InputError if there is none."""
    names = [known.name for known in stages(run)]
    if stage not in names:
        raise InputError(f"{stage!r} is no stage of this run; expected one of {', '.join(names)}.")
    found = logs_of(run, stage)
    if shard is not None:
        found = [file for file in found if file.stem == shard_name(stage, shard)]
    if not found:
        raise InputError(f"{stage if shard is None else shard_name(stage, shard)} has no log in {run.logs} yet.")
    return max(found, key=lambda file: file.stat().st_mtime)


def last_lines(log: Path, lines: int) -> str:
    """Return the last lines of a log, without the line end of the very last."""
    with log.open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, lines)).rstrip("\n")


def follow(log: Path, position: int, goes_on: Callable[[], bool]) -> Iterator[str]:
    """Yield what is written to a log after `position` bytes, until `goes_on` is false and everything was read.

    A file that was replaced, or is shorter than before, is read from its start.
    """
    file_id = log.stat().st_ino
    while True:
        was_going_on = goes_on()  # asked before the last read: nothing is written after the end
        status = log.stat() if log.exists() else None
        if status and (status.st_ino != file_id or status.st_size < position):
            file_id = status.st_ino
            position = 0
        if status and status.st_size > position:
            with log.open("rb") as file:
                file.seek(position)
                new = file.read()
            position += len(new)
            yield new.decode("utf-8", errors="replace")
        elif not was_going_on:
            return
        time.sleep(POLL_SECONDS)
