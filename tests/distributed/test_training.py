"""The training step on one, two and four gloo processes: the same losses, the same weights, exact resume."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from distill.batching import BatchPlan, StepSource, TrainingData
from distill.checkpoint import newest_intact
from distill.distributed import World
from distill.files import read_jsonl
from distill.objective import ScoredStudent
from distill.plan import learning_rate
from distill.pretrained import train_tokenizer
from distill.recipe import Objective
from distill.run import Member
from distill.sections import Evaluate, Tokenizer, Train
from distill.student import shrink
from distill.tokens import Encoder, tokenize
from distill.trainer import NonFiniteLossError, Trainer
from tests.conftest import make_model, make_rows
from tests.distributed.harness import run_distributed

pytestmark = pytest.mark.distributed

STEPS = 8
BASE = {"batch_examples": 6, "steps": STEPS, "learning_rate": 3e-3, "warmup_steps": 3, "label_smoothing": 0.1,
        "dropout": 0.0, "clip_norm": 0.5, "log_every_steps": 1, "weight_decay": 0.01}  # fmt: skip


def make_parts(family: str = "bart") -> tuple[Any, Any, TrainingData]:
    """A student, its tokenizer and its data: the same on every rank."""
    texts = (row[field] for row in make_rows(100) for field in ("document", "summary"))
    tokenizer = train_tokenizer(Tokenizer(kind="bpe", vocabulary=320), "bart", texts)
    student = shrink(make_model(family, tokenizer), [0, 2], [1, 3])
    rows, held_out = make_rows(40, seed=5), make_rows(5, seed=6)
    data = TrainingData(
        train=tokenize(Encoder(tokenizer, 40, 20), rows),
        train_ids=[row["id"] for row in rows],
        validation=tokenize(Encoder(tokenizer, 40, 20), held_out),
        validation_references=[[row["summary"]] for row in held_out],
        max_target_tokens=8,
    )
    return student, tokenizer, data


def make_trainer(
    world: World,
    folder: str,
    family: str = "bart",
    evaluate: dict[str, Any] | None = None,
    seed: int = 11,
    **settings: Any,
) -> Trainer:
    student, tokenizer, data = make_parts(family)
    if settings.get("precision") == "bf16":
        student.bfloat16()
    validation = Evaluate.model_validate({"every_steps": 4, "num_beams": 2} | (evaluate or {}))
    member = Member("students", "s", Path(folder))
    train = Train(**(BASE | settings))
    scored = ScoredStudent(student, Objective(), train.label_smoothing)
    return Trainer(member, scored, tokenizer, data, train, validation, seed, world)


def train_all(world: World, folder: str, cases: dict[str, dict[str, Any]]) -> None:
    for name, settings in cases.items():
        make_trainer(world, f"{folder}/{world.size}-{name}", **settings).run()


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()
    return state


def plain_losses() -> list[float]:
    """The same training, written as anybody would in plain PyTorch: no DeepSpeed, no micro-batches."""
    student, _, data = make_parts()
    train = Train(**BASE)
    student.train()
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        for module in student.modules():
            if hasattr(module, name) and isinstance(getattr(module, name), float):
                setattr(module, name, 0.0)
    groups = [[p for p in student.parameters() if p.dim() > 1], [p for p in student.parameters() if p.dim() <= 1]]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.01}, {"params": groups[1], "weight_decay": 0.0}]
    )
    lengths = [(len(s), len(t)) for s, t in zip(data.train.source, data.train.target, strict=True)]
    steps, result = StepSource(BatchPlan(lengths, 11, batch_examples=6)), []
    for step in range(STEPS):
        total, count = torch.zeros(()), 0
        for i in steps[step]:  # one example at a time: nothing is padded
            labels = torch.tensor([data.train.target[i]])
            logits = student(input_ids=torch.tensor([data.train.source[i]]), labels=labels).logits[0]
            log_p = logits.log_softmax(-1)
            nll = -log_p.gather(1, labels.T).sum()
            total = total + 0.9 * nll - 0.1 * log_p.mean(-1).sum()
            count += labels.numel()
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        result.append(float(loss.detach()))
    return result


CASES: dict[str, dict[str, Any]] = {
    **{f"zero{stage}": {"zero_stage": stage} for stage in range(4)},
    **{f"zero{stage}-accumulated": {"zero_stage": stage, "micro_batch_tokens": 90} for stage in range(4)},
}
FROZEN = {f"frozen-zero{stage}": {"zero_stage": stage, "freeze": ["encoder", "embeddings"]} for stage in (0, 2, 3)}
OTHERS: dict[str, dict[str, Any]] = {
    **FROZEN,
    **{f"t5-zero{stage}": {"zero_stage": stage, "family": "t5"} for stage in (1, 3)},
    **{f"pegasus-zero{stage}": {"zero_stage": stage, "family": "pegasus"} for stage in (0, 3)},
    **{f"tokens-zero{stage}": {"zero_stage": stage, "batch_examples": None, "batch_tokens": 200} for stage in (0, 2)},
}


BF16 = {f"bf16-zero{stage}": {"zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)}
FEW: dict[str, dict[str, Any]] = {f"few-zero{stage}": {"zero_stage": stage, "batch_examples": 3} for stage in (0, 2, 3)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case on one and two processes, a few on four, some of them with more ranks than examples in a step."""
    folder = tmp_path_factory.mktemp("trained")
    run_distributed(train_all, 1, str(folder), CASES | OTHERS | BF16 | FEW)
    run_distributed(train_all, 2, str(folder), CASES | OTHERS | BF16)
    run_distributed(train_all, 4, str(folder), {"zero2": CASES["zero2"], "zero3": CASES["zero3"], **FEW})
    return folder


def test_one_process_equals_plain_pytorch(trained: Path) -> None:
    assert losses(trained / "1-zero0") == pytest.approx(plain_losses(), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_same_loss_curve_however_it_is_cut(trained: Path, name: str, world_size: int) -> None:
    reference, folder = trained / "1-zero0", trained / f"{world_size}-{name}"
    assert losses(folder) == pytest.approx(losses(reference), rel=1e-5)
    expected = weights(reference / "final")
    for key, value in weights(folder / "final").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_four_processes(trained: Path, name: str) -> None:
    assert losses(trained / f"4-{name}") == pytest.approx(losses(trained / "1-zero0"), rel=1e-5)


@pytest.mark.parametrize("name", FEW)
def test_ranks_without_examples_take_part(trained: Path, name: str) -> None:
    assert losses(trained / f"4-{name}") == pytest.approx(losses(trained / "1-few-zero0"), rel=1e-5)


@pytest.mark.parametrize("name", BF16)
@pytest.mark.parametrize("world_size", [1, 2])
def test_bf16_follows_fp32(trained: Path, name: str, world_size: int) -> None:
    """Eight bits of mantissa: a few parts in a thousand."""
    assert losses(trained / f"{world_size}-{name}") == pytest.approx(losses(trained / "1-zero0"), rel=5e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_families_frozen_parts_and_token_batches(trained: Path, name: str) -> None:
    first = name.split("zero")[0] + ("zero1" if name.startswith("t5") else "zero0")
    assert losses(trained / f"2-{name}") == pytest.approx(losses(trained / f"1-{first}"), rel=1e-5)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_parts_stay_and_the_rest_learns(trained: Path, name: str) -> None:
    before, after = make_parts()[0].state_dict(), weights(trained / f"2-{name}" / "final")
    for key, value in after.items():
        frozen = ".encoder." in key or "shared" in key or "embed_" in key or key == "lm_head.weight"
        if frozen or ("layers" in key and key.endswith("fc1.weight")):
            assert torch.equal(value, before[key]) == frozen, key


@pytest.mark.parametrize("stage", range(4))
def test_exports_keep_tied_weights_and_hold_no_more_than_the_model(trained: Path, stage: int) -> None:
    for name in ("best", "final"):
        model = AutoModelForSeq2SeqLM.from_pretrained(trained / f"2-zero{stage}" / name)
        assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        assert model.config.distilled_from["decoder_layers"] == [1, 3]


def test_validation_is_recorded_from_step_zero(trained: Path) -> None:
    rows = [row for row in read_jsonl(trained / "2-zero3" / "metrics.jsonl") if "rouge2" in row]
    assert [row["step"] for row in rows] == [0, 4, 8]
    one = [row for row in read_jsonl(trained / "1-zero0" / "metrics.jsonl") if "rouge2" in row]
    assert [row["rouge1"] for row in rows] == pytest.approx([row["rouge1"] for row in one], abs=1e-6)


# ------------------------------------------------------------------------------------------------ resume

SAVED = {"save_every_steps": 3, "log_every_steps": 1}
RESUMED: dict[str, dict[str, Any]] = {
    f"{precision}-zero{stage}": {"zero_stage": stage, "precision": precision, "dropout": 0.2, **SAVED}
    for precision, stages in (("fp32", (0, 1, 2, 3)), ("bf16", (2, 3)))
    for stage in stages
}


def train_twice(world: World, folder: str) -> None:
    """Uninterrupted; then again from the checkpoint of step 3, as if killed while saving step 6."""
    for name, settings in RESUMED.items():
        place = Path(folder) / name
        make_trainer(world, str(place), **settings).run()
        if world.is_main:
            shutil.copytree(place / "final", Path(folder) / f"{name}-whole")
            assert newest_intact(place / "checkpoints") == place / "checkpoints" / "step-00000006"
            (place / "checkpoints" / "step-00000006" / "manifest.json").unlink()
            shutil.rmtree(place / "final")
        world.barrier()
        again = make_trainer(world, str(place), **settings)
        again.run()
        assert again.step == STEPS


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed")
    run_distributed(train_twice, 2, str(folder))
    return folder


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_training_ends_bit_for_bit_the_same(resumed: Path, name: str) -> None:
    expected = weights(resumed / f"{name}-whole")
    for key, value in weights(resumed / name / "final").items():
        assert torch.equal(value, expected[key]), key
    steps = [row["step"] for row in read_jsonl(resumed / name / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, STEPS + 1)), "no step is recorded twice"
    assert sorted(path.name for path in (resumed / name / "checkpoints").glob("step-*")) == [
        "step-00000003",
        "step-00000006",
    ]


# ------------------------------------------------------------------------------------------------ refusal


def poison_rank_one(world: World, folder: str) -> str:
    trainer = make_trainer(world, folder, zero_stage=2)
    accumulate = trainer.engine.accumulate
    if world.rank == 1:
        trainer.engine.accumulate = lambda *a, **k: accumulate(*a, **k) * math.nan  # type: ignore[method-assign]
    try:
        trainer.run()
    except NonFiniteLossError as error:
        return str(error)
    return "no error"


def explode(world: World, folder: str) -> list[str]:
    """A finite loss whose gradient is not."""
    messages = []
    for stage in (0, 2):
        trainer = make_trainer(world, f"{folder}/{stage}", zero_stage=stage, save_every_steps=1)
        backward = trainer.engine._engine.backward
        trainer.engine._engine.backward = lambda loss, run=backward: run(loss * math.inf)
        try:
            trainer.run()
            messages.append("no error")
        except NonFiniteLossError as error:
            messages.append(str(error))
    return messages


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    for message in run_distributed(explode, 1, str(tmp_path))[0]:
        assert "the gradient of step 1 is not finite; the last checkpoint stands" in message
    assert not list(tmp_path.rglob("step-*"))


def test_a_loss_that_is_no_number_on_any_rank_stops_all(tmp_path: Path) -> None:
    messages = run_distributed(poison_rank_one, 2, str(tmp_path))
    assert messages[0] == messages[1]
    assert "the loss of step 1 is nan" in messages[0] and "Its examples: r" in messages[0]
    assert not (tmp_path / "final").exists()
