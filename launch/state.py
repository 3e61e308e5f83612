"""What the launcher knows of the stages that it started: logs/graph.json."""

import os
import time
from pathlib import Path
from typing import Any

from distill.files import read_json, write_json


class GraphState:
    """The state file of a run's graph; one launcher writes it."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._file = logs / "graph.json"
        self.stages: dict[str, dict[str, Any]] = read_json(self._file) if self._file.exists() else {}

    def started(self, stage: str, command: list[str], process: int) -> None:
        self.stages[stage] = {"state": "running", "started": time.time(), "command": command, "process": process}
        write_json(self._file, self.stages)

    def ended(self, stage: str, exit_code: int) -> None:
        state = "done" if exit_code == 0 else "failed"
        self.stages[stage] |= {"state": state, "ended": time.time(), "exit_code": exit_code}
        write_json(self._file, self.stages)


def stage_state(stages: dict[str, dict[str, Any]], name: str, is_complete: bool) -> str:
    """done, running, failed, stopped or waiting: the files have the last word."""
    if is_complete:
        return "done"
    entry = stages.get(name, {})
    if entry.get("state") == "running":
        return "running" if _is_alive(entry["process"]) else "stopped"
    return "failed" if entry.get("state") == "failed" else "waiting"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and somebody else's
        return True
    return True
