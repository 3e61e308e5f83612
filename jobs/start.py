"""How every job starts and ends: arguments, log files, exit codes. Imports no torch."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from distill.errors import InputError
from distill.preflight import check_recipe
from distill.recipe_file import load_recipe
from distill.run import Member, Run, Split, open_run
from distill.stages import stage_name

EXIT_INPUT, EXIT_FAILURE = 2, 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """What a job was asked to do."""

    run: Run
    member: Member | None
    split: Split
    shard: int | None


def main(job: Callable[[Arguments], None], name: str, needs_member: bool = False, has_shards: bool = False) -> None:
    """Run a job from the command line and exit: 0 done, 2 wrong input, 1 failure."""
    options = _parse(name, needs_member, has_shards)
    logging.basicConfig(level=logging.INFO, format=_log_format(), stream=sys.stderr, force=True)
    for chatty in ("absl", "compilers", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        check_recipe(recipe)
        run = open_run(recipe, Path(options.runs))
        member = _member(run, options)
        _log_to_file(run, name, member)
        job(Arguments(run, member, options.split, options.shard))
    except InputError as error:
        log.error("%s", error)
        _leave(EXIT_INPUT)
    except Exception:
        log.exception("%s failed", name)
        _leave(EXIT_FAILURE)
    _leave(0)


def rank() -> int:
    """The number of this process among those of the job, before torch is there to ask."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def _parse(name: str, needs_member: bool, has_shards: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}")
    parser.add_argument("recipe", help="the YAML file of the recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the recipe, e.g. train.steps=100")
    member = parser.add_mutually_exclusive_group(required=needs_member)
    member.add_argument("--student", help="the student of the recipe to work on")
    member.add_argument("--teacher", help="the teacher of the recipe to work on")
    parser.add_argument("--split", default="test", choices=["validation", "test"], help="what to evaluate on")
    if has_shards:
        parser.add_argument("--shard", type=_shard, help="compute only this shard (0-based)")
    parser.set_defaults(shard=None)
    parser.add_argument("--runs", default="runs", help="the folder of all runs (default: runs)")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # the DeepSpeed launcher's
    return parser.parse_intermixed_args()


def _shard(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a whole number from 0")
    return int(text)


def _member(run: Run, options: argparse.Namespace) -> Member | None:
    if options.student:
        return run.member("students", options.student)
    return run.member("teachers", options.teacher) if options.teacher else None


def _log_format() -> str:
    return f"%(asctime)s [rank {rank()}] %(levelname)s %(name)s: %(message)s"


def _log_to_file(run: Run, name: str, member: Member | None) -> None:
    run.logs.mkdir(exist_ok=True)
    stage = stage_name(name, member)
    handler = logging.FileHandler(run.logs / f"{stage}.rank{rank()}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter(_log_format()))
    logging.getLogger().addHandler(handler)
    if rank() > 0:  # the other ranks speak on the screen only when something is wrong; their files have everything
        logging.getLogger().handlers[0].setLevel(logging.WARNING)


def _leave(code: int) -> NoReturn:
    """Exit without the interpreter's teardown: a process group or DeepSpeed engine still alive may abort there."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
