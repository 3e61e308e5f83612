"""The run directory, its stages, and what a launcher and a reader make of them."""

import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from distill.changes import open_run
from distill.errors import InputError
from distill.files import append_jsonl, write_json
from distill.preflight import check_folder, check_recipe
from distill.recipe_file import parse_recipe
from distill.run import Run
from distill.stages import (
    BENCHMARK_FORMAT,
    benchmark_is_current,
    report_inputs,
    report_is_current,
    report_manifest,
    stages,
)
from jobs.report import report
from jobs.start import Arguments
from launch.local import processes_here
from launch.state import stage_state
from launch.status import progress
from tests.unit.test_recipe import recipe

SCRATCH = {
    "architecture": {
        "family": "bart",
        "width": 8,
        "encoder_layers": 2,
        "decoder_layers": 4,
        "heads": 2,
        "feed_forward": 8,
    },
    "tokenizer": {"kind": "bpe", "vocabulary": 300},
    "train": {},
}


def make_run(tmp_path: Path, **changes: Any) -> Run:
    return Run(parse_recipe(recipe(**changes)), tmp_path / "x")


def test_the_graph_of_a_given_and_a_trained_teacher(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        teachers={"given": {"model": "a/b"}, "own": SCRATCH},
        students={"s": {"teacher": "given"}, "o": {"teacher": "own"}},
    )
    graph = {stage.name: stage for stage in stages(run)}
    assert list(graph) == [
        "prepare", "evaluate-teacher-given", "teacher-own", "train-teacher-own", "evaluate-teacher-own",
        "shrink-student-s", "train-student-s", "evaluate-student-s",
        "shrink-student-o", "train-student-o", "evaluate-student-o", "benchmark", "report",
    ]  # fmt: skip
    assert graph["shrink-student-o"].needs == ("train-teacher-own",)
    assert graph["shrink-student-s"].needs == ("prepare",)
    seen: set[str] = set()
    for stage in stages(run):
        assert set(stage.needs) <= seen, "an order that respects the needs"
        assert not stage.is_complete()
        seen.add(stage.name)


def test_files_decide_what_is_complete(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    student = run.member("students", "s")
    graph = {stage.name: stage for stage in stages(run)}
    student.best.mkdir(parents=True)
    for name, path in (
        ("prepare", run.corpus_warnings),
        ("shrink-student-s", student.initial),
        ("train-student-s", student.final),
    ):
        assert not graph[name].is_complete()
        path.mkdir(parents=True)
        assert graph[name].is_complete()
    scores = student.evaluation("test") / "scores.json"
    scores.parent.mkdir(parents=True)
    write_json(scores, {})
    assert graph["evaluate-student-s"].is_complete()


def test_states() -> None:
    known = {
        "a": {"state": "running", "host": socket.gethostname(), "processes": [2**22 + 1]},
        "b": {"state": "failed"},
        "e": {"state": "stopped"},
        "c": {"state": "running", "host": socket.gethostname(), "processes": [2**22 + 1, 1]},
    }
    assert [stage_state(known, name, False) for name in ("a", "b", "c", "d", "e")] == [
        "stopped",
        "failed",
        "running",
        "waiting",
        "stopped",
    ]
    assert stage_state(known, "b", True) == "done"


def test_progress_is_read_from_the_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    stage = next(stage for stage in stages(run) if stage.name == "train-student-s")
    assert stage.member is not None and progress(stage).text() == ""
    stage.member.folder.mkdir(parents=True)
    row = {"step": 5, "steps": 10, "tokens_per_second": 1234.5, "seconds_left": 61.0}
    append_jsonl(stage.member.metrics, row)
    append_jsonl(stage.member.metrics, {"step": 6, "rouge2": 1.0})
    assert progress(stage).text() == "step 5/10  1,234 tokens/s  0:01:01 left"
    append_jsonl(stage.member.metrics, {"step": 6, "stopped_early": True})
    assert progress(stage).text().startswith("step 5/5 ")


def test_a_changed_corpus_or_seed_is_refused_by_key(tmp_path: Path) -> None:
    run = open_run(parse_recipe(recipe(seed=3)), tmp_path)
    open_run(parse_recipe(recipe()), tmp_path)  # nothing was made yet
    run.corpus.mkdir()
    with pytest.raises(InputError) as error:
        open_run(parse_recipe(recipe(corpus={"train": "other", "max_target_tokens": 9}, seed=1)), tmp_path)
    message = str(error.value)
    for line in (
        "seed: 42 when the run began, 1 now",
        "corpus.train: 'docstrings' when the run began, 'other' now",
        "corpus.max_target_tokens: 128 when the run began, 9 now",
    ):
        assert line in message
    assert "name=" in message and str(tmp_path / "x") in message


def test_a_deleted_corpus_frees_nothing(tmp_path: Path) -> None:
    run = open_run(parse_recipe(recipe()), tmp_path)
    write_json(run.corpus_record, {"sha256": "x"})  # as prepare leaves it
    with pytest.raises(InputError, match="seed: 42 when the run began, 1 now"):
        open_run(parse_recipe(recipe(seed=1)), tmp_path)


def test_keys_that_decide_nothing_may_change(tmp_path: Path) -> None:
    run = open_run(parse_recipe(recipe()), tmp_path)
    run.corpus.mkdir()
    (run.folder / "students" / "s" / "initial").mkdir(parents=True)
    (run.folder / "students" / "s" / "checkpoints").mkdir()
    more = recipe(train={"steps": 10, "micro_batch_tokens": 64, "save_every_steps": 3})
    more["students"]["new"] = {"teacher": "t", "train": {"steps": 99}}
    open_run(parse_recipe(more), tmp_path)
    assert parse_recipe(more) == open_run(parse_recipe(more), tmp_path).recipe


def test_a_member_has_its_own_seed_or_the_recipes(tmp_path: Path) -> None:
    students = {"s": {"teacher": "t"}, "s-7": {"teacher": "t", "train": {"seed": 7}}}
    run = make_run(tmp_path, seed=3, students=students)
    assert [run.seed(member) for member in run.members()] == [3, 3, 7]


def test_members_are_found_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run.weights(run.member("teachers", "t")) == "some/model"
    with pytest.raises(InputError, match="'q' is not among the recipe's students; expected one of s"):
        run.member("students", "q")
    with pytest.raises(InputError, match="train it first"):
        run.weights(run.member("students", "s"))


def test_students_are_checked_against_their_teacher() -> None:
    for student, message in (
        ({"decoder_layers": 5}, r"students\.s\.decoder_layers: 5 layers asked for, but the teacher has 4"),
        ({"encoder_layers": [0, 2]}, r"students\.s\.encoder_layers: layers \[2\] are out of range"),
    ):
        with pytest.raises(InputError, match=message):
            check_recipe(parse_recipe(recipe(teachers={"t": SCRATCH}, students={"s": {"teacher": "t", **student}})))
    too_long = {"train": "docstrings", "max_source_tokens": 513}
    with pytest.raises(InputError, match="max_source_tokens: 513 given, but teacher t has 512 positions"):
        check_recipe(parse_recipe(recipe(teachers={"t": SCRATCH}, corpus=too_long)))


def test_fp16_labels_of_a_family_that_overflows_are_refused() -> None:
    t5 = SCRATCH | {"architecture": SCRATCH["architecture"] | {"family": "t5"}}

    def check(teacher: dict[str, Any], compute: str) -> None:
        engine = {"name": "ctranslate2", "compute": compute}
        check_recipe(parse_recipe(recipe(teachers={"t": teacher}, labels={"l": {"teacher": "t", "engine": engine}})))

    check(SCRATCH, "fp16")
    check(t5, "int8")
    with pytest.raises(
        InputError, match=r"labels\.l\.engine\.compute: fp16 given, but activations of t5 overflow in it"
    ):
        check(t5, "fp16")


def test_summaries_fit_the_positions() -> None:
    generation = {"evaluate": {"generation": {"max_new_tokens": 600}}}
    for changes, message in (
        (
            {"corpus": {"train": "docstrings", "max_target_tokens": 513}},
            "corpus.max_target_tokens: 513 given, but teacher t",
        ),
        (
            {"students": {"s": {"teacher": "t", **generation}}},
            "students.s.evaluate.generation.max_new_tokens: 600 given",
        ),
    ):
        with pytest.raises(InputError, match=message):
            check_recipe(parse_recipe(recipe(teachers={"t": SCRATCH}, **changes)))


def test_the_benchmark_is_of_one_go_and_of_these_settings(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    current = {
        "format": BENCHMARK_FORMAT,
        "measured_at": 1.0,
        "settings": run.recipe.benchmark.model_dump(mode="json"),
    }
    for member in run.members():
        member.folder.mkdir(parents=True)
        write_json(member.benchmark, current)
    assert benchmark_is_current(run)
    assert not benchmark_is_current(make_run(tmp_path, benchmark={"rounds": 5}))
    for other in (current | {"measured_at": 2.0}, current | {"format": 1}, {"measured_at": 1.0, "settings": {}}):
        write_json(run.members()[-1].benchmark, other)
        assert not benchmark_is_current(run)


def test_a_report_of_an_old_benchmark_is_neither_current_nor_made(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name, file in report_inputs(run).items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"measured_at": 1.0, "settings": {"rounds": 3}, "latency_ms": 5.0, "name": name})
    run.report.mkdir()
    write_json(run.report / "manifest.json", report_manifest(run))
    assert not report_is_current(run), "its benchmark will be measured again"
    with pytest.raises(InputError, match="made by an older version.*jobs.benchmark"):
        report(Arguments(run))


def test_progress_of_the_benchmark_is_read_from_its_own_file(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    stage = next(stage for stage in stages(run) if stage.name == "benchmark")
    assert progress(stage).text() == ""
    write_json(run.benchmark_progress, {"doing": "loading model", "step": 2, "steps": 5, "ends_at": None})
    assert progress(stage).text() == "loading model 2/5"
    write_json(run.benchmark_progress, {"doing": "round", "step": 1, "steps": 3, "ends_at": time.time() + 3600})
    assert re.fullmatch(r"round 1/3  (1:00:00|0:59:\d\d) left", progress(stage).text())
    write_json(run.benchmark_progress, {"doing": "round", "step": 3, "steps": 3, "ends_at": time.time() - 5})
    assert progress(stage).text() == "round 3/3", "it takes longer than planned"


def test_processes_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: x'; echo 'GPU 1: x'; echo 'GPU 2: x'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")
    assert (processes_here(4).count, processes_here(4).device) == (4, "CPU")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert processes_here(None).gpus == ("0", "1", "2") and processes_here(2).gpus == ("0", "1")
    for visible, ids in (("5,7", ("5", "7")), ("5,-1,7", ("5",)), ("-1", ()), ("", ())):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert processes_here(None).gpus == ids
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with pytest.raises(InputError, match="--processes: 3 given, but 2 GPUs are visible"):
        processes_here(3)


def test_teacher_folders_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    with pytest.raises(InputError, match="is no folder"):
        check_folder(folder)
    folder.mkdir()
    for missing, name in (
        ("config.json", "config.json"),
        ("weights", "model.safetensors"),
        ("tokenizer", "tokenizer.json"),
    ):
        with pytest.raises(InputError, match=f"has no {missing}; expected {name}"):
            check_folder(folder)
        write_json(folder / name, {"model_type": "gpt2"})
    check_folder(folder)
    for text, message in (("{", "is not JSON"), ("[]", "holds list, expected an object")):
        (tmp_path / "bad").mkdir(exist_ok=True)
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / "bad" / name).touch()
        (tmp_path / "bad" / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            check_recipe(parse_recipe(recipe(teachers={"t": {"model": str(tmp_path / "bad")}})))
    with pytest.raises(InputError, match="model type 'gpt2' is not known; expected one of bart, longt5, .*, t5"):
        check_recipe(parse_recipe(recipe(teachers={"t": {"model": str(folder)}})))
