"""How a process of a job tells its launcher why it failed. No torch.

The processes of a group fail together: one for a reason of its own, the others because it is gone. Each leaves its own
words in a folder of the launcher's, which then shows the first.
"""

import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.files import read_json, write_json

log = logging.getLogger(__name__)

FAILURES_VARIABLE = "DISTILL_FAILURES"
"""The folder in which the launcher of a job looks for its failures."""
MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Failure:
    """Why one process failed."""

    rank: int
    exit_code: int
    text: str
    time: float


def report_failure(rank: int, exit_code: int, text: str) -> None:
    """Write a failure for the launcher, if one asked for it."""
    folder = os.environ.get(FAILURES_VARIABLE)
    if folder is None:
        return
    failure = Failure(rank, exit_code, text, time.time())
    try:
        write_json(Path(folder) / f"rank{rank}.json", asdict(failure))
    except OSError as error:  # a full disk, for example: the log has the same text
        log.warning("the launcher could not be told: %s", error)


def read_failures(folder: Path) -> list[Failure]:
    """Return the failures of all processes, the first one first."""
    failures = [Failure(**read_json(file)) for file in folder.glob("rank*.json")]
    return sorted(failures, key=lambda failure: failure.time)


def one_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."
