import random

import pytest
import torch

from distill.batching import IGNORED, BatchPlan, StepSource, collate, deal, padded_tokens
from distill.tokens import Encoder, Tokens, tokenize

LENGTHS = [(random.Random(i).randint(3, 90), random.Random(-i - 1).randint(2, 20)) for i in range(500)]
SIZES = [{"batch_examples": 16}, {"batch_tokens": 700}]


@pytest.mark.parametrize("size", SIZES)
def test_an_epoch_reads_every_example_once(size: dict[str, int]) -> None:
    plan = BatchPlan(LENGTHS, seed=1, **size)
    for epoch in range(3):
        assert sorted(i for step in plan.epoch(epoch) for i in step) == list(range(500))


@pytest.mark.parametrize("size", SIZES)
def test_the_plan_depends_on_seed_and_epoch_only(size: dict[str, int]) -> None:
    plan = BatchPlan(LENGTHS, seed=1, **size)
    assert plan.epoch(4) == BatchPlan(LENGTHS, seed=1, **size).epoch(4)
    assert plan.epoch(4) != plan.epoch(5)
    assert plan.epoch(4) != BatchPlan(LENGTHS, seed=2, **size).epoch(4)


def test_steps_have_their_size() -> None:
    by_examples = BatchPlan(LENGTHS, 1, batch_examples=16).epoch(0)
    assert sorted(map(len, by_examples))[1:] == [16] * 31
    by_tokens = BatchPlan(LENGTHS, 1, batch_tokens=700).epoch(0)
    assert max(padded_tokens(step, LENGTHS) for step in by_tokens) <= 700


def test_batches_are_of_like_lengths() -> None:
    steps = BatchPlan(LENGTHS, 1, batch_examples=16).epoch(0)
    padded = sum(padded_tokens(step, LENGTHS) for step in steps)
    shuffled = [list(range(i, min(i + 16, 500))) for i in range(0, 500, 16)]  # LENGTHS are in no order
    assert padded - sum(map(sum, LENGTHS)) < 0.3 * (
        sum(padded_tokens(step, LENGTHS) for step in shuffled) - sum(map(sum, LENGTHS))
    )


def test_steps_are_found_again_at_any_step() -> None:
    plan = BatchPlan(LENGTHS, 1, batch_tokens=700)
    from_start = StepSource(plan)
    walked = [from_start[step] for step in range(150)]
    assert StepSource(plan)[149] == walked[149]
    assert from_start.epoch == 149 // len(plan.epoch(0))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batch_tokens", [100, 300, 10**6])
def test_dealing_loses_nothing(world_size: int, micro_batch_tokens: int) -> None:
    step = list(range(17))
    dealt = deal(step, LENGTHS, world_size, micro_batch_tokens)
    assert len(dealt) == world_size and len({len(parts) for parts in dealt}) == 1
    assert sorted(i for parts in dealt for part in parts for i in part) == step
    for parts in dealt:
        assert all(len(part) <= 1 or padded_tokens(part, LENGTHS) <= micro_batch_tokens for part in parts)


def test_more_ranks_than_examples_gives_empty_micro_batches() -> None:
    dealt = deal([4, 9], LENGTHS, 3, 10**6)
    assert sorted(len(part) for parts in dealt for part in parts) == [0, 1, 1]


def test_collate_pads_and_masks() -> None:
    tokens = Tokens([[5, 6, 7], [8]], [[1, 2], [3, 4, 5]], {})
    batch = collate(tokens, [0, 1], pad=9, device=torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, IGNORED], [3, 4, 5]]
    empty = collate(tokens, [], pad=9, device=torch.device("cpu"))
    assert (empty["labels"] == IGNORED).all() and empty["input_ids"].numel() > 0


def test_what_is_cut_is_counted(tokenizer: object) -> None:
    rows = [{"document": "fox " * n, "summary": "dog " * n} for n in (1, 4, 30)]
    exact = len(tokenizer(rows[1]["document"])["input_ids"])  # type: ignore[operator]
    tokens = tokenize(Encoder(tokenizer, exact, 10_000), rows)
    assert tokens.truncated == {"documents": 1, "summaries": 0}
    assert [len(source) for source in tokens.source] == [len(tokens.source[0]), exact, exact]
