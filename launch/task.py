"""What runs inside a SLURM job: a stage's command on all its processes, and what its end means for the job.

submitit starts this on the first node; the processes are started from here by srun. So SLURM's signals go to the processes
themselves, which agree, save and leave with 75, and the job is requeued when all have left. submitit's own handler would act
as soon as rank 0 has the signal, and its count of time limits takes every preemption of a short job for one.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from distill.claim import slurm_attempt
from distill.failure import FAILURES_VARIABLE, read_failures
from distill.files import append_jsonl, read_jsonl
from distill.preemption import END_VARIABLE, GRACE_VARIABLE, SIGNALS
from launch.failures import EXIT_INPUT, Place, explain_srun
from launch.queue import ask, is_running
from launch.state import EXIT_STOPPED, cancelled_file

UNHEARD = (128 + signal.SIGUSR1, 128 + signal.SIGUSR2)
"""Of a process that SLURM's signal ended before it listened: it had not begun anything."""
EARLY_SECONDS = 75.0  # SLURM may send the signal of a time limit a minute before it was asked to
OF_OTHER_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", END_VARIABLE, GRACE_VARIABLE)
"""What lay in the environment of the submission would be taken for this job's."""
PATIENCE_SECONDS = 600.0
"""How long SLURM's controller may be away when a job wants to be requeued."""


class StageFailedError(Exception):
    """The stage failed, and is not tried again."""


@dataclass(frozen=True)
class Task:
    """A stage, or one shard of it, as one SLURM job (or one task of an array)."""

    name: str
    submission: str
    """Tells the attempts of one submission from those of earlier ones."""
    command: tuple[str, ...]
    folder: Path
    """The run's folder of logs."""
    nodes: int = 1
    processes_per_node: int = 1
    cpus_per_process: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    grace_seconds: float | None = None
    max_requeues: int = 0
    max_retries: int = 0
    begins_anew: bool = False
    """Nothing of an attempt is left to the next: what does not fit the time limit never will."""
    signal_lead_seconds: int = 0

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def attempts(self) -> Path:
        """A record of every start and every end, for the limits and for `launch status`."""
        return attempts_file(self.folder, self.name)

    def __call__(self) -> None:
        """StageFailedError where the stage failed for good; else the process ends here.

        Nothing is returned: submitit would pickle it, and a pickle that is killed half way blocks the next attempt.
        """
        for number in SIGNALS:  # in place of submitit's handlers: the processes have these signals from SLURM
            signal.signal(number, lambda *_: None)
        node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
        self._record(event="start", restart=_restart(), host=node)
        end = _end_time(ask("squeue", "--noheader", "--format=%e", f"--jobs={job_id()}").stdout)
        code, why = self._run(end)
        is_cancelled = code != 0 and cancelled_file(self.folder).exists()
        self._record(event="end", code=code, reason=why, cancelled=is_cancelled)
        if code == 0:
            _leave(0)
        if why:
            self._say(why)
        reason = self._why_not_again(code, end) or self._requeue(code)
        raise StageFailedError(f"{self.name} ended with exit code {code} {reason}; its log: {self.log}")

    def _run(self, end: float | None) -> tuple[int, str | None]:
        """Return srun's exit code and, if it is a failure, why.

        The code is the highest of its processes', 128 + n if signal n ended one; 75 for all stops.
        """
        command = [
            "srun",
            f"--nodes={self.nodes}",
            f"--ntasks={self.nodes * self.processes_per_node}",
            f"--ntasks-per-node={self.processes_per_node}",
            f"--cpus-per-task={self.cpus_per_process}",  # srun does not take it from the job
            "--export=ALL",
            "--kill-on-bad-exit=1",  # the others would wait for the one that is gone
            *self.command,
        ]
        own = f"{self.name}.{job_id()}.{_restart()}"  # this attempt's alone
        failures = self.folder / "slurm" / "failures" / own
        failures.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name not in OF_OTHER_LAUNCHERS}
        environment = kept | self.environment | self._limits(end) | {FAILURES_VARIABLE: str(failures)}
        with self.log.open("ab") as log:
            begin = self.log.stat().st_size
            self._say(" ".join(command))
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, check=False
            ).returncode
        reported = read_failures(failures)
        shutil.rmtree(failures, ignore_errors=True)
        code = code if code >= 0 else 128 - code
        if code and any(failure.exit_code == EXIT_INPUT for failure in reported):
            code = EXIT_INPUT  # of the one rank that knew; the others failed with it
        if code in (0, EXIT_STOPPED, *UNHEARD):
            return (EXIT_STOPPED if code else 0), None
        place = Place(self.name, self.nodes * self.processes_per_node, is_on_slurm=True)
        return code, explain_srun(place, code, reported, self.log, begin)

    def _limits(self, end: float | None) -> dict[str, str]:
        """When SLURM kills the job, for its processes; older versions do not tell them."""
        limits = {} if self.grace_seconds is None else {GRACE_VARIABLE: str(self.grace_seconds)}
        return limits if end is None else limits | {END_VARIABLE: str(int(end))}

    def _why_not_again(self, code: int, end: float | None = None) -> str | None:
        """Why a job that ended with this code is not requeued; None where it should be."""
        if code == EXIT_INPUT:
            return "(wrong input)"
        near_end = end is not None and time.time() > end - self.signal_lead_seconds - EARLY_SECONDS
        if code == EXIT_STOPPED and self.begins_anew and near_end:
            return "at its time limit, and would begin anew: raise time_limit_min of this stage"
        ends = [row["code"] for row in read_jsonl(self.attempts) if row["event"] == "end" and self._is_own(row)]
        stops = ends.count(EXIT_STOPPED)
        failures = len([code for code in ends if code not in (0, EXIT_STOPPED)])
        if code == EXIT_STOPPED and stops > self.max_requeues:
            return f"after {stops} stops (max_requeues: {self.max_requeues}); submit again to continue"
        if code != EXIT_STOPPED and failures > self.max_retries:
            return f"after {failures} failures (max_retries: {self.max_retries})"
        return "and the run was cancelled" if cancelled_file(self.folder).exists() else None

    def _requeue(self, code: int) -> str:
        """Leave the process once SLURM has taken the job back; why it did not. Its controller may be away for a while."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            goes_on = is_running(job_id(), _restart())
            if goes_on is False:
                # A cancelled job that is requeued would come back, one that SLURM has requeued would be ended.
                return "while SLURM was ending the job"
            if goes_on:
                asked = ask("scontrol", "requeue", job_id())
                if asked.returncode == 0:
                    self._say(f"exit code {code}: job {job_id()} is requeued")
                    _leave(code)
                if "disabled" in asked.stderr or "ermission" in asked.stderr:
                    return f"and SLURM refuses to requeue it ({asked.stderr.strip()}); submit again to continue"
            if time.monotonic() > deadline:
                return "and SLURM does not answer; submit again to continue"
            time.sleep(5)

    def _is_own(self, row: dict[str, Any]) -> bool:
        return bool(row["submission"] == self.submission)

    def _record(self, **values: Any) -> None:
        self.attempts.parent.mkdir(parents=True, exist_ok=True)
        row = {"submission": self.submission, "job": job_id(), "time": time.time(), **values}
        append_jsonl(self.attempts, row)

    def _say(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [SLURM job {job_id()}] {text}\n")


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def attempts_file(logs: Path, name: str) -> Path:
    return logs / "slurm" / "attempts" / f"{name}.jsonl"


def _restart() -> int:
    """How often SLURM has begun this job before."""
    return int(slurm_attempt()["restart"])


def job_id() -> str:
    """Of this job; of a task of an array `17_3`, since the last task has the id of the whole array as well."""
    return str(slurm_attempt()["job"])


def _end_time(text: str) -> float | None:
    """Of squeue's `2026-11-21T16:30:00`, in seconds since 1970; None where the job has no limit."""
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        return None
