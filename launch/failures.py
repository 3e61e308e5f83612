"""Why a stage failed, in one sentence: what its processes left behind, from the first that failed."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from distill.failure import MOST_CHARACTERS, Failure
from distill.preemption import SIGNALS
from launch.state import EXIT_STOPPED

EXIT_INPUT = 2
SMALLER_BATCHES = {
    "train": "train.micro_batch_tokens",
    "cache": "train.micro_batch_tokens",
    "label": "labels.{name}.batch_tokens",
    "search": "evaluate.batch_tokens",
    "evaluate": "evaluate.batch_tokens",
    "benchmark": "benchmark.batch_sizes",
}
"""The key that decides how much memory a job needs, by job."""
CRASHES = {
    signal.SIGABRT: "a library gave up: its own words are at the end of the log",
    signal.SIGBUS: "often a full disk or /dev/shm: make room there",
    signal.SIGILL: "a library was built for another processor: install it on this machine",
    signal.SIGSEGV: "a fault inside a library: `python -m launch doctor` checks this machine",
    signal.SIGFPE: "a fault inside a library: `python -m launch doctor` checks this machine",
}
OUT_OF_MEMORY = re.compile(r"out of memory|can.?t allocate memory|cannot allocate memory|MemoryError", re.IGNORECASE)
OF_SRUN = re.compile(r"^srun: error: \S+: tasks? \S+: (.+?)(?: \(core dumped\))?\s*$", re.MULTILINE)
"""How srun names the end of a task; the first line is that of the task that ended first."""
BY_SLURM = re.compile(r"^(srun: Job step aborted|slurmstepd\S*: error: \*\*\* (STEP|JOB) )", re.MULTILINE)
"""SLURM's words if it ends a step itself; also, after a failure, if it ends the other tasks."""
LAST_BYTES = 20_000


@dataclass(frozen=True)
class Exit:
    """How one process of a stage ended."""

    rank: int
    code: int
    """Below 0: the number of the signal that ended it."""
    was_killed_here: bool = False
    """The launcher killed it, because it did not leave when it was asked to."""


@dataclass(frozen=True)
class Place:
    """Which stage failed, and where."""

    stage: str
    processes: int
    is_on_slurm: bool = False

    @property
    def memory_advice(self) -> str:
        """What to change if a process needs more memory than there is."""
        job, _, name = self.stage.partition(".shard-")[0].partition("-")
        key = SMALLER_BATCHES.get(job, "").format(name=name)
        if self.is_on_slurm:
            return f"lower {key}, or raise memory_gb_per_process" if key else "raise memory_gb_per_process"
        if key and self.processes > 1:
            return f"lower {key} or --processes"
        return f"lower {key}" if key else "close what else needs memory, or use a larger machine"


def exit_code(exits: list[Exit]) -> int:
    """Return the exit code of a stage: 2 if the input is wrong, else of the first failure, else 75 or 0."""
    codes = [_code(each) for each in exits]
    if EXIT_INPUT in codes:
        return EXIT_INPUT
    killed = [_code(each) for each in exits if _is_killed(each)]
    failures = killed + [code for code in codes if code not in (0, EXIT_STOPPED)]
    return failures[0] if failures else max(codes)


def _code(end: Exit) -> int:
    if end.was_killed_here:  # what it saved before counts
        return EXIT_STOPPED
    return end.code if end.code >= 0 else 128 - end.code


def explain(place: Place, exits: list[Exit], failures: list[Failure], log: Path, begin: int) -> str:
    """Return why a stage on this machine failed. Its log begins at byte `begin`: what is before is older."""
    killed = [each for each in exits if _is_killed(each)]
    if not killed and not failures:
        killed = [each for each in exits if each.code < 0 and not each.was_killed_here]
    if killed and not _wrong_input(failures):
        return _explain_signal(place, -killed[0].code, len(killed))
    return _explain_failures(place, failures) or _last_line(log, begin)


def explain_srun(place: Place, code: int, failures: list[Failure], log: Path, begin: int) -> str:
    """Return why a stage in a SLURM job failed; `code` is srun's own, the highest of all tasks."""
    text = _read(log, begin)
    first = OF_SRUN.search(text)
    ended = BY_SLURM.search(text)
    if ended and not failures and (first is None or ended.start() < first.start()):
        return "SLURM ended it: it was cancelled or preempted, or reached its time limit"
    number = _signal_number(first[1]) if first else None
    if number is None and not failures and code > 128:
        number = code - 128
    if number is not None and not _wrong_input(failures):
        return _explain_signal(place, number, 1)
    return _explain_failures(place, failures) or _last_line(log, begin)


def _is_killed(end: Exit) -> bool:
    """Return whether a signal ended a process that nobody had asked to leave."""
    return end.code < 0 and not end.was_killed_here and -end.code not in SIGNALS


def _wrong_input(failures: list[Failure]) -> list[Failure]:
    return [failure for failure in failures if failure.exit_code == EXIT_INPUT]


def _explain_failures(place: Place, failures: list[Failure]) -> str | None:
    """Return the words of the process that knew that the input is wrong, else of the first; None without any."""
    if wrong := _wrong_input(failures):
        return wrong[0].text
    if not failures:
        return None
    first = failures[0]
    which = f"rank {first.rank}: " if place.processes > 1 else ""
    advice = f" ({place.memory_advice})" if OUT_OF_MEMORY.search(first.text) else ""
    return f"{which}{first.text}{advice}"


def _explain_signal(place: Place, number: int, count: int) -> str:
    verb = "was" if count == 1 else "were"
    who = f"{count if count > 1 else 'one'} of {place.processes} processes {verb}" if place.processes > 1 else "it was"
    known = {each.value for each in signal.Signals}
    name = signal.Signals(number).name if number in known else f"signal {number}"
    if number == signal.SIGKILL:
        return f"{who} killed ({name}, often out of memory): {place.memory_advice}"
    reason = CRASHES.get(signal.Signals(number)) if number in known else None
    return f"{who} ended by a crash ({name}), {reason}" if reason else f"{who} ended by {name}"


def _signal_number(words: str) -> int | None:
    """Return the signal of srun's words for the end of a task; None if it left with an exit code."""
    if words == "Out Of Memory":  # srun's own words, where control groups limit the memory
        return signal.SIGKILL
    numbers = {signal.strsignal(each): each.value for each in signal.Signals}
    number = numbers.get(words)
    return None if number in SIGNALS else number


def _last_line(log: Path, begin: int) -> str:
    """Return the last line of an attempt's log that is no progress bar."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", _read(log, begin)) if "%|" not in line]
    lines = [line for line in lines if line]
    return lines[-1][:MOST_CHARACTERS] if lines else "it left without a word"


def _read(log: Path, begin: int) -> str:
    """Return the end of what an attempt wrote into its log."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - LAST_BYTES))
        return file.read().decode(errors="replace")
