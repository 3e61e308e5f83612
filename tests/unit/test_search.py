"""The search for how to decode: its grid, its best point, its job, and who uses what it finds."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill import distributed
from distill.changes import open_run
from distill.corpus import prepare_corpus, read_split
from distill.data import fixed_sample
from distill.errors import InputError
from distill.files import read_json, write_json
from distill.generation import HuggingFace, generation_config
from distill.preemption import StopFlag, StoppedError
from distill.pretrained import load_model, load_tokenizer
from distill.recipe_file import dump_recipe, parse_recipe, parse_yaml
from distill.run import Run
from distill.scores import corpus_scores
from distill.search import best_point, points
from distill.sections import Generation, Search
from distill.stages import stages
from distill.task import label_task, search_task
from jobs.evaluate import evaluate
from jobs.search import search
from jobs.shrink import shrink_teacher
from jobs.start import Arguments
from jobs.teacher import make_teacher
from tests.conftest import make_model, write_corpus
from tests.unit.test_recipe import recipe as any_recipe

SEARCH = {"num_beams": [3, 1, 2], "length_penalty": [-2.0, 2.0], "examples": 6}
GRID = [(1, None), (2, -2.0), (2, 2.0), (3, -2.0), (3, 2.0)]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("DS_ACCELERATOR", "cpu")):
        monkeypatch.setenv(name, value)
    yield
    distributed.stop()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("given")
    write_corpus(folder / "corpus")
    model = make_model("bart", tokenizer, noise=0.3)
    model.final_logits_bias[0, tokenizer.eos_token_id] = 3  # an end is likely enough for a length penalty to matter
    model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    return folder


def make_run(given: Path, folder: Path, **changes: Any) -> Run:
    recipe = {
        "name": "r",
        "corpus": {"train": str(given / "corpus"), "max_source_tokens": 40, "max_target_tokens": 12},
        "teachers": {"t": {"model": str(given / "teacher"), "evaluate": {"search": SEARCH}}},
        "labels": {"t": {}, "own": {"teacher": "t", "num_beams": 5}},
        "students": {"s": {"teacher": "t", "decoder_layers": 1}},
        "train": {"steps": 2},
        "evaluate": {"metric": "chrf", "shards": 2, "batch_tokens": 80, "generation": {"max_new_tokens": 10}},
    }
    run = open_run(parse_recipe(recipe | changes), folder)
    if not run.corpus.exists():
        prepare_corpus(run.recipe.corpus, run.recipe.seed, run.corpus)
    return run


def arguments(run: Run, stop: StopFlag | None = None) -> Arguments:
    return Arguments(run, run.member("teachers", "t"), stop=stop or StopFlag())


class StopsAfter(StopFlag):
    """Is asked to stop once it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        if self.looks < 0:
            self.ask("a test")
        return super().is_set()


def without_seconds(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run.member("teachers", "t").search)
    return found | {"points": [point | {"seconds": None} for point in found["points"]]}


def test_the_grid_has_every_decoding_once_and_fewest_beams_first(tmp_path: Path) -> None:
    run = Run(parse_recipe(any_recipe()), tmp_path)
    grid = points(Search(**SEARCH), run.members()[0])
    assert [(point.num_beams, point.length_penalty) for point in grid] == GRID
    assert len({point.folder for point in grid}) == len({point.result for point in grid}) == len(GRID)
    assert points(Search(**SEARCH | {"examples": 7}), run.members()[0])[0].folder != grid[0].folder
    many = Search(num_beams=[2, 2], length_penalty=[0.5, 0.50000001, 0.5])
    assert len({point.folder for point in points(many, run.members()[0])}) == 2


def test_of_equal_scores_fewer_beams_win() -> None:
    tried = [{"num_beams": beams, "score": score} for beams, score in ((4, 2.0), (6, 2.0), (2, 2.0), (1, 1.0))]
    assert best_point(tried)["num_beams"] == 2
    assert best_point([*tried, {"num_beams": 8, "score": 2.1}])["num_beams"] == 8


def test_the_best_is_that_of_a_search_by_hand_and_everyone_uses_it(given: Path, tmp_path: Path) -> None:
    run, untouched = make_run(given, tmp_path), (given / "teacher" / "generation_config.json").read_text()
    search(arguments(run))
    member, found = run.member("teachers", "t"), read_json(run.member("teachers", "t").search)
    rows = read_split(run.split("validation"))
    rows = [rows[i] for i in fixed_sample(len(rows), 6, run.recipe.seed)]
    model, tokenizer = load_model(given / "teacher"), load_tokenizer(given / "teacher")
    source, expected = search_task(run, member, Search(**SEARCH)).source, []
    for beams, penalty in GRID:
        keys = {"num_beams": beams, "max_new_tokens": 10} | ({} if penalty is None else {"length_penalty": penalty})
        engine = HuggingFace(model, tokenizer, generation_config(model, Generation(**keys), 12), model.device)
        texts = [engine([one])[0][0].text for one in source]
        expected.append(corpus_scores(texts, [[row["summary"]] for row in rows], "13a")["chrf"])
    assert [point["score"] for point in found["points"]] == pytest.approx(expected)
    best = GRID[expected.index(max(expected))]
    assert (
        len({round(score, 3) for score in expected}) > 1
        and (found["best"]["num_beams"], found["best"].get("length_penalty")) == best
    )
    assert not member.search_points.exists() and all(point["seconds"] > 0 for point in found["points"])

    assert run.generation(member) == Generation(max_new_tokens=10, **found["best"])
    evaluate(arguments(run))
    assert (given / "teacher" / "generation_config.json").read_text() == untouched, "a given model stays as it is"
    used = read_json(member.evaluation("test") / "scores.json")["generation"]
    assert used.get("num_beams", 1) == best[0] and used["max_new_tokens"] == 10
    tasks = [label_task(run, run.label_set(name)) for name in ("t", "own")]
    assert [task.config.num_beams for task in tasks] == [best[0], 5], "the labels' own keys win"


def test_what_was_found_is_written_into_the_students_weights_and_changes_nothing_else(
    given: Path, tmp_path: Path
) -> None:
    run = make_run(
        given, tmp_path, students={"s": {"teacher": "t", "decoder_layers": 1, "evaluate": {"search": SEARCH}}}
    )
    member = run.member("students", "s")
    asked = Arguments(run, member)
    shrink_teacher(asked)
    for trained in (member.best, member.final):
        shutil.copytree(member.initial, trained)
    before = search_task(run, member, Search(**SEARCH)).contents
    search(asked)
    exported = read_json(member.best / "generation_config.json")
    found = read_json(member.search)["best"]
    assert found.items() <= exported.items() and exported["max_new_tokens"] == 10
    assert search_task(run, member, Search(**SEARCH)).contents == before, "shards that were made before stay valid"

    (member.best / "generation_config.json").unlink()  # of a run that was trained before it was written
    evaluate(asked)
    assert read_json(member.best / "generation_config.json") == exported
    assert read_json(member.initial / "generation_config.json")["max_new_tokens"] == 7, "the teacher's own"
    assert len(list(member.best.glob("*"))) == len(list(member.initial.glob("*")))


def test_a_students_own_decoding_is_that_of_its_teacher_before_the_recipe(given: Path, tmp_path: Path) -> None:
    """Whether the teacher was searched before or after the student was made."""
    teachers = {"t": {"model": str(given / "teacher"), "train": {}, "evaluate": {"search": SEARCH}}}
    run = make_run(given, tmp_path, teachers=teachers)
    teacher, student = run.member("teachers", "t"), run.member("students", "s")
    make_teacher(Arguments(run, teacher))
    for trained in (teacher.best, teacher.final):
        shutil.copytree(teacher.initial, trained)
    search(arguments(run))
    assert read_json(teacher.best / "generation_config.json")["max_new_tokens"] == 10
    shrink_teacher(Arguments(run, student))
    own, theirs = (read_json(folder / "generation_config.json") for folder in (student.initial, teacher.initial))
    assert own == theirs and own["max_new_tokens"] == 7


def test_stopped_at_any_batch_it_ends_the_same(given: Path, tmp_path: Path) -> None:
    whole, stopped = (make_run(given, tmp_path / name) for name in ("whole", "stopped"))
    search(arguments(whole))
    (stage,) = [stage for stage in stages(stopped) if stage.name == "search-teacher-t"]
    assert stage.shards_done is not None and stage.shards_done() == (0, 10)
    stops, far = 0, [0]
    for _ in range(40):
        try:
            search(arguments(stopped, StopsAfter(3)))
        except StoppedError:
            stops += 1
        far.append(stage.shards_done()[0])
        if stage.is_complete():
            break
    assert stops >= 4 and far == sorted(far) and far[-1] == 10
    assert without_seconds(stopped) == without_seconds(whole)
    times = [point["seconds"] for point in read_json(stopped.member("teachers", "t").search)["points"]]
    assert None in times, "nobody saw all of an interrupted point"
    before = stopped.member("teachers", "t").search.stat().st_mtime_ns
    search(arguments(stopped))
    assert stopped.member("teachers", "t").search.stat().st_mtime_ns == before


def test_a_point_that_is_done_is_not_done_again(given: Path, tmp_path: Path) -> None:
    run = make_run(given, tmp_path)
    member = run.member("teachers", "t")
    for point in points(Search(**SEARCH), member)[:4]:
        point.result.parent.mkdir(parents=True, exist_ok=True)
        result = {"num_beams": point.num_beams, "length_penalty": point.length_penalty, "score": 1000.0}
        write_json(point.result, result | {"summary_words": 0.0, "seconds": 1.0})
    search(arguments(run))
    assert [point["score"] == 1000 for point in read_json(member.search)["points"]] == [True] * 4 + [False]
    assert read_json(member.search)["best"] == {"num_beams": 1}


def test_its_place_in_the_graph(given: Path, tmp_path: Path) -> None:
    graph = {stage.name: stage for stage in stages(make_run(given, tmp_path))}
    assert graph["search-teacher-t"].needs == ("prepare",) and "search-student-s" not in graph
    assert graph["evaluate-teacher-t"].needs == graph["label-t"].needs == ("search-teacher-t",)
    assert graph["shrink-student-s"].needs == ("prepare",), "a student does not wait for it"
    assert graph["search-teacher-t"].kind == graph["evaluate-teacher-t"].kind == "process group"


def test_what_comes_after_waits_for_it(given: Path, tmp_path: Path) -> None:
    run = make_run(given, tmp_path)
    for job in (lambda: evaluate(arguments(run)), lambda: label_task(run, run.label_set("t"))):
        with pytest.raises(InputError, match=r"evaluate.search; run it first \(python -m jobs.search --teacher t\)"):
            job()
    with pytest.raises(InputError, match=r"student s has no evaluate.search. Expected a grid"):
        search(Arguments(run, run.member("students", "s")))


def test_a_grid_may_change_until_something_was_decoded(given: Path, tmp_path: Path) -> None:
    run = make_run(given, tmp_path)
    shared = {"evaluate": run.recipe.evaluate.model_dump() | {"search": {"num_beams": [2]}}}
    teachers = {"t": {"model": str(given / "teacher"), "evaluate": {"search": SEARCH | {"num_beams": [1]}}}}
    key = "teachers.t.evaluate.search.num_beams"
    make_run(given, tmp_path, teachers=teachers)
    make_run(given, tmp_path)
    labelled = run.label_set("own").folder / "shard-00000-of-00008.jsonl.partial"
    write_json(labelled, {})
    with pytest.raises(InputError, match=key):
        make_run(given, tmp_path, teachers=teachers)
    labelled.unlink()
    search(arguments(run))
    with pytest.raises(InputError, match=rf"{key}: \[3, 1, 2\] when the run began, \[1\] now"):
        make_run(given, tmp_path, teachers=teachers)
    with pytest.raises(InputError, match=rf"{key}: \[3, 1, 2\] when the run began, absent now"):
        make_run(given, tmp_path, teachers={"t": {"model": str(given / "teacher")}})
    found = make_run(given, tmp_path, **shared).recipe
    assert found.students["s"].evaluate.search == Search(num_beams=[2]), "the student was not decoded yet"
    run.member("students", "s").evaluation("test").mkdir(parents=True)
    with pytest.raises(InputError, match=r" evaluate.search.num_beams: \[2\] when the run began, absent now"):
        make_run(given, tmp_path)


def test_a_member_may_change_one_key_of_the_grid_or_have_none() -> None:
    students = {"a": {"teacher": "t"}, "b": {"teacher": "t", "evaluate": {"search": {"num_beams": [3]}}},
                "c": {"teacher": "t", "evaluate": {"search": None}}}  # fmt: skip
    recipe = parse_recipe(any_recipe(students=students, evaluate={"search": SEARCH}))
    found = [recipe.students[name].evaluate.search for name in "abc"]
    assert found == [Search(**SEARCH), Search(**SEARCH | {"num_beams": [3]}), None]
    assert parse_recipe(parse_yaml(dump_recipe(recipe))) == recipe
    for wrong in ({"num_beams": []}, {"num_beams": [0]}, {"length_penalty": [True]}, {"beams": [1]}):
        with pytest.raises(InputError, match=r"evaluate\.search\."):
            parse_recipe(any_recipe(evaluate={"search": wrong}))
