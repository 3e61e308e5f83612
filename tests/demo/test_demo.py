"""What `make demo` must have left in runs/demo. Run by `make demo-check`, after `make demo`."""

from pathlib import Path

import pytest

from distill.corpus import read_references, read_split
from distill.files import read_json
from distill.recipe_file import load_recipe
from distill.run import Member, Run
from distill.scores import central, corpus_scores, first_sentence
from distill.stages import stages

FOLDER = Path(__file__).parents[2] / "runs" / "demo"
RECOVERED = 0.8  # of the teacher's ROUGE-1, by each student


@pytest.fixture(scope="module")
def run() -> Run:
    assert FOLDER.is_dir(), f"{FOLDER} is missing; run `make demo` first"
    return Run(load_recipe(FOLDER / "recipe.yaml"), FOLDER)


def rouge1_of(member: Member) -> float:
    return central(read_json(member.evaluation("test") / "scores.json")["rouge1"])


def test_every_stage_is_complete(run: Run) -> None:
    assert [stage.name for stage in stages(run) if not stage.is_complete()] == []


def test_the_report_shows_every_model_and_picture(run: Run) -> None:
    report = (run.report / "report.md").read_text(encoding="utf-8")
    for member in run.members():
        assert f"| {member} |" in report
    pictures = [line.split("](")[1].rstrip(")") for line in report.splitlines() if line.startswith("![")]
    assert len(pictures) >= 3
    for picture in pictures:
        assert (run.report / picture).stat().st_size > 1000


def test_the_teacher_is_better_than_the_first_sentence(run: Run) -> None:
    table = run.split("test")
    firsts = [first_sentence(row["document"]) for row in read_split(table)]
    baseline = corpus_scores(firsts, read_references(table), run.recipe.evaluate.bleu_tokenize)["rouge1"]
    for name in run.recipe.teachers:
        assert rouge1_of(run.member("teachers", name)) > baseline


def test_each_student_recovers_most_of_its_teacher(run: Run) -> None:
    for name, student in run.recipe.students.items():
        teacher = rouge1_of(run.member("teachers", student.teacher))
        assert rouge1_of(run.member("students", name)) >= RECOVERED * teacher, name
