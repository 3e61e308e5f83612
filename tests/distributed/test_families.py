"""Every family through every stage on two processes, each with a real tokenizer of its kind."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from distill.changes import open_run
from distill.distributed import World
from distill.files import read_json, read_jsonl
from distill.recipe_file import parse_recipe
from distill.run import LabelSet, Run
from distill.stages import Stage, stages
from jobs.benchmark import benchmark
from jobs.evaluate import evaluate
from jobs.label import label
from jobs.merge import merge
from jobs.prepare import prepare
from jobs.shrink import shrink_teacher
from jobs.start import Arguments
from jobs.train import train
from tests.conftest import make_rows, write_corpus
from tests.distributed.harness import benchmark_by_forks, run_distributed
from tests.tiny import KINDS, save_tiny

pytestmark = pytest.mark.distributed

JOBS: dict[str, Any] = {
    "prepare": prepare,
    "label": label,
    "merge": merge,
    "shrink": shrink_teacher,
    "train": train,
    "evaluate": evaluate,
    "benchmark": benchmark,
}
EXAMPLES, SOURCE, TARGET = 10, 40, 12
BEAMS = {"num_beams": 3, "max_new_tokens": 7, "no_repeat_ngram_size": 1}
ZERO = range(4)


def make_run(folder: Path, name: str, teachers: dict[str, Any], **more: Any) -> Run:
    corpus = {"train": str(folder / "corpus"), "max_source_tokens": SOURCE, "max_target_tokens": TARGET}
    return open_run(parse_recipe({"name": name, "corpus": corpus, "teachers": teachers, **more}), folder / "runs")


def family_run(folder: Path, name: str) -> Run:
    """A student for every ZeRO stage, distilled from a replica or from a sharded teacher; the others are the same."""
    teacher = {"model": str(folder / "models" / name), "prefix": KINDS[name].prefix, "languages": KINDS[name].languages}
    objective = {"kl": {"weight": 0.8}, "hidden": {"weight": 1.0, "normalize": True}}
    return make_run(
        folder,
        name,
        {"replica": teacher, "sharded": teacher | {"zero_stage": 3}},
        labels={"replica": {"shards": 2, **BEAMS}},
        students={
            f"zero{stage}": {
                "teacher": "sharded" if stage == 3 else "replica",
                "encoder_layers": 2,
                "decoder_layers": 2,
                "objective": objective,
                "train": {"zero_stage": stage},
            }
            for stage in ZERO
        },
        train={
            "batch_examples": EXAMPLES,
            "steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "dropout": 0.0,
            "log_every_steps": 1,
        },
        evaluate={"every_steps": 2, "before_training": False, "examples": 2, "shards": 2, "generation": BEAMS},
    )


def benchmark_run(folder: Path) -> Run:
    """One of all students: each starts a process of its own."""
    models = {
        name: {
            "model": str(student(folder, name, 3) / "final"),
            "languages": KINDS[name].languages,
            "evaluate": {"generation": BEAMS},
        }
        for name in KINDS
    }
    return make_run(folder, "benchmark", models, benchmark={"documents": 1, "rounds": 1, "batch_sizes": [2]})


def student(folder: Path, name: str, stage: int) -> Path:
    return folder / "runs" / name / "students" / f"zero{stage}"


def is_wanted(stage: Stage) -> bool:
    one_is_enough = stage.job == "evaluate" and (stage.member is None or stage.member.name != "zero3")
    return stage.job in JOBS and not one_is_enough


def run_stages(world: World, run: Run, jobs: set[str]) -> None:
    for stage in stages(run):
        if stage.job in jobs and is_wanted(stage):
            labels = stage.subject if isinstance(stage.subject, LabelSet) else None
            if world.is_main or stage.kind != "one process":
                JOBS[stage.job](Arguments(run, stage.member, labels=labels))
            world.barrier()
            assert stage.is_complete(), stage.name


def run_families(world: World, folder_name: str) -> None:
    folder = Path(folder_name)
    gc.freeze()  # DeepSpeed collects at every start at ZeRO 3; the libraries need not be looked through each time
    for name in KINDS:
        run_stages(world, family_run(folder, name), {*JOBS} - {"benchmark"})
    benchmark_by_forks()
    run_stages(world, benchmark_run(folder), {"prepare", "benchmark"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    write_corpus(folder / "corpus", train=EXAMPLES)
    for name in KINDS:
        save_tiny(folder / "models" / name, name)
    run_distributed(run_families, 2, str(folder))
    return folder


def reload(folder: Path) -> tuple[Any, Any]:
    """By transformers alone."""
    return AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def plain_tokens(folder: Path, documents: list[str]) -> tuple[torch.Tensor, list[str]]:
    """(output_BT, texts)"""
    model, tokenizer = reload(folder)
    source = tokenizer(documents, padding=True, truncation=True, max_length=SOURCE, return_tensors="pt")
    output_BT = model.generate(**source, **BEAMS)
    texts = tokenizer.batch_decode(output_BT, skip_special_tokens=True)
    return output_BT, [text.strip() for text in texts]


def first_record(folder: Path) -> dict[str, float]:
    return next(row for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row)


STAGES = ["shrink", *(f"ZeRO {stage}" for stage in ZERO), "generate", "evaluate", "benchmark", "reload"]


def done(folder: Path, name: str, stage: str) -> bool:
    """What a stage leaves behind."""
    if stage.startswith("ZeRO"):
        return (student(folder, name, int(stage[-1])) / "final" / "model.safetensors").exists()
    run, one = folder / "runs" / name, student(folder, name, 3)
    return {
        "shrink": lambda: (one / "initial" / "model.safetensors").exists(),
        "generate": lambda: read_json(run / "labels" / "replica" / "manifest.json")["documents"] == EXAMPLES,
        "evaluate": lambda: read_json(one / "evaluation" / "test" / "scores.json")["rouge1"]["mean"] >= 0,
        "benchmark": lambda: read_json(folder / "runs" / "benchmark" / "teachers" / name / "benchmark.json")["latency_ms"] > 0,
        "reload": lambda: len(plain_tokens(one / "final", ["the quick brown fox"])[1]) == 1,
    }[stage]()  # fmt: skip


def test_the_table(finished: Path) -> None:
    """With -s it is printed, as README has it."""
    table = {name: [done(finished, name, stage) for stage in STAGES] for name in KINDS}
    print("\n| family | " + " | ".join(STAGES) + " |\n| --- |" + " --- |" * len(STAGES))
    for name, cells in table.items():
        print(f"| {name} | " + " | ".join("yes" if cell else "NO" for cell in cells) + " |")
    assert all(all(cells) for cells in table.values())


@pytest.mark.parametrize("name", KINDS)
def test_the_first_loss_is_that_of_plain_transformers(finished: Path, name: str) -> None:
    """Start tokens, also where they are the pad token, languages, the bias and the scale of the logits: all are in it."""
    model, tokenizer = reload(student(finished, name, 0) / "initial")
    total, count = 0.0, 0
    for row in make_rows(EXAMPLES):
        document = KINDS[name].prefix + row["document"]
        texts = tokenizer(document, truncation=True, max_length=SOURCE, return_tensors="pt")
        labels = tokenizer(text_target=row["summary"], truncation=True, max_length=TARGET, return_tensors="pt")[
            "input_ids"
        ]
        with torch.no_grad():
            total += float(model(**texts, labels=labels).loss) * labels.numel()
        count += labels.numel()
    for stage in ZERO:
        found = first_record(student(finished, name, stage))["cross_entropy"]
        assert found == pytest.approx(total / count, rel=1e-5), stage


@pytest.mark.parametrize("name", KINDS)
def test_all_zero_stages_and_both_teachers_give_the_same_losses(finished: Path, name: str) -> None:
    curves = []
    for stage in ZERO:
        rows = [row for row in read_jsonl(student(finished, name, stage) / "metrics.jsonl") if "loss" in row]
        curves.append([row[term] for row in rows for term in ("loss", "cross_entropy", "kl", "hidden_decoder")])
    assert len(set(curves[0])) == 2 * 4
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_transformers_alone_writes_the_predictions(finished: Path, name: str) -> None:
    """With the start token and the forced token of the kind; no text is the same for all documents."""
    folder, kind = student(finished, name, 3), KINDS[name]
    predictions = [row["summary"] for row in read_jsonl(folder / "evaluation" / "test" / "predictions.jsonl")]
    tokens, texts = plain_tokens(folder / "final", [kind.prefix + row["document"] for row in make_rows(8, seed=2)])
    assert texts == predictions and len(set(texts)) > 3
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    assert set(tokenizer.convert_ids_to_tokens(tokens[:, 0])) == {kind.start}
    assert (set(tokenizer.convert_ids_to_tokens(tokens[:, 1])) == {kind.forced}) == (kind.forced is not None)


def positions(model: Any) -> list[torch.Tensor]:
    """The static position embeddings of encoder and decoder: weights or buffers, in a file or not."""
    modules = [module for module in model.modules() if "Sinusoidal" in type(module).__name__]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stage", ZERO)
def test_what_is_no_layer_is_as_the_teacher_has_it(finished: Path, name: str, stage: int) -> None:
    """Static positions and biases stay as they are; heads are trained, and tied where the teacher's is."""
    teacher, trained = reload(finished / "models" / name)[0], reload(student(finished, name, stage) / "final")[0]
    static = KINDS[name].family in ("pegasus", "marian", "m2m_100")
    assert len(positions(trained)) == (2 if static else 0)
    for found, expected in zip(positions(trained), positions(teacher), strict=True):
        assert torch.equal(found, expected) and float(found.detach().std()) > 0.1
    bias = getattr(teacher, "final_logits_bias", None)
    if bias is not None:
        assert torch.equal(trained.final_logits_bias, bias) and float(bias.std()) > 0.1
    heads = [model.get_output_embeddings().weight for model in (trained, teacher)]
    assert heads[0].shape == heads[1].shape and not torch.equal(*heads)
    own_head = name in ("Flan-T5", "mT5")
    for model, head in zip((trained, teacher), heads, strict=True):
        assert torch.equal(head, model.get_input_embeddings().weight) != own_head
