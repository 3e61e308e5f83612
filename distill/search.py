"""The grid of decoding settings that is tried on the validation split: its points, their files, the best. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.run import Member
from distill.sections import Search


@dataclass(frozen=True)
class Point:
    """One decoding of the grid, and where its summaries are made."""

    num_beams: int
    length_penalty: float | None
    """None at one beam, where it has no effect."""
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that go over `evaluate.generation`."""
        penalty = {} if self.length_penalty is None else {"length_penalty": self.length_penalty}
        return {"num_beams": self.num_beams, **penalty}

    @property
    def result(self) -> Path:
        """Written once the point is scored."""
        return self.folder.with_name(f"{self.folder.name}.json")


def points(search: Search, member: Member) -> list[Point]:
    """All points of the grid, fewest beams first. Their folders follow from all that may change while they are made."""
    folder = member.search_points / f"{search.examples}-examples"
    grid: list[Point] = []
    for beams in sorted(set(search.num_beams)):
        for penalty in dict.fromkeys(search.length_penalty) if beams > 1 else [None]:
            name = f"beams-{beams}" + ("" if penalty is None else f"-penalty-{penalty}")
            grid.append(Point(beams, penalty, folder / name))
    return grid


def best_point(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result with the highest score; of equals the one with fewer beams, then the earlier."""
    return max(results, key=lambda result: (result["score"], -result["num_beams"]))
