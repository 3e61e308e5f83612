"""The distillation recipes end to end, with a tiny model of the family in the teacher's place."""

from pathlib import Path
from typing import Any

import pytest

from distill.distributed import World
from distill.files import read_jsonl
from distill.preflight import check_recipe
from distill.pretrained import train_tokenizer
from distill.recipe_file import load_recipe
from distill.run import LabelSet, Run, open_run
from distill.sections import Tokenizer
from distill.stages import stages
from jobs.cache import cache_teacher
from jobs.convert import convert_teacher
from jobs.label import label
from jobs.merge import merge
from jobs.prepare import prepare
from jobs.shrink import shrink_teacher
from jobs.start import Arguments
from jobs.train import train
from tests.conftest import ROOT, make_model, make_rows, write_corpus
from tests.distributed.harness import run_distributed

pytestmark = pytest.mark.distributed

JOBS: dict[str, Any] = {
    "prepare": prepare,
    "convert": convert_teacher,
    "label": label,
    "merge": merge,
    "shrink": shrink_teacher,
    "cache": cache_teacher,
    "train": train,
}
SMALL = ["max_source_tokens=40", "max_target_tokens=12", "document=document", "summary=summary", "max_examples={}"]
QUICK = [
    "train.epochs=null",
    "train.steps=2",
    "train.batch_examples=4",
    "evaluate.every_steps=2",
    "evaluate.examples=2",
]
TINY: dict[str, list[str]] = {
    "kd-bart-xsum-12-6": ["teachers.bart.model=FOLDER/bart"],
    "kd-marian-en-ro-6-3": ["teachers.marian.model=FOLDER/marian"],
    "kd-pegasus-xsum-16-4": ["teachers.pegasus.model=FOLDER/pegasus"],
    "kd-t5-small-from-large": [
        "teachers.t5-large.model=FOLDER/t5-large",
        "teachers.t5-large.train=null",
        "students.t5-small.model=FOLDER/t5-small",
    ],
    "demo-kd": ["teachers.docstring-bart.model=FOLDER/demo"],
    "pl-bart-xsum-12-3": [
        "teachers.bart.model=FOLDER/bart",
        "teachers.pegasus.model=FOLDER/pegasus",
        "train.precision=fp32",
        *(f"labels.{name}.shards=2" for name in ("bart", "bart-close", "bart-plate", "bart-best", "pegasus")),
        "labels.bart-close.keep_if={}",  # a random teacher's labels are never close
    ],
    "demo-pl": [
        "teachers.docstring-bart.model=FOLDER/demo",
        "labels.docstring-bart.keep_if={}",
        "labels.docstring-bart.engine=ctranslate2",
    ],
    "demo-training": ["teachers.docstring-bart.model=FOLDER/demo"],
    "demo-kd-cached": ["teachers.hidden.model=FOLDER/demo", "teachers.top-k.model=FOLDER/demo"],
}
MODELS: dict[str, dict[str, Any]] = {
    "bart": {"encoder": 12, "decoder": 12},
    "marian": {"encoder": 6, "decoder": 6},
    "pegasus": {"encoder": 16, "decoder": 16},
    "t5-large": {"family": "t5", "encoder": 3, "decoder": 4, "d_model": 24, "num_heads": 3},
    "t5-small": {"family": "t5", "encoder": 2, "decoder": 2},
    "demo": {"family": "bart", "encoder": 2, "decoder": 4},
}


def save_models(folder: Path) -> None:
    texts = (row[field] for row in make_rows(100) for field in ("document", "summary"))
    tokenizer = train_tokenizer(Tokenizer(kind="bpe", vocabulary=320), "bart", texts)
    for name, settings in MODELS.items():
        model = make_model(**({"family": name, "tokenizer": tokenizer, "noise": 0.1} | settings))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def run_recipe(name: str, folder: Path) -> Run:
    overrides = [override.replace("FOLDER", str(folder)) for override in TINY[name]]
    overrides += [f"corpus.{override}" for override in [f"train={folder / 'corpus'}", *SMALL]] + QUICK
    recipe = load_recipe(ROOT / "jobs" / "recipes" / f"{name}.yaml", overrides)
    check_recipe(recipe)
    run = open_run(recipe, folder / "runs")
    for stage in stages(run):
        if stage.job in JOBS:
            labels = stage.subject if isinstance(stage.subject, LabelSet) else None
            JOBS[stage.job](Arguments(run, stage.member, labels=labels))
            assert stage.is_complete(), stage.name
    return run


def run_all(world: World, folder: str) -> None:
    for name in TINY:
        run_recipe(name, Path(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    write_corpus(folder / "corpus", train=12)
    save_models(folder)
    run_distributed(run_all, 1, str(folder))
    return folder / "runs"


def losses_of(run: Path, student: str) -> dict[str, float]:
    """The last record of the loss and its terms."""
    return [row for row in read_jsonl(run / "students" / student / "metrics.jsonl") if "loss" in row][-1]


@pytest.mark.parametrize(
    ("recipe", "student", "terms"),
    [
        ("kd-bart-xsum-12-6", "kd-12-6", {"cross_entropy", "kl", "hidden_decoder"}),
        ("kd-marian-en-ro-6-3", "kd-6-3", {"cross_entropy", "kl", "hidden_decoder"}),
        ("kd-pegasus-xsum-16-4", "kd-16-4", {"cross_entropy", "kl", "hidden_decoder"}),
        ("kd-t5-small-from-large", "t5-small", {"cross_entropy", "kl", "hidden_decoder", "hidden_encoder"}),
        ("demo-kd", "kd-2-2", {"cross_entropy", "kl", "hidden_decoder"}),
        ("demo-kd", "sft-2-2", set()),
        ("pl-bart-xsum-12-3", "pl-12-3", set()),
        ("pl-bart-xsum-12-3", "kd-on-labels-12-3", {"cross_entropy", "kl", "hidden_decoder"}),
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
    assert all(0 < found[name] < 20 for name in terms | {"loss"})
    assert (finished / recipe / "students" / student / "final" / "model.safetensors").exists()


def test_all_students_of_a_cached_teacher_read_the_same_files(finished: Path) -> None:
    caches = sorted(path.name for path in (finished / "demo-kd-cached" / "teachers" / "hidden" / "cache").iterdir())
    assert caches[0] == "head.safetensors" and len(caches) == 1 + 2 * 4
