"""The table of `launch status`, as wide and as high as the screen allows. Names are never folded."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distill.run import Run
from launch.lock import holder_of
from launch.queue import DEPENDENCY
from launch.results import warnings
from launch.status import Row, read
from launch.words import duration

WATCH_SECONDS = 3.0
BETWEEN = 3  # spaces that rich puts between two columns of this kind of table
LINES_AROUND = 4
"""Above the rows: the title, an empty line, the heads of the columns and the rule below them."""
FIRST = ("running", "preempted", "failed", "stopped", "cancelled", "waiting")
"""The order of a table that does not show everything. Finished stages are one line."""
COLOURS = {"running": "bold", "done": "green", "failed": "red", "cancelled": "yellow", "stopped": "yellow"}


@dataclass(frozen=True)
class Column:
    """What stands in a column, and when it is left out: those with the highest number first, never those with 0."""

    head: str
    cell: Callable[[Row], str]
    leave_out: int = 0


COLUMNS = (
    Column("stage", lambda row: row.stage.name),
    Column("state", lambda row: f"{row.state} {row.detail}".strip()),
    Column("done", lambda row: row.progress.done(), 2),
    Column("tokens/s", lambda row: row.progress.speed().removesuffix(" tokens/s"), 4),
    Column("time left", lambda row: row.progress.left() if row.state == "running" else "", 1),
    Column("elapsed", lambda row: "" if row.seconds is None else duration(row.seconds), 3),
    Column("job", lambda row: row.jobs, 5),
    Column("nodes", lambda row: row.nodes, 6),
    Column("restarts", lambda row: str(row.restarts or ""), 7),
    Column("log to open", lambda row: row.log.name if row.log else "", 8),
)
REMARK = Column("result, or why it waits", lambda row: row.remark)
"""The last column. It is cut where the screen ends."""
LEAST_REMARK = 24


def show(run: Run, console: Console) -> None:
    """Print the table once, with all stages in their order."""
    rows, note = read(run)
    console.print(table(run, rows, console.width, notes(run, rows, note)))


def watch(run: Run, console: Console) -> None:
    """Draw the table again and again, until nothing is running or waiting to run, or Ctrl-C."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows, note = read(run)
            live.update(fitted(run, rows, console.width, console.height, notes(run, rows, note)), refresh=True)
            moving = any(row.state in ("running", "waiting", "preempted") for row in rows if row.is_begun)
            if not note and not moving and holder_of(run.logs) is None:  # a launcher may be between two stages
                return
            time.sleep(WATCH_SECONDS)


def notes(run: Run, rows: Sequence[Row], note: str) -> list[str]:
    """Return what stands below the table: why stages failed or SLURM was not asked, and the warnings of `prepare`."""
    failed = [f"{row.stage.name} failed: {row.reason}" for row in rows if row.state == "failed" and row.reason]
    return failed + ([note] if note else []) + [f"warning: {warning}" for warning in warnings(run)]


def table(run: Run, rows: Sequence[Row], width: int, below: Sequence[str] = ()) -> RenderableType:
    """Return the table of these rows, without the columns that do not fit or have nothing in them."""
    # Why SLURM lets a job wait is worth more than some columns, unless it is only for the stages before it.
    waits = any(row.remark and row.state != "done" and DEPENDENCY not in row.remark for row in rows)
    columns = _columns_that_fit(rows, width - (BETWEEN + LEAST_REMARK if waits else 0))
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        shown.add_column(column.head, no_wrap=True, overflow="ellipsis")
    room = width - _width(columns, rows) - BETWEEN
    if room >= LEAST_REMARK and any(row.remark for row in rows):
        columns.append(REMARK)
        shown.add_column(REMARK.head, no_wrap=True, overflow="ellipsis", max_width=room)
    for row in rows:
        shown.add_row(*(Text(column.cell(row)) for column in columns), style=COLOURS.get(row.state, ""))
    title = Text(f"{run.folder} (logs: {run.logs})", style="italic", no_wrap=True, overflow="ellipsis")
    return Group(title, "", shown, *(Text(line) for line in below))


def fitted(run: Run, rows: Sequence[Row], width: int, height: int, below: Sequence[str] = ()) -> RenderableType:
    """Return the table in at most `height` lines: all stages if they fit, else what moves first."""
    room = height - LINES_AROUND - sum(-(-len(line) // width) for line in below) - 1
    if len(rows) <= room:
        return table(run, rows, width, below)
    open_rows = [row for row in rows if row.state != "done"]
    open_rows.sort(key=lambda row: FIRST.index(row.state))
    done = len(rows) - len(open_rows)
    lines = [f"{done} stages done"] if done else []
    shown = open_rows[: max(1, room - 2)]
    if len(shown) < len(open_rows):
        lines.append(f"{len(open_rows) - len(shown)} more stages wait")
    return table(run, shown, width, [*lines, *below])


def _columns_that_fit(rows: Sequence[Row], width: int) -> list[Column]:
    columns = [column for column in COLUMNS if any(column.cell(row) for row in rows)]
    while _width(columns, rows) > width and any(column.leave_out for column in columns):
        columns.remove(max(columns, key=lambda column: column.leave_out))
    return columns


def _width(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    """Return the width of a table with whole cells."""
    widest = [max(len(column.head), *(len(column.cell(row)) for row in rows)) for column in columns]
    return sum(widest) + BETWEEN * (len(columns) - 1)
