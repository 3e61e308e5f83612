"""Recipes, profiles and commands of the cluster tests."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from distill.files import read_json, read_jsonl, sha256_file
from tests.cluster.conftest import Cluster
from tests.conftest import PATIENCE_SECONDS, ROOT

PROFILE: dict[str, Any] = {
    "partition": "low",
    "processes_per_node": 2,
    "memory_gb_per_process": 2,
    "time_limit_min": 30,
    "signal_lead_seconds": 20,
    "environment": {"OMP_NUM_THREADS": "1"},
}
LABELS: dict[str, Any] = {"t": {"shards": 4, "num_beams": 1, "max_new_tokens": 8}}
STUDENT: dict[str, Any] = {"teacher": "t", "decoder_layers": 1}


def launch(
    cluster: Cluster, *arguments: str | Path, code: int = 0, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`python -m launch ...` on the cluster's login node, which must end with `code`."""
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=cluster.environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def write_profile(folder: Path, **changes: Any) -> Path:
    return write_yaml(folder / "profile.yaml", PROFILE | changes)


def write_recipe(folder: Path, teacher: Path, corpus: Path, **changes: Any) -> Path:
    """Tiny: a teacher, and one student that reads the gold summaries; a few steps."""
    recipe = {
        "name": "tiny",
        "corpus": {"train": str(corpus), "max_source_tokens": 40, "max_target_tokens": 16},
        "teachers": {"t": {"model": str(teacher)}},
        "students": {"a": STUDENT},
        "train": {"batch_examples": 8, "steps": 6, "warmup_steps": 2, "save_every_steps": 3, "log_every_steps": 1},
        "evaluate": {"every_steps": 3, "examples": 8, "before_training": False, "shards": 2},
        "benchmark": {"documents": 8, "rounds": 1, "batch_sizes": [4]},
    }
    return write_yaml(folder / "recipe.yaml", recipe | changes)


def write_yaml(file: Path, value: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    return file


def job_of(run: Path, stage: str) -> str:
    """The id of the newest SLURM job of a stage."""
    job: str = read_json(run / "logs" / "graph.json")[stage]["jobs"][-1]["job"]
    return job


def attempts(run: Path, name: str) -> list[dict[str, Any]]:
    """What a stage's or shard's jobs recorded: starts and ends."""
    return read_jsonl(run / "logs" / "slurm" / "attempts" / f"{name}.jsonl")


def codes(run: Path, name: str) -> list[int]:
    """The exit codes of its attempts."""
    return [row["code"] for row in attempts(run, name) if row["event"] == "end"]


def steps(run: Path, student: str = "a") -> list[int]:
    """The recorded steps of a training."""
    return [row["step"] for row in read_jsonl(run / "students" / student / "metrics.jsonl") if "loss" in row]


def weights(run: Path, student: str = "a") -> str:
    return sha256_file(run / "students" / student / "final" / "model.safetensors")


def wait(condition: Callable[[], bool], run: Path) -> None:
    """Until it is so; else the ends of the run's logs are shown."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_SECONDS} s\n{ends_of_logs(run)}"
        time.sleep(0.2)


def ends_of_logs(run: Path) -> str:
    logs = sorted((run / "logs").glob("*.log"), key=lambda file: file.stat().st_mtime)[-4:]
    parts = [f"--- {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-1500:]}" for log in logs]
    return "\n".join(
        [*parts, json.dumps({file.stem: read_jsonl(file)[-2:] for file in run.glob("logs/slurm/attempts/*")})]
    )


def wait_for_report(run: Path) -> None:
    wait((run / "report" / "report.md").exists, run)


def states(cluster: Cluster, run: Path) -> dict[str, str]:
    """What `launch status` says of each stage."""
    lines = [line.split() for line in launch(cluster, "status", run).stdout.splitlines()]
    known = ("waiting", "running", "preempted", "stopped", "failed", "cancelled", "done")
    return {line[0]: line[1] for line in lines if len(line) > 1 and line[1] in known}


def processes_of(run: Path, words: str = "") -> list[int]:
    """The processes of a run's jobs, on whatever node, whose command has these words."""
    lines = {int(folder.name): command_line(folder) for folder in Path("/proc").glob("[0-9]*")}
    begins = f"{sys.executable} -m jobs."
    return [
        process for process, line in lines.items() if line.startswith(begins) and f"{run}/" in line and words in line
    ]


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has ended
        return ""
