"""The doctor on this machine, with real processes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from distill.distributed import World
from distill.files import read_json, write_json, write_text
from launch.doctor import disk
from launch.doctor.probe import Request, answer_file, request_file
from tests.conftest import run_command, write_corpus
from tests.distributed.harness import run_distributed
from tests.forked import run_forked

pytestmark = pytest.mark.distributed

RECIPE = """
name: tiny
corpus: {{train: {corpus}, max_source_tokens: 64}}
teachers: {{t: {{model: jobs/recipes/demo-teacher}}}}
students: {{a: {{teacher: t, decoder_layers: 1, objective: {{kl: {{weight: 1}}}}}}}}
train: {{steps: 2}}
"""


def rows(table: str) -> dict[str, str]:
    """The result of each check."""
    lines = [line.replace("not checked", "not-checked").split() for line in table.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) > 1} | {
        " ".join(line[:2]): line[2] for line in lines if len(line) > 2
    }


def test_two_processes_and_nothing_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "recipe.yaml", RECIPE.format(corpus=write_corpus(tmp_path / "corpus")))
    runs = tmp_path / "runs"
    done = run_command("launch", "doctor", str(tmp_path / "recipe.yaml"), "--processes", "2", "--runs", str(runs))
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(done.stdout)
    checked = (
        "processes",
        "versions",
        "GPUs",
        "bf16",
        "all-reduce",
        "shared disk",
        "room",
        "models",
        "corpus",
        "memory",
    )
    assert [found[name] for name in checked] == ["ok"] * len(checked), done.stdout
    assert found["signal"] == found["requeue"] == "not-checked"
    assert "gloo over 2 process(es)" in done.stdout and "3 found without a network" in done.stdout
    assert list(runs.iterdir()) == [], "the doctor's folder is gone"


def test_wrong_input_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for arguments in (["nothing.yaml"], ["jobs/recipes/demo.yaml", "corpus.train=nothing"], ["--on", "nowhere.yaml"]):
        done = run_forked("launch", "doctor", *arguments, "--runs", str(tmp_path / "runs"))
        assert done.returncode == 2, done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_model_that_is_only_half_there(tmp_path: Path) -> None:
    """The probe itself: on its own, with a hub name that is not in the cache and a folder without weights."""
    (tmp_path / "half").mkdir()
    write_text(tmp_path / "half" / "config.json", "{}")
    models = [str(tmp_path / "half"), "some/model"]
    request = Request(tuple(models), (str(tmp_path / "gone.jsonl"),))
    write_json(request_file(tmp_path), dataclasses.asdict(request))
    done = run_forked("launch.doctor.probe", str(tmp_path))
    assert done.returncode == 0, done.stderr
    answers = read_json(answer_file(tmp_path, 0))
    assert answers["is_whole"] and not answers["errors"]
    assert "has no weights" in answers["models"][models[0]] and "not in the cache" in answers["models"][models[1]]
    assert answers["files"] == {request.files[0]: "no such file"}


def test_two_folders_are_not_one_disk(tmp_path: Path) -> None:
    found = run_distributed(_look_apart, 2, str(tmp_path))
    assert [one["sees"] for one in found] == [True, False]
    assert found[1]["lag_seconds"] is None


def _look_apart(world: World, folder: str) -> dict[str, Any]:
    disk.PATIENCE_SECONDS = 60.0 if world.is_main else 0.1  # rank 1 has nothing to wait for
    disk.SECONDS = 0.3
    own = Path(folder) / str(world.rank)
    own.mkdir()
    return disk.look(world, own)
