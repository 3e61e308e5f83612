"""The recipes end to end, from prepare to report, with a tiny model of the family in the teacher's place."""

import concurrent.futures
from pathlib import Path
from typing import Any

import pytest

from distill.changes import open_run
from distill.distributed import World
from distill.files import read_jsonl
from distill.preflight import check_recipe
from distill.recipe_file import load_recipe
from distill.run import LabelSet, Run
from distill.stages import stages
from jobs.benchmark import benchmark
from jobs.cache import cache_teacher
from jobs.convert import convert_teacher
from jobs.evaluate import evaluate
from jobs.label import label
from jobs.merge import merge
from jobs.prepare import prepare
from jobs.report import report
from jobs.shrink import shrink_teacher
from jobs.start import Arguments
from jobs.teacher import make_teacher
from jobs.train import train
from tests.conftest import ROOT, write_corpus
from tests.distributed.harness import benchmark_by_forks, run_distributed
from tests.tiny import save_tiny

pytestmark = pytest.mark.distributed

JOBS: dict[str, Any] = {
    "prepare": prepare,
    "teacher": make_teacher,
    "convert": convert_teacher,
    "label": label,
    "merge": merge,
    "shrink": shrink_teacher,
    "cache": cache_teacher,
    "train": train,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "report": report,
}
SMALL = {
    "corpus.config": "null",
    "corpus.document": "document",
    "corpus.summary": "summary",
    "corpus.max_source_tokens": "40",
    "corpus.max_target_tokens": "12",
    "corpus.max_examples": "{validation: 2, test: 2}",
    "train.epochs": "null",
    "train.steps": "2",
    "train.batch_examples": "4",
    "train.log_every_steps": "1",
    "evaluate.every_epochs": "null",
    "evaluate.every_steps": "2",
    "evaluate.shards": "1",
    "evaluate.generation": "{num_beams: 2, max_new_tokens: 5}",
    "benchmark": "{documents: 1, rounds: 1, batch_sizes: [1]}",
}
TINY: dict[str, list[str]] = {
    "bart-xsum": ["teachers.bart.model=FOLDER/bart"],
    "bart-cnn": ["teachers.bart.model=FOLDER/bart"],
    "pegasus-xsum": ["teachers.pegasus.model=FOLDER/pegasus"],
    "pegasus-cnn": ["teachers.pegasus.model=FOLDER/pegasus"],
    "marian-en-ro": ["teachers.marian.model=FOLDER/marian"],
    "mbart-en-ro": ["teachers.mbart.model=FOLDER/mbart"],
    "t5-large": ["teachers.t5-large.model=FOLDER/t5-large", "students.t5-small.model=FOLDER/t5-small"],
    "bart-xsum-labels": [
        "teachers.bart.model=FOLDER/bart",
        "teachers.pegasus.model=FOLDER/pegasus",
        *(f"labels.{name}.shards=2" for name in ("bart", "bart-close", "bart-plate", "bart-best", "pegasus")),
        "labels.bart-close.keep_if={}",  # a random teacher's labels are never close
    ],
    "demo-kd": ["teachers.docstring-bart.model=FOLDER/demo"],
    "demo-pl": [
        "teachers.docstring-bart.model=FOLDER/demo",
        "labels.docstring-bart.keep_if={}",
        "labels.docstring-bart.engine=ctranslate2",
    ],
    "demo-training": ["teachers.docstring-bart.model=FOLDER/demo"],
    "demo-kd-cached": ["teachers.hidden.model=FOLDER/demo", "teachers.top-k.model=FOLDER/demo"],
}
MODELS: dict[str, tuple[str, int, int, dict[str, int]]] = {
    "bart": ("BART", 12, 12, {}),
    "pegasus": ("Pegasus", 16, 16, {}),
    "marian": ("Marian", 6, 6, {}),
    "mbart": ("mBART", 12, 12, {}),
    "t5-large": ("T5", 2, 24, {"d_model": 24, "num_heads": 3}),
    "t5-small": ("T5", 1, 2, {}),
    "demo": ("BART", 2, 4, {}),
}


def run_recipe(name: str, folder: Path) -> Run:
    overrides = [override.replace("FOLDER", str(folder)) for override in TINY[name]]
    overrides += [f"{key}={value}" for key, value in ({"corpus.train": str(folder / "corpus")} | SMALL).items()]
    recipe = load_recipe(ROOT / "jobs" / "recipes" / f"{name}.yaml", overrides)
    check_recipe(recipe)
    run = open_run(recipe, folder / "runs")
    for stage in stages(run):
        labels = stage.subject if isinstance(stage.subject, LabelSet) else None
        JOBS[stage.job](Arguments(run, stage.member, labels=labels))
        assert stage.is_complete(), stage.name
    return run


def run_all(world: World, folder: str, names: list[str]) -> None:
    benchmark_by_forks()
    for name in names:
        run_recipe(name, Path(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the recipes in each of two processes, which know nothing of each other."""
    folder = tmp_path_factory.mktemp("recipes")
    write_corpus(folder / "corpus", train=12)
    for name, (kind, encoder, decoder, sizes) in MODELS.items():
        save_tiny(folder / name, kind, encoder, decoder, noise=0.1, **sizes)
    halves = [list(TINY)[::2], list(TINY)[1::2]]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(lambda names: run_distributed(run_all, 1, str(folder), names), halves))
    return folder / "runs"


def losses_of(run: Path, student: str) -> dict[str, float]:
    """The last record of the loss and its terms."""
    return [row for row in read_jsonl(run / "students" / student / "metrics.jsonl") if "loss" in row][-1]


@pytest.mark.parametrize(
    ("recipe", "student", "terms"),
    [
        *[("bart-xsum", f"sft-{depths}", set()) for depths in ("12-3", "12-6", "12-1", "9-6", "6-6")],
        ("bart-xsum", "kd-12-6", {"cross_entropy", "kl", "hidden_decoder"}),
        *[("bart-cnn", f"sft-{depths}", set()) for depths in ("12-6", "12-3", "6-6")],
        *[(f"pegasus-{corpus}", "sft-16-4", set()) for corpus in ("xsum", "cnn")],
        *[(f"pegasus-{corpus}", "kd-16-4", {"cross_entropy", "kl", "hidden_decoder"}) for corpus in ("xsum", "cnn")],
        ("marian-en-ro", "sft-6-3", set()),
        ("marian-en-ro", "kd-6-3", {"cross_entropy", "kl", "hidden_decoder"}),
        *[("mbart-en-ro", f"sft-{depths}", set()) for depths in ("12-3", "12-6")],
        ("t5-large", "sft-24-6", set()),
        ("t5-large", "kd-24-6", {"cross_entropy", "kl", "hidden_decoder"}),
        ("t5-large", "t5-small", {"cross_entropy", "kl", "hidden_decoder", "hidden_encoder"}),
        ("demo-kd", "kd-2-2", {"cross_entropy", "kl", "hidden_decoder"}),
        ("demo-kd", "sft-2-2", set()),
        ("bart-xsum-labels", "pl-12-3", set()),
        ("bart-xsum-labels", "kd-on-labels-12-3", {"cross_entropy", "kl", "hidden_decoder"}),
        ("demo-pl", "both-2-1", set()),
        *[
            ("demo-training", student, set())
            for student in ("seed-43", "adafactor", "little-memory", "until-it-stalls")
        ],
        ("demo-kd-cached", "kd-2-1", {"cross_entropy", "kl", "hidden_decoder"}),
        ("demo-kd-cached", "top-k-2-2", {"cross_entropy", "kl"}),
    ],
)
def test_every_recipe_trains_with_its_terms(finished: Path, recipe: str, student: str, terms: set[str]) -> None:
    found = losses_of(finished / recipe, student)
    assert {name for name in found if name == "kl" or name.startswith(("cross", "hidden"))} == terms
    assert all(0 < found[name] < 40 for name in terms | {"loss"})
    assert (finished / recipe / "students" / student / "final" / "model.safetensors").exists()


def test_all_students_of_a_cached_teacher_read_the_same_files(finished: Path) -> None:
    caches = sorted(path.name for path in (finished / "demo-kd-cached" / "teachers" / "hidden" / "cache").iterdir())
    assert caches[0] == "head.safetensors" and len(caches) == 1 + 2 * 4


@pytest.mark.parametrize("recipe", TINY)
def test_every_recipe_ends_with_its_report(finished: Path, recipe: str) -> None:
    report = (finished / recipe / "report" / "report.md").read_text(encoding="utf-8")
    students = [folder.name for folder in (finished / recipe / "students").iterdir()]
    assert students and all(f"| student {student} |" in report for student in students)
