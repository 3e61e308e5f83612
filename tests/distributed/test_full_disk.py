"""A disk that fills: one line and 100 (README), nothing half-written, and the same command goes on once there is room."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from distill.files import read_jsonl
from tests.conftest import write_corpus
from tests.forked import run_forked
from tests.tiny import save_tiny

pytestmark = pytest.mark.distributed

RECIPE = {
    "name": "full",
    "corpus": {"train": "corpus", "max_target_tokens": 12},
    "teachers": {"t": {"model": "./model"}},
    "students": {"s": {"teacher": "t", "decoder_layers": 2}},
    "train": {"steps": 4, "save_every_steps": 2, "batch_examples": 8, "warmup_steps": 1},
    "evaluate": {"every_steps": 3, "examples": 2, "num_beams": 1},
}
# The job, the bytes that are free while it runs, and what it could not write then.
STAGES = [
    (("jobs.prepare", "r.yaml"), 24_000, "corpus"),
    (("jobs.shrink", "r.yaml", "--student", "s"), 30_000, "students/s/initial"),
    (("jobs.train", "r.yaml", "--student", "s"), 120_000, "students/s/checkpoints/step-00000002"),
    (("jobs.train", "r.yaml", "--student", "s"), 430_000, "students/s/best"),
]


def leave_free(disk: Path, size: int) -> Path:
    ballast, free = disk / "ballast", os.statvfs(disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_bsize - size))
    return ballast


def test_a_full_disk_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    save_tiny(tmp_path / "model", "BART")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    for number, (command, free, unwritten) in enumerate(STAGES):
        ballast = leave_free(small_disk, free)
        result = run_forked(*command, "--runs", str(small_disk), cwd=tmp_path)
        assert result.returncode == 100 and "Traceback" not in result.stderr, result.stderr
        assert f"ERROR jobs.start: cannot write to {small_disk}: " in result.stderr
        assert "make room (or the folder writable), and run the same command again to continue." in result.stderr
        assert not (small_disk / "full" / unwritten).exists(), result.stderr
        assert not list(small_disk.rglob("*.partial*"))
        ballast.unlink()
        if STAGES[number + 1 : number + 2] and STAGES[number + 1][0] == command:
            continue
        result = run_forked(*command, "--runs", str(small_disk), cwd=tmp_path)
        assert result.returncode == 0 and (small_disk / "full" / unwritten).exists(), result.stderr
    assert "resuming at step 2 of 4" in result.stderr
    losses = [
        row["step"] for row in read_jsonl(small_disk / "full" / "students" / "s" / "metrics.jsonl") if "loss" in row
    ]
    assert losses == [1, 4]
    shutil.rmtree(small_disk / "full")
