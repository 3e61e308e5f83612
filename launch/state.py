"""What the launcher knows of the stages that it started: logs/graph.json."""

import os
import socket
import time
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.files import read_json, write_json
from distill.preemption import StopFlag

EXIT_STOPPED = 75
ORPHAN_SECONDS = 120.0


def cancelled_file(logs: Path) -> Path:
    """The file that `launch cancel` leaves, until the run is started or submitted again."""
    return logs / "cancelled"


class GraphState:
    """The state file of a run's graph; one launcher writes it."""

    def __init__(self, logs: Path) -> None:
        self._file = logs / "graph.json"
        self.stages: dict[str, dict[str, Any]] = read_json(self._file) if self._file.exists() else {}

    def started(self, stage: str, command: list[str], processes: list[int]) -> None:
        began = {"started": time.time(), "command": command, "host": socket.gethostname(), "processes": processes}
        self.stages[stage] = {"state": "running", **began}
        write_json(self._file, self.stages)

    def submitted(self, stage: str, job: str, shards: tuple[int, ...] | None, submission: str) -> None:
        """`job` of SLURM, an array where it makes `shards`: its task i makes shards[i]."""
        jobs = [*self.jobs(stage), {"job": job, "shards": shards, "submission": submission}]
        self.stages[stage] = {"state": "submitted", "submitted": time.time(), "jobs": jobs}
        write_json(self._file, self.stages)

    @property
    def is_on_slurm(self) -> bool:
        """True where any stage was submitted there."""
        return any("jobs" in entry for entry in self.stages.values())

    def jobs(self, stage: str) -> list[dict[str, Any]]:
        """SLURM's jobs of a stage, the newest last."""
        jobs: list[dict[str, Any]] = self.stages.get(stage, {}).get("jobs", [])
        return jobs

    def ended(self, stage: str, exit_code: int, reason: str | None = None, cancelled_by: str | None = None) -> None:
        """Record the end of a stage: why it failed, or what the user cancelled it with."""
        state = {0: "done", EXIT_STOPPED: "stopped"}.get(exit_code, "failed")
        if cancelled_by:
            state = "cancelled"
        ended = {"state": state, "ended": time.time(), "exit_code": exit_code}
        self.stages[stage] |= ended | {"reason": reason, "cancelled_by": cancelled_by}
        write_json(self._file, self.stages)

    def wait_for_orphans(self, stop: StopFlag) -> None:
        """Wait for the processes of a launcher that was killed: they were asked to save and leave when it died.

        InputError where they do not.
        """
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (orphans := self._orphans()) and not stop.is_set():
            if time.monotonic() > deadline:
                raise InputError(
                    f"processes {', '.join(map(str, orphans))} of a launcher that is dead still work on this run. "
                    "Expected them to save and leave; stop them, then run the same command again."
                )
            time.sleep(0.5)

    def _orphans(self) -> list[int]:
        running = [entry for entry in self.stages.values() if entry["state"] == "running"]
        here = [entry for entry in running if entry["host"] == socket.gethostname()]
        return [process for entry in here for process in entry["processes"] if _is_job(process)]


def _is_job(process: int) -> bool:
    """True where a process is alive and one of ours: its number may have gone to another since."""
    try:
        return b"jobs." in Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def stage_state(stages: dict[str, dict[str, Any]], name: str, is_complete: bool) -> str:
    """done, running, failed, stopped or waiting: the files have the last word."""
    if is_complete:
        return "done"
    entry = stages.get(name, {})
    if entry.get("state") == "running":
        if entry["host"] != socket.gethostname():
            return "running"  # as far as one can tell from here
        return "running" if any(_is_alive(process) for process in entry["processes"]) else "stopped"
    return entry["state"] if entry.get("state") in ("failed", "stopped", "cancelled") else "waiting"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and somebody else's
        return True
    return True
