"""On a SLURM cluster: submits all missing stages of a run at once, each after what it needs, and returns."""

import hashlib
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from distill.changes import refuse_while_queued
from distill.errors import InputError
from distill.files import check_writable
from distill.run import Run
from distill.stages import Stage, shard_name, stages
from launch.command import command
from launch.lock import RunLock
from launch.order import Order
from launch.profile import Profile, Resources
from launch.queue import QueuedJob, has_slurm, queued_jobs, scancel
from launch.sbatch import resource_parameters, send, setup_lines, snapshot, task_on
from launch.state import GraphState, cancelled_file
from launch.task import Task

MAX_ARRAY = 1000  # SLURM's own default limit is 1,001
CONTINUED = ("train", "label", "cache", "search", "evaluate")
"""Jobs that go on where an earlier attempt stopped."""


@dataclass(frozen=True)
class Submission:
    """A stage as one SLURM job, or as an array of the shards that are missing."""

    stage: Stage
    resources: Resources
    shards: tuple[int, ...] | None = None


def submit(order: Order, profile: Profile, console: Console) -> int:
    """Submit what is neither complete nor queued; 0. InputError where everything is queued already, or SLURM refuses."""
    run, graph = order.run, order.stages()
    if order.is_done():
        console.print(f"nothing to do: {run.folder} is complete. {order.end()}", soft_wrap=True)
        return 0
    if "%" in str(run.folder.resolve()):
        raise InputError(
            f"{run.folder.resolve()} has a '%', which SLURM replaces in the names of its logs. Choose another --runs."
        )
    check_writable(run.folder)
    with RunLock(run.logs):
        state = GraphState(run.logs)
        queue = read_queue(run, state)
        if queue.active_ids():  # the recipe is theirs, also before the corpus is made
            refuse_while_queued(run, order.redo, queue.active_ids())
        order.begin(console)
        missing, outdated = plan(graph, profile, queue)
        if not missing:
            raise InputError(
                f"{run.folder} is being run by SLURM: job(s) {', '.join(queue.active_ids())}. Nothing is missing or failed; "
                f"watch it with `python -m launch status {shlex.quote(str(run.folder))} --watch`, or cancel it."
            )
        cancelled_file(run.logs).unlink(missing_ok=True)
        scancel(outdated)
        Submitter(run, profile, state, queue, console).submit(missing)
    console.print(f"watch it: python -m launch status {shlex.quote(str(run.folder))} --watch", soft_wrap=True)
    return 0


def was_submitted(run: Run) -> bool:
    """Return whether SLURM may have jobs of a run: also if the submission was killed before it was recorded."""
    return GraphState(run.logs).is_on_slurm or any((run.logs / "slurm").glob("*/code"))


def refuse_queued(run: Run, console: Console, moves: bool = False) -> None:
    """InputError where SLURM has jobs of this run, which must not be run here as well.

    `moves`: outputs are about to be moved; then not to know is refused too.
    """
    if not was_submitted(run):
        return
    state = GraphState(run.logs)
    if not has_slurm() and moves:
        raise InputError(
            f"{run.folder} was submitted to SLURM, and squeue is not here to ask whether its jobs still run. Expected to know "
            "before anything is done again; give the command on a login node of the cluster."
        )
    if not has_slurm():
        console.print(
            f"[yellow]{run.folder} was submitted to SLURM, and squeue is not here to ask whether it still runs",
            soft_wrap=True,
        )
        return
    active = read_queue(run, state).active_ids()
    if active:
        raise InputError(
            f"{run.folder} is being run by SLURM: job(s) {', '.join(active)}. Wait for them, or cancel them: "
            f"python -m launch cancel {shlex.quote(str(run.folder))}"
        )


def plan(graph: list[Stage], profile: Profile, queue: "RunQueue") -> tuple[list[Submission], list[str]]:
    """(what to submit, jobs to cancel before): everything that is neither complete nor queued, and what waits for that.

    Jobs that wait for one which failed never start, and those that were queued before a stage was added do not wait for it.
    """
    missing: list[Submission] = []
    outdated = [job.id for job in queue.all_jobs() if job.is_stuck]
    for stage in (stage for stage in graph if not stage.is_complete()):
        again = {submission.stage.name for submission in missing}
        active = queue.active(stage)
        if again & set(stage.needs) and all(job.state == "PENDING" for job in active):
            outdated += [job.id for job in active]
            queue.forget(stage)
        missing += _missing(stage, profile, queue)
    return missing, outdated


def _missing(stage: Stage, profile: Profile, queue: "RunQueue") -> Iterator[Submission]:
    """What must be submitted for a stage: nothing where it is queued; of shards those that are neither done nor queued."""
    if stage.kind != "workers":
        if not queue.active(stage):
            yield Submission(stage, profile.of(stage))
        return
    queued = queue.active_shards(stage)
    numbers = [shard.number for shard in stage.shards if shard.number not in queued and not shard.is_complete()]
    for first in range(0, len(numbers), MAX_ARRAY):
        yield Submission(stage, profile.of(stage), tuple(numbers[first : first + MAX_ARRAY]))


def run_id(run: Run) -> str:
    """Tells this run from others of the same name, in the names of its jobs: SLURM's numbers may begin again."""
    return hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:8]


def job_name(run: Run, stage: str) -> str:
    return f"{run.recipe.name}.{stage}.{run_id(run)}"


class RunQueue:
    """Those jobs in SLURM's queue that belong to a run, by their names."""

    def __init__(self, run: Run, state: GraphState, queued: list[QueuedJob]) -> None:
        prefix, suffix = f"{run.recipe.name}.", f".{run_id(run)}"
        self._jobs: dict[str, list[QueuedJob]] = {}
        for job in queued:
            if job.name.startswith(prefix) and job.name.endswith(suffix):
                self._jobs.setdefault(job.name.removeprefix(prefix).removesuffix(suffix), []).append(job)
        self._state = state

    def jobs(self, stage: str) -> list[QueuedJob]:
        return self._jobs.get(stage, [])

    def all_jobs(self) -> list[QueuedJob]:
        return [job for jobs in self._jobs.values() for job in jobs]

    def active(self, stage: Stage) -> list[QueuedJob]:
        return [job for job in self.jobs(stage.name) if job.is_active]

    def active_ids(self) -> list[str]:
        """Of whole arrays."""
        return sorted({job.id.split("_")[0] for job in self.all_jobs() if job.is_active}, key=int)

    def active_shards(self, stage: Stage) -> set[int]:
        """The shards that queued tasks make."""
        return {shard for job in self.active(stage) for shard in self._shards_of(stage, job)}

    def _shards_of(self, stage: Stage, job: QueuedJob) -> list[int]:
        array, _, index = job.id.partition("_")
        known = {entry["job"]: entry["shards"] for entry in self._state.jobs(stage.name)}
        if array not in known:  # killed between the submission and its record
            return [shard.number for shard in stage.shards]
        return [known[array][int(index or 0)]]

    def forget(self, stage: Stage) -> None:
        """Its jobs are about to be cancelled."""
        self._jobs.pop(stage.name, None)


def read_queue(run: Run, state: GraphState) -> RunQueue:
    """InputError where SLURM does not answer."""
    return RunQueue(run, state, queued_jobs())


class Submitter:
    """Submits stages in order, so that each finds the jobs of those that it needs."""

    def __init__(self, run: Run, profile: Profile, state: GraphState, queue: RunQueue, console: Console) -> None:
        self._run, self._profile, self._state, self._queue, self._console = run, profile, state, queue, console
        self._token = secrets.token_hex(4)
        self._folder = run.logs.resolve() / "slurm" / self._token
        self._submitted: dict[str, list[str]] = {}

    def submit(self, missing: list[Submission]) -> None:
        """InputError where sbatch refuses; what was submitted before stays, and the same command submits the rest."""
        snapshot(self._folder)
        for submission in missing:
            name, after = submission.stage.name, self._dependency(submission.stage)
            try:
                job = self._sbatch(submission, after)
            except Exception as error:  # submitit raises several kinds, each with sbatch's own words
                raise InputError(
                    f"SLURM did not take {name}: {str(error).strip()}\nMend the profile; the same command then submits "
                    "this and what follows, and leaves alone what is queued."
                ) from error
            self._submitted.setdefault(name, []).append(job)
            self._state.submitted(name, job, submission.shards, self._token)
            shards = "" if submission.shards is None else f", {len(submission.shards)} shard(s)"
            self._console.print(f"{name}: job {job}{shards}{f', {after}' if after else ''}", highlight=False)

    def _dependency(self, stage: Stage) -> str:
        """SLURM's words for: after the jobs of the stages that this one needs and that are not complete."""
        terms = []
        for need in (needed for needed in stages(self._run) if needed.name in stage.needs and not needed.is_complete()):
            terms += [f"afterok:{job}" for job in self._submitted.get(need.name, [])]
            queued = {job.id.split("_")[0] for job in self._queue.active(need)}
            # An array that has lost a task never ends well; the merge looks itself whether every shard is there.
            word = "afterany" if need.kind == "workers" else "afterok"
            terms += [f"{word}:{job}" for job in sorted(queued)]
        return ",".join(terms)

    def _sbatch(self, submission: Submission, after: str) -> str:
        setup = setup_lines(submission.resources, self._folder)
        tasks = [self.task(submission, shard) for shard in submission.shards or (None,)]
        return send(tasks, sbatch_parameters(self._run, submission, after, setup), self._folder)

    def task(self, submission: Submission, shard: int | None) -> Task:
        stage, resources = submission.stage, submission.resources
        line = command(replace(self._run, folder=self._run.folder.resolve()), stage)
        name = stage.name if shard is None else shard_name(stage.name, shard)
        line += [] if shard is None else ["--shard", str(shard)]
        task = task_on(resources, name, self._token, tuple(line), self._run.logs.resolve())
        return replace(
            task,
            max_requeues=self._profile.max_requeues,
            max_retries=self._profile.max_retries,
            begins_anew=stage.job not in CONTINUED,
        )


def sbatch_parameters(run: Run, submission: Submission, after: str, setup: list[str]) -> dict[str, Any]:
    """What submitit hands to sbatch for a stage."""
    name, shards = job_name(run, submission.stage.name), len(submission.shards or ())
    return resource_parameters(name, submission.resources, setup, after, shards)
