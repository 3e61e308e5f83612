"""Who may write a training's outputs: its newest attempt. An older one that is still alive notices, and stops.

Two attempts can be alive at once: a second one by mistake, or one on a node that was cut off from the network and goes on
while SLURM runs the job elsewhere. SLURM counts the restarts of a job, so that an attempt which was merely slow to begin
cannot push aside one that was begun later. (Shards have claims of their own, see shards.py.)
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.files import read_json, write_text


class TakenOverError(InputError):
    """Another attempt has the work, or has finished it."""


class Claim:
    """One attempt's claim; `check` before every write."""

    def __init__(self, file: Path, environment: Mapping[str, str] = os.environ) -> None:
        """Take the work. TakenOverError where a later attempt of the same SLURM job has it."""
        self._file = file
        self._own: dict[str, Any] = {
            **slurm_attempt(environment),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "id": secrets.token_hex(8),
        }
        holder = read_json(file) if file.exists() else None
        same_job = holder is not None and self._own["job"] is not None and holder["job"] == self._own["job"]
        if holder is not None and same_job and holder["restart"] > self._own["restart"]:
            raise TakenOverError(self._taken_over(holder))
        write_text(file, json.dumps(self._own))

    def check(self) -> None:
        """TakenOverError where another attempt has the work now."""
        try:
            holder = read_json(self._file)
        except FileNotFoundError:
            raise TakenOverError(f"{self._file} is gone, so this attempt stops. Start it again.") from None
        if holder != self._own:
            raise TakenOverError(self._taken_over(holder))

    def _taken_over(self, holder: dict[str, Any]) -> str:
        job = f"job {holder['job']}, restart {holder['restart']}, " if holder["job"] else ""
        return (
            f"{self._file.parent} was taken over by another attempt ({job}process {holder['process']} on "
            f"{holder['host']}, since {holder['since']}), so this one stops and writes nothing more. "
            "Expected one training at a time."
        )


def slurm_attempt(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """SLURM's name of this job (None outside SLURM), and how often it was begun before."""
    job = environment.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return {"job": job, "restart": int(environment.get("SLURM_RESTART_COUNT") or 0)}
