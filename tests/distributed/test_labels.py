"""Label jobs that are killed, crowded, and run out of disk, as processes."""

import json
import logging
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_model, write_corpus
from tests.drills.labels import drill, write_recipe
from tests.forked import run_forked

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    write_corpus(folder / "given", train=60)
    make_model("bart", tokenizer, noise=0.3).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    recipe = write_recipe(
        folder / "corpus", folder / "given" / "train.jsonl", folder / "teacher", 60, shards=4, batch_tokens=128
    )
    text = recipe.read_text().replace("max_source_tokens: 128", "max_source_tokens: 40")
    recipe.write_text(text)
    return recipe


def test_chaos(recipe: Path, tmp_path: Path) -> None:
    outcome = drill(recipe, tmp_path, workers=2, kills=3, pause=(0.0, 0.1))
    assert (outcome.documents, outcome.lost, outcome.double, outcome.identical) == (60, 0, 0, True)
    assert outcome.kills >= 1 and outcome.items_begun >= 60


def test_a_label_job_that_is_signalled_stops_at_a_batch_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    assert run_forked("jobs.prepare", str(recipe), "--runs", str(tmp_path)).returncode == 0
    command = ["jobs.label", str(recipe), "--labels", "t", "--shard", "0", "--runs", str(tmp_path)]
    result = run_forked(*command, before=signal_in_the_second_batch)
    assert result.returncode == 75 and "stopped (SIGUSR1)" in result.stderr, result.stderr
    assert "run the same command again" in result.stderr
    result = run_forked(*command)
    assert result.returncode == 0 and "continuing after 2 whole batches" in result.stderr, result.stderr


def signal_in_the_second_batch() -> None:
    """In the job's process: a signal as soon as it says that the batch begins."""

    def look(record: logging.LogRecord) -> bool:
        if "batch 2 of" in record.getMessage():
            os.kill(os.getpid(), signal.SIGUSR1)
        return True

    logging.getLogger("distill.shards").addFilter(look)


def label(recipe: Path, runs: Path, shard: int) -> subprocess.CompletedProcess[str]:
    return run_forked("jobs.label", str(recipe), "--labels", "t", "--shard", str(shard), "--runs", str(runs))


def test_a_full_and_a_read_only_disk_lose_nothing(recipe: Path, small_disk: Path, tmp_path: Path) -> None:
    for runs in (small_disk, tmp_path / "roomy"):
        assert run_forked("jobs.prepare", str(recipe), "--runs", str(runs)).returncode == 0
        assert label(recipe, runs, 0).returncode == 0
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_bsize - 8192))  # room for the logs and a claim, for no whole shard
    result = label(recipe, small_disk, 1)
    assert result.returncode == 100 and "Traceback" not in result.stderr, result.stderr
    assert "No space left on device" in result.stderr and "run the same command again" in result.stderr
    labels = small_disk / "drill" / "labels" / "t"
    assert not (labels / "shard-00001-of-00004.json").exists() and (labels / "shard-00000-of-00004.json").exists()
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    result = label(recipe, small_disk, 1)
    assert result.returncode == 2 and f"cannot write to {small_disk}/drill: Read-only file system" in result.stderr
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    for shard in (1, 2, 3):
        for runs in (small_disk, tmp_path / "roomy"):
            assert label(recipe, runs, shard).returncode == 0
    roomy = tmp_path / "roomy" / "drill" / "labels" / "t"
    assert {p.name: p.read_bytes() for p in labels.iterdir()} == {p.name: p.read_bytes() for p in roomy.iterdir()}
    result = run_forked("jobs.merge", str(recipe), "--labels", "t", "--runs", str(small_disk))
    assert result.returncode == 0 and "60 of 60 kept" in result.stderr
    assert json.loads((labels / "manifest.json").read_text())["documents"] == 60


def test_jobs_say_what_they_need(recipe: Path, tmp_path: Path) -> None:
    def refused(job: str, *arguments: str) -> str:
        result = run_forked(f"jobs.{job}", str(recipe), *arguments, "--runs", str(tmp_path))
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
        return result.stderr

    assert "labels t have no documents" in refused("label", "--labels", "t")
    assert "'x' is not among the recipe's labels; expected one of t" in refused("label", "--labels", "x")
    assert "--shard: 4 given, expected 0 to 3 (labels.t.shards)" in refused("label", "--labels", "t", "--shard", "4")
    assert "made by huggingface; nothing is converted" in refused("convert", "--labels", "t")
    assert run_forked("jobs.prepare", str(recipe), "--runs", str(tmp_path)).returncode == 0
    assert "shard 0 of 4 is not finished. Run jobs.label --labels t --shard 0" in refused("merge", "--labels", "t")
