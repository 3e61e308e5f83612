"""What `launch run` shows while it works: a line for each stage with its result, and below them what runs now.

On a terminal the last lines are drawn again and again. In a file they are plain lines: one when a stage begins,
one when it ends, and one now and then between.
"""

import logging
import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from distill.compiling import Compilation, compilation
from distill.run import Run
from distill.stages import Stage
from launch.estimate import Remaining, remaining, usual_seconds
from launch.results import result, warnings
from launch.state import EXIT_STOPPED, GraphState
from launch.status import Progress, progress_of
from launch.words import duration

log = logging.getLogger(__name__)

READ_SECONDS = 1.0
FIRST_HEARTBEAT_SECONDS = 60.0
SLOWEST_HEARTBEAT_SECONDS = 600.0
CONTROL_C_ROOM = 3
DISPLAY_ERRORS = (OSError, ValueError, LookupError, TypeError)
"""What a torn or missing file, or a terminal that lacks characters, may raise."""


class Screen:
    """Shows one run; used with `with`, or the terminal keeps the lines that change."""

    def __init__(self, run: Run, graph: list[Stage], state: GraphState, console: Console) -> None:
        self._run = run
        self._graph = graph
        self._state = state
        self.console = console
        self._live = Live(console=console, transient=True) if console.is_terminal else None
        self._spinner = Spinner("dots" if console.encoding.lower().startswith("utf") else "line")
        self._began = time.monotonic()
        self._stage_began = self._began
        self._done = 0
        self._first_step = 0
        self._usual: float | None = None
        self._after = Remaining(0.0)
        self._looked = 0.0
        self._heartbeat = FIRST_HEARTBEAT_SECONDS
        self._told_of_compiling = False
        self._told_of_error = False

    def __enter__(self) -> "Screen":
        self._done = sum(stage.is_complete() for stage in self._graph)
        if self._done:
            self._print(f"{self._done} of {len(self._graph)} stages were done before")
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def begin(self, stage: Stage) -> None:
        """Show that a stage begins."""
        self._stage_began = time.monotonic()
        self._told_of_compiling = False
        self._told_of_error = False
        try:
            self._first_step = progress_of(self._run, stage).step or 0
        except DISPLAY_ERRORS as error:
            self._tell(error)
        self._done = sum(other.is_complete() for other in self._graph)
        self._usual = usual_seconds(self._graph, self._state, stage)
        self._after = remaining(self._graph, self._state, stage)
        self._looked = 0.0
        self._heartbeat = FIRST_HEARTBEAT_SECONDS
        if not self._live:
            log = self._run.logs / f"{stage.name}.log"
            self._print(f"{self._number(stage)} {stage.name}: begins at {time.strftime('%H:%M:%S')}, log: {log}")
        self.update(stage)

    def update(self, stage: Stage) -> None:
        """Show how far the stage is. May be called often; files are read once a second."""
        now = time.monotonic()
        if now - self._looked < READ_SECONDS:
            return
        self._looked = now
        try:
            self._show(stage, now)
        except DISPLAY_ERRORS as error:
            self._tell(error)

    def _show(self, stage: Stage, now: float) -> None:
        how_far = progress_of(self._run, stage)
        is_waiting = stage.job == "train" and not how_far.step
        compiled = compilation() if is_waiting else None
        if self._live:
            self._live.update(self._drawn(stage, how_far, compiled), refresh=True)
            return
        if compiled and not self._told_of_compiling:
            self._told_of_compiling = True
            self._print(f"{self._number(stage)} {stage.name}: {compiled.text()}")
        if now - self._stage_began >= self._heartbeat:
            self._heartbeat += min(self._heartbeat, SLOWEST_HEARTBEAT_SECONDS)
            self._print(f"{self._number(stage)} {stage.name}: {self._details(how_far)}")

    def leaving(self, stage: Stage) -> None:
        """Show that the stage was asked to stop. It may take a while: it saves first."""
        self._print(f"stopping: {stage.name} finishes its batch, saves and leaves")

    def end(self, stage: Stage, code: int, outcome: str) -> None:
        """Show how the stage ended, in a word, and the result if it is done."""
        colour = {0: "green", EXIT_STOPPED: "yellow"}.get(code, "red")
        found = self._result(stage) if code == 0 else ""
        elapsed = duration(time.monotonic() - self._stage_began)
        line = Text(f"{self._number(stage)} {stage.name}: ").append(outcome, colour).append(f" after {elapsed}")
        if found and self._live and line.cell_len + len(found) + 2 > self.console.width:
            self._print(line)
            self._print(Text(f"    {found}"))
        else:
            self._print(line.append(f": {found}" if found else ""))
        if stage.job == "prepare" and code == 0:
            for warning in warnings(self._run):
                self._print(Text("    ").append("warning:", "yellow").append(f" {warning}"))

    def _result(self, stage: Stage) -> str:
        try:
            return result(self._run, stage)
        except DISPLAY_ERRORS as error:
            self._tell(error)
            return ""

    def _tell(self, error: Exception) -> None:
        """Log why something cannot be shown. The stages go on: hours of work do not depend on a line of the screen."""
        if not self._told_of_error:
            self._told_of_error = True
            log.warning("cannot show how far the run is: %s: %s", type(error).__name__, error)

    def _print(self, text: str | Text) -> None:
        """Print above the lines that change. A terminal folds at words; lines of a file stay whole."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=self._live is None)

    def _number(self, stage: Stage) -> str:
        return f"[{self._graph.index(stage) + 1}/{len(self._graph)}]"

    def _drawn(self, stage: Stage, how_far: Progress, compiled: Compilation | None) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [self._spinner, Text(f"{self._number(stage)} {stage.name}", no_wrap=True)]
        if how_far.step is not None and how_far.steps:
            cells.append(ProgressBar(total=how_far.steps, completed=how_far.step, width=20))
            cells.append(f"{100 * how_far.step // how_far.steps} %")
        head.add_row(*cells)
        lines = [self._details(how_far), self._whole_run(stage, how_far)]
        if compiled:
            lines.insert(0, compiled.text())
        return Group(head, *(self._cut(f"  {line}") for line in lines))

    def _cut(self, line: str) -> Text:
        """Return a line that leaves room at its end: a "^C" there must not become one line more to clear."""
        text = Text(line)
        text.truncate(self.console.width - CONTROL_C_ROOM, overflow="ellipsis")
        return text

    def _details(self, how_far: Progress) -> str:
        """Return what is known of the running stage: step, speed, loss, time left, time so far."""
        elapsed = f"{duration(time.monotonic() - self._stage_began)} so far"
        return f"{how_far.text()}  {elapsed}".strip()

    def _whole_run(self, stage: Stage, how_far: Progress) -> str:
        elapsed = time.monotonic() - self._stage_began
        guess = self._after.plus(stage.job, self._left(how_far, elapsed)).text()
        parts = [
            f"run: {self._done} of {len(self._graph)} stages",
            f"{duration(time.monotonic() - self._began)} so far",
        ]
        return ", ".join([*parts, guess] if guess else parts)

    def _left(self, how_far: Progress, elapsed: float) -> float | None:
        """Return the seconds that the stage still takes: as it says, from its steps since it began, or as is usual."""
        if how_far.seconds_left is not None:
            return how_far.seconds_left
        made = (how_far.step or 0) - self._first_step
        if made > 0 and how_far.step is not None and how_far.steps:
            return elapsed / made * (how_far.steps - how_far.step)
        return None if self._usual is None else max(0.0, self._usual - elapsed)
