import itertools
import math
from typing import Any

import pytest

from distill import plan
from distill.families import shape_of
from distill.sections import EarlyStopping, Evaluate, Train

BART_LARGE = {
    "model_type": "bart", "encoder_layers": 12, "decoder_layers": 12, "d_model": 1024, "vocab_size": 50264,
    "max_position_embeddings": 1024, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096,
}  # fmt: skip


def test_warm_up_then_linear_decay() -> None:
    train = Train(steps=100, learning_rate=1.0, warmup_steps=10)
    rates = [plan.learning_rate(train, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and max(rates) == 1.0
    falling = [a - b for a, b in itertools.pairwise(rates[10:])]
    assert all(fall == pytest.approx(1 / 90) for fall in falling)
    assert plan.learning_rate(train, 100, 100) == 0


def test_more_warm_up_than_steps() -> None:
    train = Train(steps=3, learning_rate=1.0, warmup_steps=500)
    assert [plan.learning_rate(train, step, 3) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_warm_up_is_5_percent_of_the_steps_unless_it_is_given() -> None:
    train = Train(epochs=1, learning_rate=1.0)
    assert [plan.warmup_steps(train, steps) for steps in (1, 20, 21, 100, 10_000)] == [1, 1, 2, 5, 500]
    rates = [plan.learning_rate(train, step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 4 and rates[4] == 1.0 and rates[-1] < 0.02
    assert plan.warmup_steps(Train(steps=100, warmup_steps=0), 100) == 0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "polynomial"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_every_schedule_falls_from_the_learning_rate_to_zero(schedule: str, warmup: int) -> None:
    train = Train.model_validate({"steps": 100, "learning_rate": 2.0, "warmup_steps": warmup, "schedule": schedule})
    rates = [plan.learning_rate(train, step, 100) for step in range(warmup, 101)]
    assert rates[0] == 2.0 and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 0.0)


def test_the_shape_of_each_schedule() -> None:
    """Half way and at a quarter, against the formulas as they are written down elsewhere."""
    halves = {"linear": 0.5, "cosine": 0.5, "constant": 1.0, "polynomial": 0.5**3}
    quarters = {"linear": 0.75, "cosine": 0.5 * (1 + math.cos(math.pi / 4)), "constant": 1.0, "polynomial": 0.75**3}
    for step, expected in ((50, halves), (25, quarters)):
        for schedule, rate in expected.items():
            given = {"steps": 100, "learning_rate": 1, "warmup_steps": 0, "schedule": schedule, "polynomial_power": 3}
            assert plan.learning_rate(Train.model_validate(given), step, 100) == pytest.approx(rate)


def test_validations_by_steps_and_by_parts_of_an_epoch() -> None:
    assert plan.validation_steps(Evaluate(), 20) == 1000
    assert plan.validation_steps(Evaluate(every_steps=7), 20) == 7
    assert plan.validation_steps(Evaluate(every_epochs=0.1), 204.4) == 20
    assert plan.validation_steps(Evaluate(every_epochs=0.1), 3) == 1


@pytest.mark.parametrize(
    ("scores", "ends_at"),
    [
        ([1, 2, 3, 4], None),
        ([1, 1, 1], 2),
        ([3, 2, 1], 2),
        ([1, 0, 1.3, 1.4, 1.5], None),  # 1.5 is 0.2 above the last that counted
        ([1, 1.1, 1.1], 2),  # better, but by too little
        ([1, 0, 1.2, 0, 0], 4),
    ],
)
def test_a_training_has_stalled_after_so_many_validations(scores: list[float], ends_at: int | None) -> None:
    settings = EarlyStopping(patience=2, min_delta=0.19)
    ends = [end for end in range(len(scores)) if plan.has_stalled(scores[: end + 1], settings)]
    assert ends[:1] == ([] if ends_at is None else [ends_at])
    assert not plan.has_stalled(scores, None)


def test_any_improvement_counts_where_no_least_one_is_given() -> None:
    assert not plan.has_stalled([1, 1 + 1e-9], EarlyStopping(patience=1))
    assert plan.has_stalled([1, 1], EarlyStopping(patience=1))


def test_epochs_become_steps() -> None:
    assert plan.total_steps(Train(epochs=1.5), 7) == 11
    assert plan.total_steps(Train(steps=4), 7) == 4


def test_parameters_of_bart_large() -> None:
    assert shape_of(BART_LARGE, "x").parameters() == pytest.approx(406e6, rel=0.01)
    assert shape_of(BART_LARGE, "x").with_depths(12, 3).parameters() == pytest.approx(255e6, rel=0.01)


def test_zero_stages_need_less_memory() -> None:
    shape = shape_of(BART_LARGE, "x")
    needed = [plan.training_memory_gb(shape, Train(steps=1, zero_stage=stage), 8) for stage in (0, 1, 2, 3)]
    assert needed == sorted(needed, reverse=True) and len(set(needed)) == 4
    single = [plan.training_memory_gb(shape, Train(steps=1, zero_stage=stage), 1) for stage in (0, 3)]
    assert single[0] == single[1]
    frozen = Train(steps=1, freeze=["encoder", "embeddings"])
    assert plan.training_memory_gb(shape, frozen, 1) < plan.training_memory_gb(shape, Train(steps=1), 1)


def test_what_saves_memory_is_counted() -> None:
    shape = shape_of(BART_LARGE, "x")

    def needed(**settings: Any) -> float:
        return plan.training_memory_gb(shape, Train(steps=1, **settings), 2)

    trained = shape.parameters() / 1e9
    assert needed(zero_stage=0) - needed(zero_stage=0, optimizer="adafactor") == pytest.approx(8 * trained)
    for precision, states in (("fp32", 8), ("bf16", 12)):
        settings = Train(steps=1, precision=precision, offload="cpu")
        moved = needed(precision=precision) - needed(precision=precision, offload="cpu")
        assert moved == pytest.approx(states * trained / 2)
        assert moved < plan.host_memory_gb(shape, settings, 2) == pytest.approx(16 * trained / 2)
    assert plan.host_memory_gb(shape, Train(steps=1), 2) == 0
    layers, per_layer = 24, 16384 * 1024 * 17 * 4 / 1e9
    saved = needed() - needed(gradient_checkpointing=True)
    assert saved == pytest.approx((layers - 1 - layers / 17) * per_layer)
