"""Changing a run through the commands that users type: --until, --redo, a removed student, a shared teacher."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.files import read_json
from tests.conftest import make_rows, run_command, write_corpus
from tests.tiny import save_tiny

pytestmark = pytest.mark.distributed


def write_recipe(folder: Path, **changes: Any) -> Path:
    student = {"teacher": "own", "decoder_layers": 1}
    recipe: dict[str, Any] = {
        "name": "one",
        "corpus": {"train": str(folder / "corpus"), "max_target_tokens": 12},
        "teachers": {"own": {"model": str(folder / "model"), "train": {"steps": 1}}},
        "labels": {"llm": {"file": str(folder / "llm.jsonl")}},
        "students": {"a": student, "b": student | {"train_on": ["llm"]}},
        "train": {"batch_examples": 8, "steps": 2, "warmup_steps": 1},
        "evaluate": {"every_steps": 2, "examples": 2, "before_training": False, "shards": 1},
        "benchmark": {"documents": 1, "rounds": 1, "batch_sizes": [1]},
    }
    path = folder / f"{changes.get('name', 'one')}.yaml"
    path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return path


def launch(recipe: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    where = ("--runs", str(recipe.parent / "runs"), "--processes", "1")
    result = run_command("launch", "run", str(recipe), *where, *arguments, timeout=900)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_changed_and_shared(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    save_tiny(tmp_path / "model", "BART")
    labels = [{"id": row["id"], "label": row["summary"]} for row in make_rows(20)]
    (tmp_path / "llm.jsonl").write_text("\n".join(map(json.dumps, labels)))
    recipe, run = write_recipe(tmp_path), tmp_path / "runs" / "one"

    done = launch(recipe, "--until", "evaluate").stdout
    assert "done until evaluate" in done and not (run / "report").exists()
    assert "benchmark" not in done and (run / "students/b/evaluation/test/scores.json").exists()
    assert read_json(run / "labels/llm/manifest.json")["kept"] == 20

    student = {"teacher": "own", "decoder_layers": 1, "train": {"steps": 3}}
    write_recipe(tmp_path, students={"a": student}, labels={})
    before = files(run)
    refused = launch(recipe, code=2).stderr
    assert "students.a.train.steps: 2 when the run began, 3 now" in refused and "--redo a" in refused
    assert "student a: train, evaluate" in refused and "shrink" not in refused
    planned = launch(recipe, "--redo", "a", "--dry-run").stdout
    assert "students.b is not in the recipe any more: its folder stays" in planned
    assert "to do: train, evaluate, benchmark, report" in planned and "jobs.shrink" not in planned
    assert files(run) == before, "nothing is touched before"

    again = launch(recipe, "--redo", "a").stdout
    assert "train-student-a: done" in again and "train-teacher" not in again and "shrink" not in again
    kept = {path: time for path, time in files(run).items() if path.is_relative_to(run / "students" / "b")}
    assert kept.items() >= {path: time for path, time in before.items() if "/students/b/" in str(path)}.items()
    [replaced] = (run / "replaced").iterdir()
    assert (replaced / "students/a/final/model.safetensors").exists()
    assert read_json(replaced / "students/a/evaluation/test/scores.json")["examples"] == 8
    report = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert "| student a |" in report and "student b" not in report
    assert "nothing to do" in launch(recipe).stdout

    shared = write_recipe(
        tmp_path, name="two", teachers={"own": {"run": str(run)}}, labels={}, students={"c": student, "d": student}
    )
    only = launch(shared, "--until", "train-student-c").stdout
    assert "[3/3] train-student-c: done" in only and "teacher own comes from" in only and "student-d" not in only
    taken = read_json(tmp_path / "runs/two/students/c/initial/config.json")
    assert taken["decoder_layers"] == 1
    assert not list((tmp_path / "runs/two/teachers").rglob("*.safetensors")), "read in place, not copied"
