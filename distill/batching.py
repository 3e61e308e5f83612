"""Batches of like lengths, the same for any world size, found again at any step.

The plan is a pure function of the lengths, the settings and the seed: an optimizer step is a fixed set of examples;
`deal` cuts it into micro-batches and hands them to the ranks. Nothing needs to be stored to resume.

Shapes: B examples, S source tokens, T target tokens.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distill.losses import IGNORED
from distill.tokens import Tokens

STEPS_PER_BUCKET = 200  # examples of this many steps are sorted by length together,
BANDS = 40  # into this many bands of like source lengths, each sorted by target length


@dataclass(frozen=True)
class TrainingData:
    """Tokenised training split with its ids, and the validation documents with their whole references."""

    train: Tokens
    train_ids: Sequence[str]
    validation: Tokens
    validation_references: list[list[str]]
    """One or several for each example."""
    max_target_tokens: int


@dataclass(frozen=True)
class BatchPlan:
    """Which examples make which optimizer step.

    `lengths` are (source, target) token counts. One of `batch_examples` and `batch_tokens` (padded source + target
    tokens) is the size of a step; every example is read once an epoch, so an epoch's last steps may be smaller.
    """

    lengths: list[tuple[int, int]]
    seed: int
    batch_examples: int | None = None
    batch_tokens: int | None = None

    def epoch(self, epoch: int) -> list[list[int]]:
        """The steps of an epoch, each a list of example indices of like lengths, in random order."""
        shuffle = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.lengths)))
        shuffle.shuffle(order)
        bucket = STEPS_PER_BUCKET * self._examples_per_step()
        steps = []
        for start in range(0, len(order), bucket):
            steps += self._cut(self._by_length(order[start : start + bucket]))
        shuffle.shuffle(steps)
        return steps

    def steps_per_epoch(self) -> float:
        """Mean number of steps of an epoch (it varies a little where steps are sized by tokens)."""
        if self.batch_examples:
            return math.ceil(len(self.lengths) / self.batch_examples)
        return sum(len(self.epoch(epoch)) for epoch in range(3)) / 3

    def _examples_per_step(self) -> int:
        if self.batch_examples:
            return self.batch_examples
        assert self.batch_tokens is not None
        mean = sum(source + target for source, target in self.lengths) / len(self.lengths)
        return max(1, round(self.batch_tokens / mean))

    def _by_length(self, indices: list[int]) -> list[int]:
        """Bands of like source lengths, by target length up in one and down in the next: neighbours are alike in both."""
        by_source = sorted(indices, key=lambda i: (self.lengths[i], i))
        bands = _split(by_source, BANDS)
        return [
            index
            for number, band in enumerate(bands)
            for index in sorted(band, key=lambda i: self.lengths[i][1], reverse=number % 2 == 1)
        ]

    def _cut(self, ordered: list[int]) -> list[list[int]]:
        if self.batch_examples:
            size = self.batch_examples
            return [ordered[i : i + size] for i in range(0, len(ordered), size)]
        assert self.batch_tokens is not None
        steps: list[list[int]] = []
        for index in ordered:
            if steps and padded_tokens([*steps[-1], index], self.lengths) <= self.batch_tokens:
                steps[-1].append(index)
            else:
                steps.append([index])
        return steps


class StepSource:
    """The examples of optimizer step 0, 1, 2, ... over all epochs; steps are asked for in rising order."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan, self.epoch, self._first = plan, 0, 0
        self._steps = plan.epoch(0)

    def __getitem__(self, step: int) -> list[int]:
        while step >= self._first + len(self._steps):
            self._first += len(self._steps)
            self.epoch += 1
            self._steps = self.plan.epoch(self.epoch)
        return self._steps[step - self._first]


def padded_tokens(indices: Sequence[int], lengths: Sequence[tuple[int, int]]) -> int:
    """Source plus target tokens of a batch, padding included."""
    if not indices:
        return 0
    return len(indices) * (max(lengths[i][0] for i in indices) + max(lengths[i][1] for i in indices))


def deal(
    indices: list[int], lengths: Sequence[tuple[int, int]], world_size: int, micro_batch_tokens: int
) -> list[list[list[int]]]:
    """Cut a step into micro-batches: result[rank][k] is the k-th micro-batch of a rank.

    All ranks get the same number (each one is a collective under ZeRO 3), as few as fit `micro_batch_tokens`; a
    single example may exceed it. Where there are more ranks than examples some micro-batches are empty.
    """
    ordered = sorted(indices, key=lambda i: (lengths[i], i))
    count = world_size
    while count < len(ordered) and any(
        len(part) > 1 and padded_tokens(part, lengths) > micro_batch_tokens for part in _split(ordered, count)
    ):
        count += world_size
    parts = _split(ordered, count)
    return [parts[rank::world_size] for rank in range(world_size)]


def _split(ordered: list[int], count: int) -> list[list[int]]:
    """`count` consecutive parts whose sizes differ by at most one."""
    bounds = [i * len(ordered) // count for i in range(count + 1)]
    return [ordered[a:b] for a, b in itertools.pairwise(bounds)]


def collate(tokens: Tokens, indices: list[int], pad: int, device: torch.device) -> dict[str, Any]:
    """input_ids_BS, attention_mask_BS, labels_BT (padding is IGNORED), and the examples' numbers.

    An empty micro-batch becomes one example of which no label counts, so that its rank takes part in the step.
    """
    chosen = indices or [0]
    source = _padded([tokens.source[i] for i in chosen], pad)
    labels = _padded([tokens.target[i] for i in chosen], IGNORED)
    if not indices:
        labels = torch.full_like(labels, IGNORED)
    mask = _padded([[1] * len(tokens.source[i]) for i in chosen], 0)
    return {
        "input_ids": source.to(device, non_blocking=True),
        "attention_mask": mask.to(device, non_blocking=True),
        "labels": labels.to(device, non_blocking=True),
        "examples": chosen,
    }


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
