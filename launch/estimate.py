"""How long a run may still take, as far as its finished stages tell."""

from dataclasses import dataclass, replace

from distill.files import read_jsonl
from distill.run import Member
from distill.stages import Stage
from launch.state import GraphState
from launch.words import duration


@dataclass(frozen=True)
class Remaining:
    """The time that is left, and the jobs that it does not count because none of their kind has ended yet."""

    seconds: float
    not_counted: tuple[str, ...] = ()

    def plus(self, job: str, seconds: float | None) -> "Remaining":
        """Return it with one stage more, of which `seconds` are left; None if that is not known."""
        if seconds is not None:
            return replace(self, seconds=self.seconds + seconds)
        return replace(self, not_counted=tuple(dict.fromkeys([job, *self.not_counted])))

    def text(self) -> str:
        """Return it in words; an empty text if nothing is known."""
        if not self.seconds:
            return ""
        if not self.not_counted:
            return f"about {duration(self.seconds)} left"
        return f"at least {duration(self.seconds)} left (+ {', '.join(self.not_counted)})"


def remaining(stages: list[Stage], state: GraphState, without: Stage) -> Remaining:
    """Guess the time of all stages to do but one: each takes as long as the finished ones of its kind, in the mean."""
    left = Remaining(0.0)
    for stage in reversed(stages):
        if stage.name != without.name and not stage.is_complete():
            left = left.plus(stage.job, usual_seconds(stages, state, stage))
    return left


def usual_seconds(stages: list[Stage], state: GraphState, stage: Stage) -> float | None:
    """Return the mean time of the finished stages of this job: of students for a student, else of any; None without one."""
    same_job = [other for other in stages if other.job == stage.job]
    same_group = [other for other in same_job if _group(other) == _group(stage)]
    for others in (same_group, same_job):
        times = [seconds for other in others if (seconds := _seconds(state, other)) is not None]
        if times:
            return sum(times) / len(times)
    return None


def _group(stage: Stage) -> str:
    return stage.subject.group if isinstance(stage.subject, Member) else ""


def _seconds(state: GraphState, stage: Stage) -> float | None:
    """Return how long a finished stage took; None if it did not run on this machine.

    A training says it itself, without the start and with all attempts; of other stages it is the last attempt.
    """
    entry = state.stages.get(stage.name, {})
    if entry.get("state") != "done":
        return None
    if stage.job == "train" and stage.member:
        for row in reversed(read_jsonl(stage.member.metrics)):
            if "training_minutes" in row:
                return 60 * float(row["training_minutes"])
    return float(entry["ended"] - entry["started"])
