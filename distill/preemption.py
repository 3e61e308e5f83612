"""Signals, and the end of the time limit, as one flag that the job's loops look at. No torch."""

import logging
import os
import signal
import time
from collections.abc import Mapping
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
SECONDS_TO_LEAVE = 30.0
"""What a job needs to leave beside its save, as long as none has been measured."""


class StoppedError(BaseException):
    """The job was asked to stop; what it finished is saved. Its process leaves with exit code 75.

    No Exception: a library that swallows those must not swallow this.
    """


class StopFlag:
    """Set by USR1, USR2 or TERM, or where the time is up; looked at between batches, never in the middle of a save."""

    def __init__(self, ends_at: float | None = None, grace_seconds: float | None = None, at_once: bool = False) -> None:
        """`ends_at`: when the job is killed (seconds since 1970). `grace_seconds`: from a signal to the kill.

        `at_once`: a signal raises StoppedError wherever the program is, for jobs that never look at the flag.
        """
        self.reason: str | None = None
        self.seconds_to_leave = SECONDS_TO_LEAVE
        self.signalled_at: float | None = None
        self._ends_at, self._grace_seconds, self._at_once = ends_at, grace_seconds, at_once

    def listen(self, *also: signal.Signals) -> None:
        """From here on the signals set the flag, and do nothing else. Further ones change nothing.

        A launcher may have blocked them for the time before; those that came meanwhile count now.
        """
        for number in (*SIGNALS, *also):
            signal.signal(number, self._set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    @property
    def knows_its_end(self) -> bool:
        return self._ends_at is not None or self._grace_seconds is not None

    def is_set(self) -> bool:
        if self.reason is None and self._ends_at and time.time() + self.seconds_to_leave >= self._ends_at:
            self.ask("the time limit is near")
        return self.reason is not None

    def ask(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason

    def raise_if_set(self) -> None:
        """For work without collectives, where every process stops for itself."""
        if self.is_set():
            raise StoppedError(self.reason)

    def leaves_time_for(self, seconds: float) -> bool:
        """Whether something that takes so long can be finished before the kill, as far as its time is known."""
        now = time.time()
        signalled = self._grace_seconds is not None and self.signalled_at is not None
        ends = [self.signalled_at + self._grace_seconds] if signalled else []  # type: ignore[operator]
        ends += [self._ends_at] if self._ends_at else []
        return all(now + seconds <= end for end in ends)

    def _set(self, number: int, _frame: FrameType | None) -> None:
        first = self.reason is None
        self.signalled_at = self.signalled_at or time.time()
        self.ask(signal.Signals(number).name)
        if self._at_once and first:
            raise StoppedError(self.reason)


END_VARIABLE, GRACE_VARIABLE = "DISTILL_JOB_END_TIME", "DISTILL_GRACE_SECONDS"
"""How a launcher tells its jobs."""
GPU_VARIABLE = "DISTILL_GPUS_PER_NODE"
"""Set where a launcher asked for GPUs: without one a job stops, instead of running for days on the CPU."""


def end_of_job(time_limit_min: float | None, environment: Mapping[str, str] = os.environ) -> float | None:
    """When the job is killed: at its time limit, or at the end that its launcher or SLURM tells; None where none is known."""
    ends = [time.time() + 60 * time_limit_min] if time_limit_min is not None else []
    for variable in (END_VARIABLE, "SLURM_JOB_END_TIME"):
        if environment.get(variable, "").isdecimal():
            ends.append(float(environment[variable]))
    return min(ends, default=None)
