"""What a changed recipe does again: which stages, for which keys, with whose consent."""

import copy
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.changes import Redo, examine, open_run, outdated, refuse_removal, refuse_while_queued
from distill.errors import InputError
from distill.files import write_json
from distill.recipe_file import parse_recipe
from distill.run import Run
from distill.stages import Stage, stages, stages_until

ARCHITECTURE = {"family": "bart", "width": 8, "encoder_layers": 2, "decoder_layers": 4, "heads": 2, "feed_forward": 8}
RECIPE: dict[str, Any] = {
    "name": "x",
    "corpus": {"train": "docstrings"},
    "teachers": {
        "own": {
            "architecture": ARCHITECTURE,
            "tokenizer": {"kind": "bpe", "vocabulary": 300},
            "train": {},
            "cache": {"keep": "top_k"},
        },
        "given": {"model": "some/model"},
    },
    "labels": {"own": {"shards": 2, "num_beams": 2}, "more": {"teacher": "given", "engine": "ctranslate2"}},
    "students": {
        "kd": {"teacher": "own", "decoder_layers": 2, "objective": {"kl": {"weight": 1}}},
        "pl": {"teacher": "own", "decoder_layers": 2, "train_on": ["gold", "own"], "evaluate": {"search": {}}},
        "sft": {"teacher": "given", "decoder_layers": 2},
    },
    "train": {"steps": 10},
}


def changed(*overrides: tuple[str, Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """The recipe with other values for dotted keys, and without some keys."""
    raw: dict[str, Any] = copy.deepcopy(RECIPE)
    for key, value in overrides:
        *parents, last = key.split(".")
        block = raw
        for parent in parents:
            block = block.setdefault(parent, {})
        block[last] = value
    for key in without:
        *parents, last = key.split(".")
        block = raw
        for parent in parents:
            block = block[parent]
        del block[last]
    return raw


def made(run: Run, stage: Stage) -> None:
    """Leave what a finished stage leaves, empty."""
    subject: Any = stage.subject
    if subject is None:
        run.corpus.mkdir(exist_ok=True)
        put(run.corpus_warnings, "[]")
        return
    if stage.job == "label":
        for shard in stage.shards:
            put(shard.manifest, "{}")
            put(shard.data, "")
        return
    settings: Any = getattr(subject, "settings", None)
    merged = {"keep_if": settings.keep_if.given, "best_of": settings.best_of_block} if settings else {}
    files = {
        "teacher": ["initial/config.json"],
        "shrink": ["initial/config.json"],
        "train": ["best/config.json", "final/config.json", "metrics.jsonl", "claim.json"],
        "search": ["search.json"],
        "evaluate": ["evaluation/test/scores.json", "benchmark.json"],
        "cache": [f"cache/{shard.data.name}" for shard in stage.shards]
        + [f"cache/{s.manifest.name}" for s in stage.shards],
        "convert": ["engine/parity.json", "engine/model/model.bin"],
        "merge": ["manifest.json", "labels.parquet"],
    }
    for name in files[stage.job]:
        put(subject.folder / name, json.dumps(merged))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of runs, with a run of which every stage but the benchmark and the report is complete."""
    run = open_run(parse_recipe(RECIPE), tmp_path)
    for stage in stages(run)[:-2]:
        made(run, stage)
        assert stage.is_complete(), stage.name
    return tmp_path


def look(folder: Path, raw: dict[str, Any], *asked: str) -> Redo:
    return examine(Run(parse_recipe(raw), folder / "x"), asked)


def again(redo: Redo) -> str:
    return " ".join(sorted(stage.name for stage in redo.stages))


KD = "evaluate-student-kd shrink-student-kd train-student-kd"
PL = "evaluate-student-pl search-student-pl shrink-student-pl train-student-pl"
SFT = "evaluate-student-sft shrink-student-sft train-student-sft"
OF_OWN = "cache-teacher-own evaluate-teacher-own"
TRAIN_KD, TRAIN_SFT = KD.replace("shrink-student-kd ", ""), SFT.replace("shrink-student-sft ", "")
TRAIN_PL = PL.replace("shrink-student-pl ", "")
LABELS_OF_OWN = "label-own merge-own"


def joined(*names: str) -> str:
    return " ".join(sorted(" ".join(names).split()))


@pytest.mark.parametrize(
    ("key", "value", "names", "allow"),
    [
        ("students.sft.decoder_layers", 1, SFT, "sft"),
        ("students.sft.model", "another/model", SFT, "sft"),
        ("students.sft.objective", {"kl": {"weight": 1}}, TRAIN_SFT, "sft"),
        ("students.sft.train_on", {"gold": 2}, TRAIN_SFT, "sft"),
        ("students.sft.train_on", ["gold", "own"], TRAIN_SFT, "sft"),
        ("students.sft.train", {"steps": 11}, TRAIN_SFT, "sft"),
        ("students.sft.train", {"freeze": ["encoder"]}, TRAIN_SFT, "sft"),
        ("students.sft.evaluate", {"every_steps": 5}, TRAIN_SFT, "sft"),
        ("students.sft.evaluate", {"metric": "bleu"}, TRAIN_SFT, "sft"),
        ("students.sft.evaluate", {"generation": {"num_beams": 1}}, "evaluate-student-sft", "sft"),
        ("students.sft.evaluate", {"search": {"num_beams": [1]}}, "evaluate-student-sft", "sft"),
        ("students.pl.evaluate", {"search": {"num_beams": [1]}}, "evaluate-student-pl search-student-pl", "pl"),
        ("students.pl.evaluate", {}, "evaluate-student-pl search-student-pl", "pl"),
        ("students.pl.evaluate", {"search": {}, "metric": "rouge1"}, TRAIN_PL, "pl"),
        ("students.sft.evaluate", {"batch_tokens": 64}, "", ""),
        ("students.sft.evaluate", {"shards": 3}, "", ""),
        ("students.sft.train", {"zero_stage": 1, "micro_batch_tokens": 99}, "", ""),
        ("students.kd.objective", {"kl": {"weight": 2}}, TRAIN_KD, "kd"),
        ("students.kd.objective", {"kl": {"weight": 1, "temperature": 3}}, joined(TRAIN_KD, "cache-teacher-own"), "teachers.own"),
        ("labels.own.num_beams", 3, joined(LABELS_OF_OWN, TRAIN_PL), "labels.own"),
        ("labels.own.shards", 3, joined(LABELS_OF_OWN, TRAIN_PL), "labels.own"),
        ("labels.own.keep_if", {"rouge1_at_least": 5}, joined("merge-own", TRAIN_PL), "labels.own"),
        ("labels.own.batch_tokens", 64, "", ""),
        ("labels.more.keep_if", {"rouge1_at_least": 5}, "", ""),
        ("labels.more.engine", {"name": "ctranslate2", "compute": "int8"}, "convert-more label-more merge-more", "more"),
        ("labels.more.engine", "huggingface", "convert-more label-more merge-more", "more"),
        ("teachers.own.cache", {"keep": "hidden"}, joined("cache-teacher-own", TRAIN_KD), "teachers.own"),
        (
            "teachers.own.precision",
            "bf16",
            joined("cache-teacher-own", TRAIN_KD, LABELS_OF_OWN, TRAIN_PL),
            "teachers.own",
        ),
        (
            "teachers.own.train",
            {"steps": 3},
            joined("train-teacher-own", OF_OWN, LABELS_OF_OWN, KD, PL),
            "teachers.own",
        ),
        (
            "teachers.own.tokenizer",
            {"kind": "bpe", "vocabulary": 301},
            joined("teacher-own train-teacher-own", OF_OWN, LABELS_OF_OWN, KD, PL),
            "teachers.own",
        ),
        ("teachers.own.evaluate", {"generation": {"num_beams": 1}}, "evaluate-teacher-own", "teachers.own"),
        (
            "teachers.own.evaluate",
            {"generation": {"length_penalty": 1.0}},
            joined("evaluate-teacher-own", LABELS_OF_OWN, TRAIN_PL),
            "teachers.own",
        ),
        (
            "teachers.given.prefix",
            "summarize: ",
            joined("evaluate-teacher-given convert-more label-more merge-more", SFT),
            "given",
        ),
        ("train.steps", 11, joined("train-teacher-own", OF_OWN, LABELS_OF_OWN, KD, PL, TRAIN_SFT), "teachers.own sft"),
        ("benchmark.rounds", 1, "", ""),
        ("report.examples", 1, "", ""),
    ],
)  # fmt: skip
def test_what_a_key_does_again(finished: Path, key: str, value: Any, names: str, allow: str) -> None:
    raw = changed((key, value))
    redo = look(finished, raw)
    assert again(redo) == names
    assert " ".join(redo.needs) == allow
    if not allow:
        redo.check()
        return
    with pytest.raises(InputError) as error:
        redo.check()
    assert all(f"--redo {name}" in str(error.value) for name in allow.split())
    allowed = look(finished, raw, *allow.split())
    allowed.check()
    assert again(allowed) == names, "consent reaches as far as the key does"


def test_the_division_of_an_evaluation_matters_until_it_is_whole(finished: Path) -> None:
    folder = finished / "x/students/sft/evaluation"
    (folder / "test").rename(folder / "test-shards")
    assert again(look(finished, changed(("students.sft.evaluate", {"shards": 3})))) == "evaluate-student-sft"


def test_a_run_is_unchanged_if_its_recipe_is(finished: Path) -> None:
    assert look(finished, RECIPE) == Redo(Run(parse_recipe(RECIPE), finished / "x"))


def test_what_is_done_again_is_moved_and_nothing_else(finished: Path) -> None:
    raw = changed(("students.sft.train", {"steps": 11}))
    before = {path.relative_to(finished / "x") for path in (finished / "x").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="--redo sft"):
        open_run(parse_recipe(raw), finished)
    place = look(finished, raw, "sft").carry_out()
    assert place is not None and place.parent == finished / "x" / "replaced"
    moved = {path.relative_to(place) for path in place.rglob("*") if path.is_file()}
    assert {str(path.parent)[:12] for path in moved} == {"students/sft"}
    left = {path.relative_to(finished / "x") for path in (finished / "x").rglob("*") if path.is_file()}
    assert left - {path for path in left if path.parts[0] == "replaced"} == before - moved
    assert (finished / "x" / "students/sft/initial").exists() and not (finished / "x" / "students/sft/final").exists()
    run = open_run(parse_recipe(raw), finished)
    assert run.recipe_file.read_text().count("steps: 11") == 1
    assert look(finished, raw) == Redo(run), "and now it is the recipe of the run"


def test_a_move_that_is_interrupted_leaves_nothing_that_rests_on_what_is_gone(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, moves = Run(parse_recipe(RECIPE), finished / "x"), 0
    real = Path.replace

    def one_move(path: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves % 2 == 0:
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "replace", one_move)
    while True:
        try:
            examine(run, ["pl"]).carry_out()
            break
        except KeyboardInterrupt:
            whole = {stage.name for stage in stages(run)[:-2] if stage.is_complete()}
            assert all(set(stage.needs) <= whole for stage in stages(run) if stage.name in whole)
    assert moves > 6 and again(look(finished, RECIPE, "pl")) == ""


def test_an_unchanged_student_teacher_or_stage_is_done_again_if_asked(finished: Path) -> None:
    assert again(look(finished, RECIPE, "sft")) == SFT
    assert again(look(finished, RECIPE, "train-student-sft")) == TRAIN_SFT
    assert again(look(finished, RECIPE, "labels.own", "kd")) == joined(LABELS_OF_OWN, TRAIN_PL, KD)
    assert again(look(finished, RECIPE, "given")) == joined(
        "evaluate-teacher-given convert-more label-more merge-more", SFT
    )
    with pytest.raises(InputError, match=r"--redo: 'own' may be teachers.own or labels.own"):
        look(finished, RECIPE, "own")
    with pytest.raises(InputError, match=r"--redo: 'nobody' given, expected a name of the recipe \(given, own, more"):
        look(finished, RECIPE, "nobody")


def test_consent_for_one_is_none_for_another(finished: Path) -> None:
    raw = changed(("students.sft.decoder_layers", 1), ("students.kd.decoder_layers", 1))
    redo = look(finished, raw, "kd")
    assert redo.needs == ("sft",)
    with pytest.raises(InputError, match="students.sft.decoder_layers: 2 when the run began, 1 now"):
        redo.carry_out()
    assert (finished / "x" / "students/kd/final").exists()
    assert look(finished, raw, "shrink-student-sft", "kd").needs == ()
    assert look(finished, raw, "train-student-sft", "kd").needs == ("sft",), "its layers are cut before"


def test_what_was_not_made_or_was_deleted_may_change(finished: Path) -> None:
    raw = changed(("students.sft.decoder_layers", 1))
    shutil.rmtree(finished / "x" / "students" / "sft")
    open_run(parse_recipe(raw), finished)


def test_a_removed_student_is_kept_and_may_come_back_as_it_was(finished: Path) -> None:
    less = changed(without=["students.sft"])
    assert look(finished, less).removed == ("students.sft",)
    open_run(parse_recipe(less), finished)
    assert (finished / "x" / "students/sft/final").exists()
    assert look(finished, RECIPE).stages == (), "as it was"
    other = look(finished, changed(("students.sft.train", {"steps": 11})))
    assert again(other) == TRAIN_SFT and other.needs == ("sft",)
    look(finished, less, "given").carry_out()
    assert look(finished, RECIPE).needs == ("sft",), "its teacher may be another one by now"


def test_a_removed_label_set_or_teacher_is_no_matter(finished: Path) -> None:
    look(finished, changed(without=["labels.more"])).check()
    less = changed(without=["labels.more", "teachers.given", "students.sft"])
    assert look(finished, less).removed == ("labels.more", "students.sft", "teachers.given")
    open_run(parse_recipe(less), finished)


def test_nothing_changes_while_jobs_are_queued(finished: Path) -> None:
    def ask(raw: dict[str, Any], *redo: str) -> None:
        refuse_while_queued(Run(parse_recipe(raw), finished / "x"), redo, ["17"])

    ask(changed(("students.new", {"teacher": "given", "decoder_layers": 1}), ("train.save_every_steps", 3)))
    for raw, line in (
        (changed(("train.steps", 11)), "  train.steps: 10 when the run began, 11 now"),
        (changed(without=["students.sft"]), "  students.sft: in the recipe of these jobs, absent now"),
    ):
        with pytest.raises(InputError) as error:
            ask(raw)
        assert line in str(error.value).splitlines()
    with pytest.raises(InputError, match="--redo sft"):
        ask(RECIPE, "sft")


def test_the_line_of_an_inherited_key_is_the_recipes(finished: Path) -> None:
    assert look(finished, changed(("train.steps", 11))).changed == ("  train.steps: 10 when the run began, 11 now",)


def test_an_override_that_is_gone_is_noticed(finished: Path) -> None:
    run = Run(parse_recipe(changed(("benchmark", {"rounds": 1}))), finished / "x")
    for member in run.members():
        write_json(member.benchmark, {"settings": run.recipe.benchmark.model_dump(mode="json"), "measured_at": 1.0})
    assert outdated(run) == []
    lines = outdated(Run(parse_recipe(RECIPE), finished / "x"))
    assert len(lines) == 1 and "the benchmark is made again: benchmark.rounds was 1, is 3 now" in lines[0]


@pytest.mark.parametrize(
    ("given", "last"),
    [
        ("prepare", ["prepare"]),
        ("train-student-sft", ["train-student-sft"]),
        ("train-student", ["train-student-kd", "train-student-pl", "train-student-sft"]),
        ("merge", ["merge-own", "merge-more"]),
        ("report", ["report"]),
    ],
)
def test_until(tmp_path: Path, given: str, last: list[str]) -> None:
    graph = stages(Run(parse_recipe(RECIPE), tmp_path))
    chosen = stages_until(graph, given)
    names = {stage.name for stage in chosen}
    needed = {need for stage in chosen for need in stage.needs}
    assert needed <= names and names - needed <= set(last) <= names
    assert chosen == [stage for stage in graph if stage.name in names]
    assert (given == "report") == (len(chosen) == len(graph))


def test_until_what_is_no_stage(tmp_path: Path) -> None:
    graph = stages(Run(parse_recipe(RECIPE), tmp_path))
    for wrong in ("training", "train-student-s", ""):
        with pytest.raises(
            InputError, match=r"expected a stage \(prepare, .*, report\) or a kind of stage \(prepare, "
        ):
            stages_until(graph, wrong)


def test_the_same_redo_again_continues_and_moves_nothing(finished: Path) -> None:
    """A run that was stopped, or requeued by SLURM, gives the same command."""
    asked = ("sft",)
    for raw in (RECIPE, changed(("students.sft.evaluate", {"generation": {"num_beams": 1}}))):
        run = Run(parse_recipe(raw), finished / "x")
        redo = look(finished, raw, *asked)
        redo.carry_out()
        redo.record(asked)
        open_run(run.recipe, finished)
        for stage in [one for one in stages(run) if one.name == "shrink-student-sft"]:
            made(run, stage)
        assert look(finished, raw, *asked).stages == ()
        other = changed(("students.sft.train", {"steps": 12}))
        assert "train-student-sft" not in again(look(finished, raw, *asked))
        assert look(finished, other, *asked).needs == (), "a changed key is allowed as before"
    for stage in stages(run):
        if stage.subject and not stage.is_complete():
            made(run, stage)
    made_whole = [replace(stage, is_complete=lambda: True) for stage in stages(run)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.changes.stages", lambda run: made_whole)
        assert again(look(finished, raw, *asked)) == SFT, "the one before has ended"


def test_a_student_that_comes_back_after_its_labels_changed_is_done_again(finished: Path) -> None:
    less = changed(("labels.own.keep_if", {"finished": True}), without=["students.pl"])
    look(finished, less).carry_out()
    open_run(parse_recipe(less), finished)
    back = look(finished, changed(("labels.own.keep_if", {"finished": True})))
    assert back.needs == ("pl",)


def test_labels_of_a_file_are_not_those_of_a_teacher(finished: Path, tmp_path: Path) -> None:
    labels = Run(parse_recipe(RECIPE), finished / "x").label_set("own")
    assert labels.is_merged()
    merged = json.loads(labels.manifest.read_text())
    write_json(labels.manifest, merged | {"file": {"sha256": "0" * 64}})
    assert not labels.is_merged(), "the table was read from a file"
    write_json(labels.manifest, merged)
    raw = changed(("labels.own", {"file": str(tmp_path / "labels.jsonl")}))
    assert not Run(parse_recipe(raw), finished / "x").label_set("own").is_merged(), "the table was made by a teacher"


def test_a_job_by_hand_leaves_nothing_out_of_the_run(finished: Path) -> None:
    refuse_removal(Run(parse_recipe(RECIPE), finished / "x"))
    with pytest.raises(InputError, match=r"students.sft: in .*recipe.yaml, absent now. A job by hand cannot"):
        refuse_removal(Run(parse_recipe(changed(without=["students.sft"])), finished / "x"))


@pytest.mark.parametrize("group", ["labels", "students"])
def test_the_first_labels_or_students_are_added(group: str, tmp_path: Path) -> None:
    without = {"labels": ["labels", "students.pl"], "students": ["students"]}[group]
    run = open_run(parse_recipe(changed(without=without)), tmp_path)
    run.corpus.mkdir()
    assert look(tmp_path, RECIPE).needs == ()
    open_run(parse_recipe(RECIPE), tmp_path)
    refuse_while_queued(Run(parse_recipe(RECIPE), tmp_path / "x"), (), ["17"])


def test_a_file_in_place_of_a_folder_is_the_fault_of_its_own_student(finished: Path) -> None:
    shutil.rmtree(finished / "x" / "students" / "sft")
    (finished / "x" / "students" / "sft").write_text("no folder")
    open_run(parse_recipe(RECIPE), finished)
