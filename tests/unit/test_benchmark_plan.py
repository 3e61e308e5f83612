"""How much the benchmark measures on a fast and on a slow machine."""

import random

import pytest

from distill.benchmark_plan import MIN_DOCUMENTS, MIN_ROUNDS, Timing, make_plan
from distill.sections import Benchmark

FAST = [Timing(process_seconds=11, document_seconds=0.05), Timing(process_seconds=11, document_seconds=0.02)]


def settings(minutes: float = 10.0, **changes: object) -> Benchmark:
    return Benchmark.model_validate({"minutes": minutes} | changes)


def test_a_fast_machine_measures_what_the_recipe_says() -> None:
    plan = make_plan(settings(), 32, FAST, spent_seconds=20)
    assert (plan.documents, plan.rounds, plan.batch_sizes, plan.note) == (32, 3, (1, 4, 16, 64), "")
    batches = 0.07 * (1 + 4 + 16 + 64)
    memory = 2 * 11 + 0.07 * 64
    assert plan.seconds == pytest.approx(20 + 3 * (32 * 0.07 + batches) + memory), "the whole benchmark counts"


def test_large_batches_go_first_then_documents_then_rounds() -> None:
    def plan(slowness: float) -> tuple[int, int, tuple[int, ...]]:
        made = make_plan(settings(), 32, [Timing(11, slowness)], spent_seconds=0)
        return made.documents, made.rounds, made.batch_sizes

    assert plan(1) == (32, 3, (1, 4, 16, 64))
    assert plan(2) == (32, 3, (1, 4, 16))
    assert plan(5) == (12, 3, (1, 4, 16)), "batches do not need most of the time any more: fewer documents"
    assert plan(8) == (MIN_DOCUMENTS, MIN_ROUNDS, (1, 4, 16))
    assert plan(20) == (MIN_DOCUMENTS, MIN_ROUNDS, (1, 4))
    assert plan(45) == (MIN_DOCUMENTS, MIN_ROUNDS, (1,))


def test_the_least_is_measured_even_if_it_takes_longer() -> None:
    plan = make_plan(settings(), 32, [Timing(1, 1000)], spent_seconds=30)
    assert (plan.documents, plan.rounds, plan.batch_sizes) == (MIN_DOCUMENTS, MIN_ROUNDS, (1,))
    assert plan.seconds > 600
    assert "4 of 32 documents, 2 of 3 rounds, no batches of 4, 16, 64" in plan.note
    assert "more than benchmark.minutes: 10" in plan.note


def test_a_recipe_may_ask_for_less_than_the_least() -> None:
    small = settings(documents=2, rounds=1, batch_sizes=[8])
    plan = make_plan(small, 2, [Timing(1, 1000)], spent_seconds=0)
    assert (plan.documents, plan.rounds, plan.batch_sizes) == (2, 1, (8,))
    assert "nothing to leave out" in plan.note


def test_any_plan_ends_in_time_or_is_the_least() -> None:
    draw = random.Random(0)
    for _ in range(500):
        batches = draw.sample([1, 2, 4, 8, 16, 32, 64], draw.randint(1, 7))
        wanted = settings(
            draw.uniform(0.1, 20), documents=draw.randint(1, 50), rounds=draw.randint(1, 6), batch_sizes=batches
        )
        timings = [Timing(draw.uniform(0, 9), 10 ** draw.uniform(-2, 2)) for _ in range(draw.randint(1, 6))]
        plan = make_plan(wanted, wanted.documents, timings, draw.uniform(0, 100))
        least = (min(wanted.documents, 4), min(wanted.rounds, 2), (min(batches),))
        assert plan.seconds <= 60 * wanted.minutes or (plan.documents, plan.rounds, plan.batch_sizes) == least
        reduced = (plan.documents, plan.rounds, plan.batch_sizes) != (
            wanted.documents,
            wanted.rounds,
            tuple(sorted(batches)),
        )
        assert bool(plan.note) == (reduced or plan.seconds > 60 * wanted.minutes), "said if and only if so"


def test_a_batch_is_estimated_from_the_probe() -> None:
    gpu = Timing(1, document_seconds=0.5, batch=8, batch_seconds=0.64)
    assert gpu.seconds(1) == pytest.approx(0.5)
    assert gpu.seconds(8) == pytest.approx(0.64)
    assert gpu.seconds(64) == pytest.approx(0.5 + 63 * 0.02), "on a GPU a batch hardly costs more than one document"
    assert Timing(1, 0.5).seconds(64) == 32, "without a probe, as many single documents"
    assert Timing(1, 0.5, batch=8, batch_seconds=0.4).seconds(64) == 0.5, "noise makes no negative time"
