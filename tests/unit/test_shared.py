"""Teachers and labels of another run: read in place, with their provenance."""

import json
from pathlib import Path
from typing import Any

import pytest

from distill.changes import examine, open_run
from distill.errors import InputError
from distill.files import read_json, write_json
from distill.recipe import Recipe
from distill.recipe_file import load_recipe, parse_recipe
from distill.run import Run
from distill.shared import describe_sources, resolve
from distill.stages import report_inputs, stages
from tests.unit.test_changes import RECIPE, made


@pytest.fixture
def other(tmp_path: Path) -> Run:
    """A run that has made everything up to its report."""
    run = open_run(parse_recipe(RECIPE | {"name": "other"}), tmp_path)
    for stage in stages(run)[:-2]:
        made(run, stage)
    write_json(run.corpus_record, {"sha256": "c" * 64})
    write_json(run.label_set("own").manifest, {"keep_if": {}, "best_of": None, "sha256": "d" * 64})
    return run


def recipe(other: Run, **changes: Any) -> Recipe:
    raw = {
        "name": "x",
        "corpus": {"train": "docstrings"},
        "teachers": {"mine": {"run": str(other.folder), "name": "own", "cache": "hidden"}},
        "labels": {"own": {"run": str(other.folder)}},
        "students": {
            "pl": {"teacher": "mine", "decoder_layers": 1, "train_on": ["gold", "own"]},
            "kd": {"teacher": "mine", "decoder_layers": 1, "objective": {"kl": {"weight": 1}}},
        },
        "train": {"steps": 7},
        "evaluate": {"generation": {"num_beams": 3}, "search": {}},
    }
    return resolve(parse_recipe(raw | changes))


def begun(other: Run) -> Run:
    run = open_run(recipe(other), other.folder.parent)
    run.corpus.mkdir()
    write_json(run.corpus_record, {"sha256": "c" * 64})
    return run


def test_what_another_run_made_is_read_there(other: Run) -> None:
    run = begun(other)
    teacher = run.member("teachers", "mine")
    assert run.weights(teacher) == str(other.folder / "teachers" / "own" / "best")
    assert run.settings(teacher).train == other.recipe.teachers["own"].train
    assert run.generation(teacher) == other.generation(other.member("teachers", "own")), "its decoding is that of there"
    assert run.label_set("own").table == other.folder / "labels" / "own" / "labels.parquet"
    graph = {stage.name: stage.needs for stage in stages(run)}
    assert [name for name in graph if "student" not in name] == ["prepare", "cache-teacher-mine", "benchmark", "report"]
    assert graph["train-student-pl"] == ("shrink-student-pl",) and graph["shrink-student-pl"] == ("prepare",)
    for path in (teacher.benchmark, teacher.cache):
        assert path.is_relative_to(run.folder), "this run's own"
    outside = [name for name, file in report_inputs(run).items() if not file.is_relative_to(run.folder)]
    assert len(outside) == 2 and all(name.startswith(str(other.folder)) for name in outside)


def test_the_recipe_of_the_run_is_a_recipe(other: Run) -> None:
    run = begun(other)
    assert resolve(load_recipe(run.recipe_file)) == run.recipe
    assert set(read_json(run.sources)) == {"teachers.mine.run.content", "labels.own.run.content"}
    told = describe_sources(run)
    assert len(told) == 2 and f"teacher mine comes from {other.folder / 'teachers/own'} (SHA-256 " in told[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda run: (run.folder / "recipe.yaml").unlink(),
            r"teachers.mine.run: '.*other' given, but there is no .*recipe.yaml",
        ),
        (
            lambda run: (run.folder / "teachers/own/evaluation/test/scores.json").unlink(),
            r"has not finished evaluate-teacher-own \(evaluate is missing\).*--until evaluate-teacher-own",
        ),
        (
            lambda run: (run.folder / "teachers/own/final/config.json").parent.rename(run.folder / "f"),
            r"train is missing",
        ),
        (lambda run: run.label_set("own").table.unlink(), r"labels.own.run: .* has not finished merge-own"),
    ],
)
def test_an_unfinished_run_is_refused(other: Run, spoil: Any, message: str) -> None:
    spoil(other)
    with pytest.raises(InputError, match=message):
        recipe(other)


def test_wrong_names_and_keys_are_refused(other: Run) -> None:
    there = str(other.folder)
    for changes, message in (
        ({"teachers": {"mine": {"run": there}}}, r"trains no teacher 'mine'. Expected one of own"),
        ({"teachers": {"mine": {"run": there, "name": "given"}}}, r"trains no teacher 'given'"),
        (
            {"labels": {"own": {"run": there, "name": "no"}}},
            r"has no labels 'no' of its own. Expected one of own, more",
        ),
        ({"labels": {"own": {"run": there, "num_beams": 9}}}, r"labels.own.num_beams: given, but .* decides it"),
        (
            {"teachers": {"mine": {"run": there, "name": "own", "prefix": "x"}}},
            r"teachers.mine.prefix: given, but .* decides it",
        ),
        ({"teachers": {"mine": {"model": "a/b", "name": "own"}}}, r"name is the name of a teacher in another run"),
    ):
        with pytest.raises(InputError, match=message):
            recipe(other, **changes)


def test_another_corpus_is_refused(other: Run) -> None:
    begun(other)
    write_json(other.corpus_record, {"sha256": "e" * 64})
    with pytest.raises(InputError, match=r"teachers.mine.run: .* has another corpus \(hash eeeeeeeeeeee\)"):
        open_run(recipe(other), other.folder.parent)


def test_what_changed_there_is_done_again_here_if_allowed(other: Run) -> None:
    run = begun(other)
    open_run(recipe(other), other.folder.parent)
    for stage in stages(run)[:-2]:
        if stage.job == "shrink" or stage.name == "train-student-pl":
            made(run, stage)
    (other.folder / "teachers/own/best/config.json").write_text(json.dumps({"other": "weights"}))
    with pytest.raises(InputError, match=r"teachers.mine.run: what it names has changed since it was read") as error:
        open_run(recipe(other), other.folder.parent)
    assert "student pl: shrink, train" in str(error.value) and "--redo mine" in str(error.value)
    place = examine(Run(recipe(other), run.folder), ["mine"]).carry_out()
    assert place is not None and (place / "students/pl/initial").exists()
    assert (other.folder / "teachers/own/best").exists(), "the other run keeps what is its own"
    open_run(recipe(other), other.folder.parent)
    made(run, next(stage for stage in stages(run) if stage.name == "train-student-pl"))
    write_json(other.label_set("own").manifest, {"keep_if": {}, "best_of": None, "sha256": "f" * 64})
    with pytest.raises(InputError, match=r"student pl: train\n"):
        open_run(recipe(other), other.folder.parent)
