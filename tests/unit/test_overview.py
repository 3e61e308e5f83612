"""The dry run: what is to do, and nothing else."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from distill.errors import InputError
from distill.files import write_json
from distill.stages import stages
from launch.cli import PROFILES, _profile_file
from launch.local import Processes
from launch.overview import show, this_machine
from tests.unit.test_run import make_run


def dry_run(folder: Path, **changes: object) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    run = make_run(folder, **changes)
    show(run, stages(run), this_machine(Processes(2, ())), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_stages_that_are_done_are_counted_and_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, train={"steps": 10})
    lines = dry_run(tmp_path, train={"steps": 10})
    assert lines[0].endswith("7 of 7 stages to do on this machine, training on 2 CPU processes")
    assert any(line.startswith("[1/7] prepare ") and line.endswith("python -m jobs.prepare RUN") for line in lines)
    assert lines[-2].startswith("to do: prepare, evaluate x 2, shrink, train,") and lines[-2].endswith("done before: 0")
    assert lines[-1] == "training steps: 10"
    run.corpus.mkdir(parents=True)
    write_json(run.corpus_warnings, [])
    lines = dry_run(tmp_path, train={"steps": 10})
    assert not any("jobs.prepare" in line for line in lines) and lines[-2].endswith("done before: 1")


def test_epochs_are_no_riddle(tmp_path: Path) -> None:
    lines = dry_run(tmp_path, train={"epochs": 2})
    assert any("2 epochs (in steps: once the corpus is prepared)" in line for line in lines)
    assert not any("the other is known" in line or "after nothing" in line for line in lines)


def test_a_profile_is_found_by_file_and_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(PROFILES.parents[1])
    for given in ("dev", "slurm/dev.yaml", "slurm/profiles/dev.yaml", str(PROFILES / "dev.yaml")):
        assert _profile_file(given).resolve() == (PROFILES / "dev.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    assert _profile_file("dev") == PROFILES / "dev.yaml", "also from another folder"
    with pytest.raises(InputError, match=r"--on: 'moon' given, expected 'local' or a profile.*\(cpu, dev, gpu\)"):
        _profile_file("moon")
