"""python -m launch run RECIPE | status RUN | schema"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distill.errors import InputError
from distill.preflight import check_recipe
from distill.reading import split_files
from distill.recipe import Recipe
from distill.recipe_file import load_recipe
from distill.run import Run, check_unchanged, open_run
from launch import local, overview, status

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()
errors = Console(stderr=True)

EXIT_INPUT = 2


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="the YAML file of the recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="over the recipe")] = None,
    on: Annotated[str, typer.Option(help="where: local (this machine)")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would run, and stop")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="processes of a training stage (default: all GPUs, else 2 on the CPU)")
    ] = None,
    runs: Annotated[Path, typer.Option(help="the folder of all runs")] = Path("runs"),
    time_limit: Annotated[
        float | None, typer.Option(min=0.01, help="minutes until this is killed; it saves and leaves with 75 before")
    ] = None,
    grace: Annotated[
        float | None, typer.Option(min=0.01, help="seconds from a signal to the kill, where known")
    ] = None,
) -> None:
    """Run what is missing of a recipe, in order, and end with the report."""
    with _explained():
        if on != "local":
            raise InputError(f"--on: {on!r} given, expected 'local'. Leave it out to run on this machine.")
        loaded = load_recipe(recipe, overrides)
        check_recipe(loaded)
        split_files(loaded.corpus)
        world = local.processes_here(processes)
        if dry_run:
            planned = Run(loaded, runs / loaded.name)
            check_unchanged(planned)
            overview.show(planned, world, console)
            return
        code = local.run_graph(open_run(loaded, runs), world, console, time_limit, grace)
    sys.exit(code)


@app.command(name="status")
def show_status(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="the run's folder")]) -> None:
    """The table of a run: stage, state, progress, speed, time left, log to open."""
    with _explained():
        if not (run_folder / "recipe.yaml").is_file():
            raise InputError(f"{run_folder} is no run: it has no recipe.yaml. Give the folder of a run (runs/NAME).")
        console.print(status.table(Run(load_recipe(run_folder / "recipe.yaml"), run_folder)))


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    print(json.dumps(Recipe.model_json_schema(), indent=2))


class _explained:  # noqa: N801 - reads as a word in `with _explained():`
    """Turns an InputError into its message and exit code 2."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, InputError):
            errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            sys.exit(EXIT_INPUT)
