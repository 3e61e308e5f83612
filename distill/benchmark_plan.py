"""How much the benchmark measures: planned from the warm-up's timings, before anything is measured. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.sections import Benchmark

MIN_DOCUMENTS = 4
MIN_ROUNDS = 2
"""One round shows no spread, and no speed-up is printed from it."""


@dataclass(frozen=True)
class Timing:
    """What the warm-up showed of one model."""

    process_seconds: float
    """Estimate of how long a new process takes to import the libraries and to load the model."""
    document_seconds: float
    """Of one document at batch 1."""
    batch: int | None = None
    """A larger batch size that was timed too, if the machine is fast enough for it."""
    batch_seconds: float | None = None

    def seconds(self, batch: int) -> float:
        """Estimate the time of one batch: a line through both timings, else so many single documents."""
        if self.batch is None or self.batch_seconds is None:
            return batch * self.document_seconds
        slope = (self.batch_seconds - self.document_seconds) / (self.batch - 1)
        return self.document_seconds + max(0.0, slope) * (batch - 1)


@dataclass(frozen=True)
class Plan:
    """What is measured, the same for every model."""

    documents: int
    rounds: int
    batch_sizes: tuple[int, ...]
    seconds: float
    """The estimated time of the whole benchmark, loading and warm-up included."""
    note: str
    """What was left out of the recipe's settings, and why; empty if nothing was."""


def make_plan(settings: Benchmark, documents: int, timings: Sequence[Timing], spent_seconds: float) -> Plan:
    """Return the largest plan that ends within `settings.minutes`.

    The largest batch sizes are left out first, as long as they need more than half of the time. Then there are fewer
    documents, then fewer rounds, then fewer batch sizes. At least MIN_DOCUMENTS documents, MIN_ROUNDS rounds and the
    smallest batch size are measured, or what the recipe asks for if that is less, even if this takes longer.

    `documents` is the number of documents that there are, and `spent_seconds` the time that is used up already.
    """
    whole = _Amount(documents, settings.rounds, tuple(sorted(set(settings.batch_sizes))))
    left = 60 * settings.minutes - spent_seconds
    amount = whole
    while amount.seconds(timings) > left and amount.is_mostly_batches(timings):
        amount = amount.without_largest_batch()
    while amount.seconds(timings) > left and amount.documents > MIN_DOCUMENTS:
        amount = _Amount(amount.documents - 1, amount.rounds, amount.batch_sizes)
    while amount.seconds(timings) > left and amount.rounds > MIN_ROUNDS:
        amount = _Amount(amount.documents, amount.rounds - 1, amount.batch_sizes)
    while amount.seconds(timings) > left and len(amount.batch_sizes) > 1:
        amount = amount.without_largest_batch()
    seconds = spent_seconds + amount.seconds(timings)
    note = _note(whole, amount, settings.minutes, seconds)
    return Plan(amount.documents, amount.rounds, amount.batch_sizes, seconds, note)


@dataclass(frozen=True)
class _Amount:
    documents: int
    rounds: int
    batch_sizes: tuple[int, ...]

    def seconds(self, timings: Sequence[Timing]) -> float:
        """Estimate the time of all rounds and of the processes that measure memory."""
        one_round = self._latency_seconds(timings) + self._batch_seconds(timings)
        return self.rounds * one_round + memory_seconds(timings, max(self.batch_sizes))

    def is_mostly_batches(self, timings: Sequence[Timing]) -> bool:
        several = len(self.batch_sizes) > 1
        return several and self._batch_seconds(timings) > self._latency_seconds(timings)

    def without_largest_batch(self) -> "_Amount":
        return _Amount(self.documents, self.rounds, self.batch_sizes[:-1])

    def _latency_seconds(self, timings: Sequence[Timing]) -> float:
        return self.documents * sum(timing.document_seconds for timing in timings)

    def _batch_seconds(self, timings: Sequence[Timing]) -> float:
        return sum(timing.seconds(batch) for timing in timings for batch in self.batch_sizes)


def memory_seconds(timings: Sequence[Timing], batch: int) -> float:
    """Estimate the time of the processes that measure memory: each loads a model and summarizes one batch."""
    return sum(timing.process_seconds + timing.seconds(batch) for timing in timings)


def _note(whole: _Amount, amount: _Amount, minutes: float, seconds: float) -> str:
    if 60 * minutes < seconds:
        needs = f"about {seconds / 60:.1f} minutes, more than benchmark.minutes: {minutes:g}"
        if amount == whole:
            return f"It took {needs}, and there was nothing to leave out."
        return f"{_less(whole, amount)}: the least that is measured. Even this took {needs}."
    if amount == whole:
        return ""
    return f"{_less(whole, amount)}, to end within benchmark.minutes: {minutes:g}."


def _less(whole: _Amount, amount: _Amount) -> str:
    parts = []
    if amount.documents != whole.documents:
        parts.append(f"{amount.documents} of {whole.documents} documents")
    if amount.rounds != whole.rounds:
        parts.append(f"{amount.rounds} of {whole.rounds} rounds")
    if amount.batch_sizes != whole.batch_sizes:
        left_out = [str(batch) for batch in whole.batch_sizes if batch not in amount.batch_sizes]
        parts.append(f"no batches of {', '.join(left_out)}")
    return f"This machine is slow for these models. Measured: {', '.join(parts)}"
