import itertools

import pytest

from distill import plan
from distill.families import shape_of
from distill.sections import Train

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
