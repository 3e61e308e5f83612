"""What the doctor does at this moment: on a terminal one line that changes, in a file a line for each step."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.status import Status

from launch.doctor.findings import Answer
from launch.words import duration

WORDS = {
    "versions": "starts, and reads the versions of packages",
    "models": "looks for the models",
    "files": "looks for the corpus",
    "memory_gb": "looks at the memory",
    "free_gb": "looks at the disk",
    "device": "looks for GPUs",
    "all_reduce": "connects the processes and measures all-reduce",
    "disk": "checks that all processes see the same files",
    "signal": "waits for the signal of its time limit",
}
"""By the check that a process is at."""


class Doing:
    """Used with `with`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("", console=console) if console.is_terminal else None
        self._said = ""
        self._began = time.monotonic()

    def __enter__(self) -> "Doing":
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def say(self, text: str) -> None:
        """Show what is being done. May be called again and again with the same text."""
        if self._status:
            self._status.update(f"{text}  ({duration(time.monotonic() - self._began)})")
        elif text != self._said:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._said = text


def what_the_slowest_does(answers: Sequence[Answer], processes: int) -> str:
    """Return in words the check of the process that is furthest behind."""
    if len(answers) < processes:
        return f"starts {processes} process(es)"
    order = list(WORDS)
    slowest = min((str(answer["at"]) for answer in answers), key=order.index)
    return WORDS[slowest]
