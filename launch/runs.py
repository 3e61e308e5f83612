"""Finds runs: by folder or by name, and all of a folder."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distill.errors import InputError
from distill.recipe_file import load_recipe
from distill.run import Run
from launch.queue import QueuedJob, queued_jobs
from launch.status import Row, read
from launch.words import duration


def find_run(given: Path, runs: Path) -> Run:
    """Return the run in a folder, or of this name below `runs`. Raise InputError if there is neither."""
    for folder in (given, runs / given):
        if _is_run(folder):
            return Run(load_recipe(folder / "recipe.yaml"), folder)
    known = [folder.name for folder in _folders(runs)]
    expected = f"one of the runs in {runs}: {', '.join(known)}" if known else "the folder of a run (runs/NAME)"
    raise InputError(f"{given} is no run: it has no recipe.yaml. Expected {expected}. Other folders of runs: --runs.")


def all_runs(runs: Path) -> list["RunLine"]:
    """Return a line for each run below a folder, the one that changed last first. Raise InputError if there is none."""
    folders = _folders(runs)
    if not folders:
        raise InputError(f"{runs} has no runs. Expected folders with a recipe.yaml; give another folder with --runs.")
    ask = functools.cache(queued_jobs)  # SLURM is asked once for all of them
    return sorted((_line(folder, ask) for folder in folders), key=lambda line: line.changed, reverse=True)


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()


def _folders(runs: Path) -> list[Path]:
    return sorted(folder for folder in runs.iterdir() if _is_run(folder)) if runs.is_dir() else []


@dataclass(frozen=True)
class RunLine:
    """A run in the list of all."""

    name: str
    state: str
    progress: str
    changed: float
    """When its logs, or its recipe, were written last, in seconds since 1970."""


def _line(folder: Path, ask: Callable[[], list[QueuedJob]]) -> RunLine:
    files = [folder / "recipe.yaml", *folder.glob("logs/*.log"), *folder.glob("logs/*.json")]
    changed = max(file.stat().st_mtime for file in files)
    try:
        rows, _ = read(Run(load_recipe(folder / "recipe.yaml"), folder), ask)
    except InputError:  # of an older version of this project; the others must still be listed
        return RunLine(folder.name, "unknown", "its recipe.yaml is not valid any more", changed)
    return RunLine(folder.name, run_state(rows), _progress(rows), changed)


def run_state(rows: list[Row]) -> str:
    """Return the state of a run from those of its stages."""
    if all(row.state == "done" for row in rows):
        return "done"
    moving = [row.state for row in rows if row.is_begun and row.state != "done"]
    if moving:
        return "running" if "running" in moving else "waiting"
    ended = [row.state for row in rows]
    for state in ("failed", "cancelled", "stopped"):
        if state in ended:
            return state
    return "stopped" if "done" in ended else "not started"


def _progress(rows: list[Row]) -> str:
    done = sum(row.state == "done" for row in rows)
    parts = [f"{done} of {len(rows)} stages"]
    parts += [f"{row.stage.name} {row.progress.done()}".strip() for row in rows if row.state == "running"]
    return ", ".join(parts)


def list_of_runs(runs: Path) -> Table:
    """Return a table of all runs below a folder. Raise InputError if there is none."""
    shown = Table("run", "state", "progress", "last change", box=SIMPLE_HEAD)
    for column in shown.columns:
        column.no_wrap = True
    for line in all_runs(runs):
        shown.add_row(line.name, line.state, line.progress, f"{duration(time.time() - line.changed)} ago")
    return shown
