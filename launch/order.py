"""What a call of `launch run` asks for: a run, how far it should go, and what should be done again."""

from dataclasses import dataclass, replace

from rich.console import Console

from distill.changes import Redo, examine, open_run, outdated
from distill.redo import SHOW
from distill.run import Run
from distill.shared import describe_sources
from distill.stages import Stage, stages, stages_until


@dataclass(frozen=True)
class Order:
    """A run, the last stages that are wanted (by default all), and what may be done again."""

    run: Run
    until: str | None = None
    redo: tuple[str, ...] = ()

    def examine(self) -> Redo:
        """Return what has to be done again. Raise InputError if the recipe has changed in what never may."""
        return examine(self.run, self.redo)

    def stages(self) -> list[Stage]:
        """Return the stages that are wanted, complete or not. Raise InputError if there are none of that name."""
        graph = stages(self.run)
        return stages_until(graph, self.until) if self.until else graph

    def planned_stages(self) -> list[Stage]:
        """Return the stages that are wanted; what is to be done again counts as not complete, though it is still there."""
        again = {stage.name for stage in self.examine().stages}
        again |= set(SHOW) if again else set()
        return [replace(one, is_complete=lambda: False) if one.name in again else one for one in self.stages()]

    def is_done(self) -> bool:
        """True if every wanted stage is complete and nothing is to be done again."""
        return all(stage.is_complete() for stage in self.planned_stages())

    def announce(self, console: Console) -> None:
        """Print what is done again and why. Raise InputError if some of it was not allowed."""
        found = self.examine()
        found.check()
        lines = list(found.changed)
        lines += ["done again:", *found.shown()] if found.stages else []
        lines += [
            f"{name} is not in the recipe any more: its folder stays, the report leaves it out"
            for name in found.removed
        ]
        lines += [*describe_sources(self.run), *outdated(self.run)]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(self, console: Console) -> None:
        """Move aside what is done again, and write the recipe. The caller holds the run's lock, and no job of it is alive."""
        found = self.examine()
        place = found.carry_out()
        found.record(self.redo)
        if place:
            console.print(
                f"what was made before is now in {place} (it may be deleted)", highlight=False, soft_wrap=True
            )
        open_run(self.run.recipe, self.run.folder.parent)

    def end(self) -> str:
        """Return what to say when all wanted stages are complete."""
        if self.until and self.stages()[-1].job != "report":
            return f"done until {self.until}; without --until the rest is done"
        return f"report: {self.run.report / 'report.md'}"
