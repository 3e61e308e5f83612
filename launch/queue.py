"""What SLURM says about jobs: squeue, and sacct where the cluster keeps accounts. Nothing of submitit, no torch."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from distill.errors import InputError

ANSWER_SECONDS = 30.0
IDS_AT_ONCE = 500  # of one command line
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
"""States that a job keeps. PREEMPTED is that of a partition which cancels; one that is requeued is PENDING again."""
OF_THE_USER = ("SQUEUE_", "SACCT_", "SCONTROL_", "SCANCEL_", "SLURM_TIME_FORMAT")
"""Variables that change what SLURM's commands show."""
NEVER = "DependencyNeverSatisfied"
DEPENDENCY = "Dependency"
REASONS = {
    "AssocGrpCpuLimit": "your account uses as many CPUs as it may",
    "AssocGrpGRES": "your account uses as many GPUs as it may",
    "AssocGrpGRESMinutes": "the GPU time of your account is used up",
    "AssocMaxJobsLimit": "your account has as many jobs as it may",
    "BeginTime": "it may begin again in some minutes",
    DEPENDENCY: "waits for stages before it",
    "JobArrayTaskLimit": "as many shards run as array_throttle allows",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "you hold it; scontrol release lets it go",
    "Licenses": "waits for a licence",
    "NodeDown": "its node is down",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition takes no jobs now",
    "PartitionNodeLimit": "asks for more nodes than its partition allows, and never starts",
    "PartitionTimeLimit": "asks for more time than its partition allows, and never starts",
    "Priority": "jobs of a higher priority are before it",
    "QOSGrpGRES": "all GPUs of its QOS are in use",
    "QOSMaxGRESPerUser": "you use as many GPUs as its QOS allows",
    "QOSMaxJobsPerUserLimit": "you have as many jobs as its QOS allows",
    "QOSMaxSubmitJobPerUserLimit": "you have as many jobs as its QOS allows",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "Reservation": "waits for its reservation",
    "Resources": "waits for free nodes",
}
"""SLURM's most common reasons of waiting, in words."""


@dataclass(frozen=True)
class QueuedJob:
    """One job, or one task of an array."""

    id: str  # "17", or "17_3" for a task of an array
    name: str
    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def why_it_waits(self) -> str:
        """The reason in words, with SLURM's own behind it; empty for a job that does not wait."""
        if self.state != "PENDING" or self.reason in ("", "None"):
            return ""
        known = self.reason.split(",")[0].strip("()")  # "ReqNodeNotAvail, UnavailableNodes:n1"
        return f"{REASONS[known]} ({known})" if known in REASONS else self.reason

    @property
    def is_active(self) -> bool:
        """True where it runs, or may still run."""
        return self.state not in ENDED and self.reason != NEVER

    @property
    def is_stuck(self) -> bool:
        """True where it waits for a job that has failed."""
        return self.state == "PENDING" and self.reason == NEVER


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands; one that takes too long has failed.

    In a session of its own: inside a job, a signal to the job's processes must not end it half way.
    """
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_SECONDS,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith(OF_THE_USER)},
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {ANSWER_SECONDS:.0f} s")


def has_slurm() -> bool:
    return shutil.which("squeue") is not None


def queued_jobs() -> list[QueuedJob]:
    """All jobs of this user that SLURM still knows, tasks of arrays one by one. InputError where it does not answer."""
    if not has_slurm():
        raise InputError("squeue was not found, expected the commands of SLURM here. Use a login node of the cluster.")
    asked = ask("squeue", "--noheader", "--array", "--states=all", "--me", "--format=%i|%T|%r|%N|%j")
    if asked.returncode:
        raise InputError(f"SLURM does not answer: {asked.stderr.strip()}. Try again when it does.")
    return [_parse(line) for line in asked.stdout.splitlines()]


def _parse(line: str) -> QueuedJob:
    job, state, reason, nodes, name = line.split("|", 4)
    return QueuedJob(job, name, state.split()[0], reason, nodes)


def scancel(jobs: list[str]) -> None:
    """Ask SLURM to end jobs; those that have ended already do not matter."""
    for first in range(0, len(jobs), IDS_AT_ONCE):
        ask("scancel", *jobs[first : first + IDS_AT_ONCE])


def ended_jobs(ids: list[str]) -> dict[str, str]:
    """How jobs ended, by id, from the accounts; empty where the cluster keeps none."""
    if not ids or shutil.which("sacct") is None:
        return {}
    asked = ask(
        "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "--jobs=" + ",".join(ids)
    )
    pairs = [line.split("|", 1) for line in asked.stdout.splitlines()] if asked.returncode == 0 else []
    return {job: state.split()[0] for job, state in pairs}


def is_running(job: str, restart: int) -> bool | None:
    """Whether this attempt at a job goes on; None where SLURM does not answer.

    It does not while the job completes (as one does that was cancelled), nor where SLURM has begun it again elsewhere.
    """
    asked = ask("scontrol", "show", "job", "--oneliner", job)
    if asked.returncode:
        return None
    restarts = re.search(r" Restarts=(\d+) ", asked.stdout)
    return " JobState=RUNNING " in asked.stdout and restarts is not None and int(restarts[1]) == restart
