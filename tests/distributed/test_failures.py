"""What a launcher on one machine says of a real failure: a process that is killed, a cancelled run, wrong input twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.files import read_json, read_jsonl
from tests.conftest import ROOT, run_command, write_corpus
from tests.distributed.test_chain import launch, write_recipe

pytestmark = pytest.mark.distributed


def wait(condition: Callable[[], object], launcher: subprocess.Popen[str]) -> None:
    while not condition():
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.2)


def test_a_killed_training_process_and_a_cancelled_run(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    train = {"steps": 1_000_000, "save_every_steps": 1_000_000, "log_every_steps": 1}
    evaluate = {"every_steps": 1_000_000, "before_training": False}
    recipe = write_recipe(tmp_path, students={}, labels={}, train=train, evaluate=evaluate)
    run = tmp_path / "runs" / "tiny"
    command = [sys.executable, "-m", "launch", "run", str(recipe), "--runs", str(run.parent), "--processes", "2"]

    def start() -> subprocess.Popen[str]:
        """Start the launcher, and return it once the training takes steps."""
        began = time.time()
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        metrics = run / "teachers" / "own" / "metrics.jsonl"
        wait(lambda: any("loss" in row and row["time"] > began for row in read_jsonl(metrics)), launcher)
        return launcher

    launcher = start()
    os.kill(read_json(run / "logs" / "graph.json")["train-teacher-own"]["processes"][1], signal.SIGKILL)
    out, _ = launcher.communicate()
    reason = (
        "one of 2 processes was killed (SIGKILL, often out of memory): lower train.micro_batch_tokens or --processes"
    )
    assert launcher.returncode == 137 and reason in out, out
    assert "Traceback" not in out and str(run / "logs" / "train-teacher-own.log") in out
    assert reason in " ".join(run_command("launch", "status", str(run)).stdout.split())

    launcher = start()
    cancelled = run_command("launch", "cancel", str(run))
    assert cancelled.returncode == 0 and f"cancelled process {launcher.pid}" in cancelled.stdout, cancelled.stderr
    out, _ = launcher.communicate()
    assert launcher.returncode == 75 and "train-teacher-own: cancelled by launch cancel after" in out, out
    status = run_command("launch", "status", str(run)).stdout
    assert "cancelled (by launch cancel)" in " ".join(status.split()) and "failed" not in status

    launcher = start()
    launcher.send_signal(signal.SIGINT)
    out, _ = launcher.communicate()
    assert launcher.returncode == 75 and "cancelled by Ctrl-C; run the same command again to continue" in out, out
    assert "cancelled (by Ctrl-C)" in " ".join(run_command("launch", "status", str(run)).stdout.split())


def test_a_second_failure_shows_its_own_reason_alone(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    recipe = write_recipe(tmp_path)
    good = (corpus / "validation.jsonl").read_text()
    for row, said in (("[1]\n", "line 9: list given"), ('{"document": "x"}\n', "line 9: no field 'summary'")):
        (corpus / "validation.jsonl").write_text(good + row)
        result = launch(recipe)
        assert result.returncode == 2
        begun, first, *lines = [line for line in result.stdout.splitlines() if line.strip()]
        assert "prepare: begins at" in begun
        assert "prepare: wrong input after" in first
        assert len(lines) == 1 and said in lines[0] and lines[0].startswith(str(corpus)), result.stdout
