"""python -m launch run RECIPE | status [RUN] | cancel RUN | logs RUN STAGE | doctor [RECIPE] | schema"""

import difflib
import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distill.begun import with_begun_defaults
from distill.errors import InputError
from distill.imported import check_first_label
from distill.preemption import StopFlag, StoppedError
from distill.preflight import check_corpus, check_recipe
from distill.reading import sources
from distill.recipe import Recipe
from distill.recipe_file import load_recipe
from distill.run import Run
from distill.shared import resolve
from launch import local, overview, slurm, table
from launch.advice import warnings
from launch.cancel import cancel
from launch.doctor.command import examine_cluster, examine_this_machine
from launch.logs import find_log, last_lines
from launch.logs import follow as follow_log
from launch.order import Order
from launch.profile import Profile, load_profile
from launch.runs import find_run, list_of_runs
from launch.state import EXIT_STOPPED
from launch.status import is_moving
from launch.version import version

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(width=None if sys.stdout.isatty() else 200)  # a file or a pipe has room
errors = Console(stderr=True)

EXIT_INPUT = 2
PROFILES = Path(__file__).parent.parent / "slurm" / "profiles"
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="the run: its folder, or its name below --runs")]
Runs = Annotated[Path, typer.Option(help="the folder of all runs")]


def _show_version(asked: bool) -> None:
    if asked:
        print(version())
        raise typer.Exit


@app.callback()
def launch(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version, and stop")
    ] = False,
) -> None:
    """Distil summarization and translation models, on this machine or on a SLURM cluster."""


KEYS_AFTER_DASHES = {"ignore_unknown_options": True}
"""`--train.steps 100` is taken for an override, which then says how it is written."""


@app.command(context_settings=KEYS_AFTER_DASHES)
def run(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="the YAML file of the recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="over the recipe")] = None,
    on: Annotated[
        str, typer.Option(help="where: local (this machine) or a profile of a SLURM cluster (slurm/profiles/NAME.yaml)")
    ] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would run, and stop")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="processes of a training stage (default: all GPUs, else 2 on the CPU)")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="stop after this stage, or all of its kind (train, train-student)"),
    ] = None,
    redo: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="do a student, teacher, label set or stage again (may be repeated)"),
    ] = None,
    runs: Runs = Path("runs"),
    time_limit: Annotated[
        float | None, typer.Option(min=0.01, help="minutes until this is killed; it saves and leaves with 75 before")
    ] = None,
    grace: Annotated[
        float | None, typer.Option(min=0.01, help="seconds from a signal to the kill, where known")
    ] = None,
) -> None:
    """Run what is missing of a recipe, in order, and end with the report."""
    with _explained():
        _refuse_options(context, [str(recipe), *(overrides or [])])
        profile_file = None if on == "local" else _profile_file(on)
        profile = _profile(profile_file, processes, time_limit, grace) if profile_file else None
        loaded = with_begun_defaults(resolve(load_recipe(recipe, overrides)), runs)
        check_recipe(loaded)
        sources(loaded.corpus)
        world = local.processes_here(processes)
        planned = Run(loaded, runs / loaded.name)
        order = Order(planned, until, tuple(redo or ()))
        order.announce(console)
        if not planned.corpus.exists():
            check_corpus(loaded)
        for name, labels in loaded.labels.items():
            if labels.file:
                check_first_label(labels, name)
        for line in warnings(planned, None if profile else world):
            errors.print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        if dry_run:
            here = overview.this_machine(world)
            place = overview.cluster(planned, profile, profile_file) if profile and profile_file else here
            overview.show(planned, order.planned_stages(), place, console)
            return
        if profile:
            code = slurm.submit(order, profile, console)
        else:
            code = local.run_graph(order, world, console, time_limit, grace)
    sys.exit(code)


@app.command(name="status")
def show_status(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="its folder or name; none: all runs")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="show it again and again until nothing moves any more")
    ] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Show how far a run is, stage by stage; without RUN, list all runs."""
    with _explained():
        if run_folder is None:
            if watch:
                raise InputError("--watch given without a run. Expected RUN: its folder, or its name.")
            console.print(list_of_runs(runs))
        elif watch:
            table.watch(find_run(run_folder, runs), console)
        else:
            table.show(find_run(run_folder, runs), console)


@app.command(name="cancel")
def cancel_run(run_folder: RunFolder, runs: Runs = Path("runs")) -> None:
    """End all jobs of a run, and only those: on SLURM, and of a launcher on this machine."""
    with _explained():
        sys.exit(cancel(find_run(run_folder, runs), console))


@app.command()
def logs(
    run_folder: RunFolder,
    stage: Annotated[str, typer.Argument(help="as `status` names it")],
    shard: Annotated[int | None, typer.Option(min=0, help="of an array of shards; by default the newest log")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="how many, from the end")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the stage ends, or Ctrl-C")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Show the end of a stage's log."""
    with _explained():
        found = find_run(run_folder, runs)
        log = find_log(found, stage, shard)
        errors.print(str(log), style="bold", markup=False, highlight=False, soft_wrap=True)
        position = log.stat().st_size
        print(last_lines(log, lines), flush=True)
        if follow:
            for text in follow_log(log, position, lambda: is_moving(found, stage)):
                print(text, end="", flush=True)


def _refuse_options(context: typer.Context, given: list[str]) -> None:
    """Raise InputError at an option that is none: it may be a key of the recipe in another program's way of writing."""
    for text in given:
        key, _, value = text.partition("=")
        name = key.lstrip("-")
        if not key.startswith("--"):
            continue
        if name.split(".")[0] in Recipe.model_fields:
            raise InputError(
                f"{key} given, which is no option. A key of the recipe is written without dashes and with '=': "
                f"{name}={value or 'VALUE'}"
            )
        options = [option for parameter in context.command.params for option in parameter.opts]
        close = difflib.get_close_matches(key, options, n=1)
        raise InputError(
            f"{key} given, which is no option{f'; did you mean {close[0]}?' if close else ', see --help.'}"
        )


def _profile_file(on: str) -> Path:
    """Return the file of a profile: as given, or one of the repository's by its name (`dev`, `slurm/dev.yaml`)."""
    given = Path(on)
    for file in (given, given.parent / "profiles" / given.name, PROFILES / f"{given.stem}.yaml"):
        if file.is_file():
            return file
    known = sorted(file.stem for file in PROFILES.glob("*.yaml"))
    raise InputError(
        f"--on: {on!r} given, expected 'local' or a profile: its file, or for those in slurm/profiles the name "
        f"({', '.join(known)})."
    )


def _profile(file: Path, *of_this_machine: float | None) -> Profile:
    if any(option is not None for option in of_this_machine):
        raise InputError(f"--processes, --time-limit and --grace are for this machine; {file} says it for SLURM.")
    return load_profile(file)


@app.command(name="doctor", context_settings=KEYS_AFTER_DASHES)
def examine(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(help="the YAML file of the recipe that is to run there")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="over the recipe")] = None,
    on: Annotated[
        str, typer.Option(help="as of `run`: local or slurm/profiles/NAME.yaml (the nodes of a training)")
    ] = "local",
    processes: Annotated[int | None, typer.Option(min=1, help="processes on this machine")] = None,
    runs: Runs = Path("runs"),
    wait_min: Annotated[
        float, typer.Option("--wait-min", min=0.1, help="minutes that its job may wait in SLURM's queue")
    ] = 15.0,
) -> None:
    """Check a machine, or nodes of a cluster through a short job; say of each failure what to change."""
    stop = StopFlag(at_once=True)
    with _explained():
        _refuse_options(context, [str(recipe or ""), *(overrides or [])])
        profile_file = None if on == "local" else _profile_file(on)
        profile = _profile(profile_file, processes) if profile_file else None
        loaded = resolve(load_recipe(recipe, overrides)) if recipe else None
        if loaded:
            check_recipe(loaded)
            check_corpus(loaded)
        try:
            stop.listen(signal.SIGINT)
            if profile and profile_file:
                code = examine_cluster(loaded, profile, profile_file, runs, wait_min, console)
            else:
                code = examine_this_machine(loaded, local.processes_here(processes), runs, console)
        except StoppedError as error:
            errors.print(f"stopped ({error}); nothing of it is left", highlight=False)
            code = EXIT_STOPPED
    sys.exit(code)


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
