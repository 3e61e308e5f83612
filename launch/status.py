"""How far a run is, read from its files: the table of `python -m launch status` and the launcher's progress line."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distill.files import read_json, read_jsonl
from distill.run import Run
from distill.stages import Stage, stages
from launch.state import stage_state


@dataclass(frozen=True)
class Progress:
    """Of a training stage in steps, of one with shards in shards; empty for the others."""

    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    unit: str = "step"

    def text(self) -> str:
        parts = [self.done() and f"{self.unit} {self.done()}", self.speed(), self.left() and f"{self.left()} left"]
        return "  ".join(part for part in parts if part)

    def done(self) -> str:
        return "" if self.step is None else f"{self.step}/{self.steps or '?'}"

    def speed(self) -> str:
        return "" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f} tokens/s"

    def left(self) -> str:
        return "" if self.seconds_left is None else str(timedelta(seconds=round(self.seconds_left)))


def progress(stage: Stage) -> Progress:
    """Read from metrics.jsonl, or counted in files."""
    if stage.shards_done:
        done, shards = stage.shards_done()
        return Progress(done, shards, unit="shard")
    if stage.job != "train" or stage.member is None:
        return Progress()
    rows = read_jsonl(stage.member.metrics)
    timed = [row for row in rows if "tokens_per_second" in row]
    if not timed:
        return Progress(rows[-1]["step"], None) if rows else Progress()
    last = timed[-1]
    complete = stage.is_complete()
    return Progress(
        step=last["step"],
        steps=last["steps"],
        tokens_per_second=last["tokens_per_second"],
        seconds_left=None if complete else last["seconds_left"],
    )


def table(run: Run) -> Table:
    graph_file = run.logs / "graph.json"
    known: dict[str, dict[str, Any]] = read_json(graph_file) if graph_file.exists() else {}
    shown = Table(title=f"{run.folder} (log to open: {run.logs}/STAGE.log)", title_justify="left", box=SIMPLE_HEAD)
    for column in ("stage", "state", "done", "tokens/s", "time left"):
        shown.add_column(column, no_wrap=True)
    for stage in stages(run):
        state = stage_state(known, stage.name, stage.is_complete())
        far = progress(stage)
        left = far.left() if state == "running" else ""
        shown.add_row(stage.name, state, far.done(), far.speed().removesuffix(" tokens/s"), left)
    return shown
