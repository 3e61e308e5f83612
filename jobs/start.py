"""How every job starts and ends: arguments, log files, exit codes. Imports no torch."""

import argparse
import errno
import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from distill.begun import with_begun_defaults
from distill.changes import open_run, refuse_removal
from distill.errors import InputError
from distill.failure import one_line, report_failure
from distill.hub import work_offline_if_cut_off
from distill.preemption import GRACE_VARIABLE, StopFlag, StoppedError, end_of_job
from distill.preflight import check_recipe, needs_hub
from distill.recipe_file import load_recipe
from distill.run import LabelSet, Member, Run, Split
from distill.shared import resolve
from distill.stages import shard_name, stage_name
from jobs.quiet import silence_noise

EXIT_INPUT, EXIT_STOPPED, EXIT_FAILURE = 2, 75, 100  # srun tells the highest of its ranks: a failure must be above 75
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
# The words of safetensors and of torch's writer, which have no errno.
STORAGE_WORDS = (*map(os.strerror, STORAGE_ERRORS[:3]), "PytorchStreamWriter failed writing", "unexpected pos")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """What a job was asked to do."""

    run: Run
    member: Member | None = None
    split: Split = "test"
    shard: int | None = None
    labels: LabelSet | None = None
    stop: StopFlag = field(default_factory=StopFlag)


def main(
    job: Callable[[Arguments], None],
    name: str,
    works_on: Literal["run", "member", "labels"] = "run",
    shards: bool = False,
    stops: Literal["between batches", "at once"] = "at once",
) -> None:
    """Run a job from the command line and exit: 0 done, 2 wrong input, 75 stopped by a signal, 100 failure.

    A job that does not look at its flag between batches is stopped at once: what it writes appears whole or not at all.
    """
    options = _parse(name, works_on, shards)
    stop = StopFlag(end_of_job(options.time_limit), options.grace, at_once=stops == "at once")
    logging.basicConfig(level=logging.INFO, format=_log_format(), stream=sys.stderr, force=True)
    logging.raiseExceptions = False  # where the disk is full, the reason must not drown in tracebacks of the log file
    silence_noise()
    try:
        stop.listen()
        recipe = with_begun_defaults(resolve(load_recipe(options.recipe, options.overrides)), Path(options.runs))
        check_recipe(recipe)
        if needs_hub(recipe):
            work_offline_if_cut_off()
        refuse_removal(Run(recipe, Path(options.runs) / recipe.name))
        run = open_run(recipe, Path(options.runs))
        member, labels = _member(run, options), run.label_set(options.labels) if options.labels else None
        _refuse_shared(member, labels, name)
        _log_to_file(run, name, member or labels, options.shard)
        job(Arguments(run, member, options.split, options.shard, labels, stop))
    except InputError as error:
        log.error("%s", error)
        report_failure(rank(), EXIT_INPUT, str(error))
        _leave(EXIT_INPUT)
    except StoppedError as error:
        log.warning("stopped (%s); what is finished is saved, run the same command again to continue", error)
        _leave(EXIT_STOPPED)
    except Exception as error:
        reason = _storage_failure(error)
        if reason is None:
            log.exception("%s failed", name)
            report_failure(rank(), EXIT_FAILURE, one_line(error))
            _leave(EXIT_FAILURE)
        place = getattr(error, "filename", None) or f"to {options.runs}"
        text = (
            f"cannot write {place}: {reason}. Nothing that was finished is lost: make room (or the folder writable), "
            "and run the same command again to continue."
        )
        log.error("%s", text)
        report_failure(rank(), EXIT_FAILURE, text)
        _leave(EXIT_FAILURE)
    _leave(0)


def _storage_failure(error: Exception) -> str | None:
    """Why nothing could be written, in a few words; None where it is something else that failed."""
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return error.strerror or str(error)
    text = str(error).splitlines()[0] if str(error) else ""
    return text if any(words in text for words in STORAGE_WORDS) else None


def rank() -> int:
    """The number of this process among those of the job, before torch is there to ask."""
    given = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return int(given) if given.isdecimal() else 0  # what is no number is refused where the ranks come together


def _parse(name: str, works_on: str, shards: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}")
    parser.add_argument("recipe", help="the YAML file of the recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the recipe, e.g. train.steps=100")
    if works_on == "member":
        member = parser.add_mutually_exclusive_group(required=True)
        member.add_argument("--student", help="the student of the recipe to work on")
        member.add_argument("--teacher", help="the teacher of the recipe to work on")
    if works_on == "labels":
        parser.add_argument("--labels", required=True, help="the labels of the recipe to work on")
    parser.add_argument("--split", default="test", choices=["validation", "test"], help="what to evaluate on")
    if shards:
        parser.add_argument("--shard", type=_shard, help="compute only this shard (0-based)")
    parser.set_defaults(shard=None, student=None, teacher=None, labels=None)
    parser.add_argument("--runs", default="runs", help="the folder of all runs (default: runs)")
    parser.add_argument(
        "--time-limit",
        type=_positive,
        help="minutes until the job is killed; it saves and leaves before (SLURM tells it)",
    )
    grace = os.environ.get(GRACE_VARIABLE)
    parser.add_argument("--grace", type=_positive, default=grace, help="seconds from a signal to the kill, where known")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # the DeepSpeed launcher's
    return parser.parse_intermixed_args()


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a number above 0")
    return value


def _shard(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a whole number from 0")
    return int(text)


def check_shard(shard: int | None, shards: int, key: str) -> None:
    """InputError where --shard names none of the `shards` of a recipe's key."""
    if shard is not None and shard >= shards:
        raise InputError(f"--shard: {shard} given, expected 0 to {shards - 1} ({key}).")


def _member(run: Run, options: argparse.Namespace) -> Member | None:
    if options.student:
        return run.member("students", options.student)
    return run.member("teachers", options.teacher) if options.teacher else None


def _refuse_shared(member: Member | None, labels: LabelSet | None, job: str) -> None:
    """Raise InputError for a job whose output is that of another run, or a file."""
    if member and member.is_shared and job != "cache":
        raise InputError(
            f"{member} is read from {member.folder}, which belongs to another run. Run jobs.{job} for that run."
        )
    if labels and labels.settings.run:
        raise InputError(
            f"{labels} are read from {labels.folder}, which belongs to another run. Run jobs.{job} for that run."
        )
    if labels and labels.settings.file and job != "merge":
        raise InputError(
            f"{labels} are read from {labels.settings.file}, not made by a teacher. Only jobs.merge is needed."
        )


def _log_format() -> str:
    return f"%(asctime)s [rank {rank()}] %(levelname)s %(name)s: %(message)s"


def _log_to_file(run: Run, name: str, subject: Member | LabelSet | None, shard: int | None) -> None:
    run.logs.mkdir(exist_ok=True)
    stage = stage_name(name, subject) if shard is None else shard_name(stage_name(name, subject), shard)
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
