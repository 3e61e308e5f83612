"""One job, or one array, for SLURM: what it asks for, the code it runs, its submission through submitit."""

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.preemption import GPU_VARIABLE
from launch.profile import Resources
from launch.task import Task

ROOT = Path(__file__).parent.parent
PACKAGES = ("distill", "jobs", "launch")


def send(tasks: list[Task], parameters: dict[str, Any], folder: Path) -> str:
    """Submit tasks as one job, of several as an array; its number."""
    from submitit import SlurmExecutor

    executor = SlurmExecutor(folder)
    executor.update_parameters(**parameters)
    with _outside_of_a_job(), executor.batch():
        jobs = [executor.submit(task) for task in tasks]
    return str(jobs[0].job_id).partition("_")[0]


def task_on(resources: Resources, name: str, submission: str, command: tuple[str, ...], folder: Path) -> Task:
    """A task that comes back after no stop and no failure."""
    needs_gpu = {GPU_VARIABLE: str(resources.gpus_per_node)} if resources.gpus_per_node else {}
    return Task(
        name=name,
        submission=submission,
        command=command,
        folder=folder,
        nodes=resources.nodes,
        processes_per_node=resources.processes,
        cpus_per_process=resources.cpus_per_process,
        environment=needs_gpu | {"OMP_NUM_THREADS": str(resources.cpus_per_process)} | resources.environment,
        grace_seconds=resources.grace_seconds,
        signal_lead_seconds=resources.signal_lead_seconds,
    )


def resource_parameters(
    job: str, asked: Resources, setup: list[str], after: str = "", shards: int = 0
) -> dict[str, Any]:
    """What submitit hands to sbatch. Nothing of a user's goes into a line of shell but the profile's own setup."""
    memory = asked.memory_gb_per_process
    parameters = {
        "job_name": job,
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "time": asked.time_limit_min,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.processes,
        "cpus_per_task": asked.cpus_per_process,
        "gpus_per_node": asked.gpus_per_node or None,
        "mem": None if memory is None else f"{round(memory * asked.processes * 1024)}M",
        "signal_delay_s": asked.signal_lead_seconds,
        "dependency": after or None,
        "array_parallelism": asked.array_throttle or shards or None,
        "setup": setup,
        "stderr_to_stdout": True,
        "use_srun": False,
    }
    always: dict[str, Any] = {"requeue": True, "chdir": str(Path.cwd())}
    if after:
        always["kill-on-invalid-dep"] = "yes"
    given = {key: value for key, value in parameters.items() if value is not None}
    more = {key: value for key, value in (always | asked.options).items() if value is not False}
    return given | {"additional_parameters": more}


def snapshot(folder: Path) -> None:
    """The code as it is now: edits after the submission change nothing."""
    for package in PACKAGES:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / "code" / package, ignore=skipped)


def setup_lines(resources: Resources, folder: Path) -> list[str]:
    """The user's lines, then the code as it was at the submission, whatever lies in the folder or is installed."""
    path = shlex.quote(str(folder / "code"))
    return [*resources.setup, f"export PYTHONSAFEPATH=1 PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}"]


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hide the variables of a job in which this runs: what is submitted would take them for its own."""
    hidden = {k: v for k, v in os.environ.items() if k.startswith(("SLURM_", "SBATCH_", "SRUN_")) and k != "SLURM_CONF"}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)
