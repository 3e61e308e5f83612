"""What the doctor expects, what its processes saw, and a line of its table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from launch.doctor.needs import Needs

Result = Literal["ok", "FAILED", "not checked"]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table."""

    name: str
    result: Result
    seen: str
    change: str = ""
    """What to do about a failure."""


@dataclass(frozen=True)
class Expected:
    """What the place should be like."""

    processes: int
    gpus_per_node: int
    versions: dict[str, str]
    """On this machine."""
    needs: Needs
    signal_lead_seconds: int | None = None
    """None where the time limit of a job is no part of it: on this machine."""
    runs: str = "runs"
    given_by: str = "this machine"
    """What asked for the processes and GPUs: the file of a profile."""


@dataclass(frozen=True)
class Seen:
    """What the doctor's job left."""

    answers: tuple[Answer, ...] = ()
    end: str = ""
    """How it ended, where that is worth saying."""
    requeued: dict[str, Any] | None = None
    """What the second attempt wrote."""
    is_requeued: bool = False
    """Back in the queue, where it had no second attempt yet."""
    refusal: str = ""
    """SLURM's words on the requeue."""


def who(answer: Answer) -> str:
    return f"rank {answer['rank']} ({answer['host']})"


def names(of: Iterable[object]) -> str:
    shown = sorted(map(str, of))
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
