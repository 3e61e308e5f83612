"""The training loop: one screen, reads top to bottom.

An optimizer step is a fixed set of examples whatever the world size; losses are sums, divided by the number of
target tokens of the whole step. Random state is a function of (seed, step, rank), so nothing of it is stored.
"""

import logging
import math
import time
from typing import Any

import torch

from distill.batching import BatchPlan, StepSource, TrainingData, collate, deal, padded_tokens
from distill.checkpoint import newest_complete
from distill.distributed import World
from distill.engine import Engine
from distill.files import atomic_folder, restore_replaced
from distill.generation import generation_config, summarize
from distill.objective import Counts, ScoredStudent, TeacherSource
from distill.plan import learning_rate, total_steps
from distill.run import Member
from distill.scores import METRICS, rouge
from distill.sections import Evaluate, Train
from distill.student import freeze, save_model, set_dropout
from distill.tracking import NullTracker, Tracker

log = logging.getLogger(__name__)


class NonFiniteLossError(Exception):
    """The loss is no number any more; raised on all ranks before the optimizer step."""


class Trainer:
    """Trains one member of a run (a student, or a teacher of the recipe's own) from its initial weights."""

    def __init__(
        self,
        member: Member,
        student: ScoredStudent,
        tokenizer: Any,
        data: TrainingData,
        train: Train,
        evaluate: Evaluate,
        seed: int,
        world: World,
        teacher: TeacherSource | None = None,
    ) -> None:
        freeze(student.student, train.freeze)
        set_dropout(student.student, train.dropout)
        self.member, self.tokenizer, self.data, self.world = member, tokenizer, data, world
        self.settings, self.evaluate, self.seed = train, evaluate, seed
        self.lengths = [(len(s), len(t)) for s, t in zip(data.train.source, data.train.target, strict=True)]
        plan = BatchPlan(self.lengths, seed, train.batch_examples, train.batch_tokens)
        self.examples = StepSource(plan)
        self.steps = total_steps(train, plan.steps_per_epoch())
        self.engine = Engine(student, train, world, teacher)
        # Loop state: all that a checkpoint stores besides weights and optimizer.
        self.step, self.best, self.seconds = 0, float("-inf"), 0.0
        self.began = time.monotonic()

    def run(self) -> None:
        """Train to the end from the newest complete checkpoint, or from the start; leaves best/ and final/."""
        self._resume()
        tracker = Tracker(self.member, self.step, self.steps) if self.world.is_main else NullTracker()
        self.began = time.monotonic() - self.seconds
        if self.step == 0 and self.evaluate.before_training:
            self.validate(tracker)
        while self.step < self.steps:
            values = self.train_step(tracker)
            self.step += 1
            if self.is_due(self.settings.log_every_steps):
                tracker.record(
                    self.step, {**values, **tracker.speed(), "epoch": self.examples.epoch, "steps": self.steps}
                )
            if self.is_due(self.evaluate.every_steps):
                self.validate(tracker)
            if self.step % self.settings.save_every_steps == 0 and self.step < self.steps:
                self.save()
        tracker.record(self.step, {"training_minutes": (time.monotonic() - self.began) / 60})
        tracker.close()
        self.export("final")  # last: its folder says that the training is complete

    def train_step(self, tracker: NullTracker) -> dict[str, float]:
        """One optimizer step: micro-batches forward and backward, agree that the loss is finite, update."""
        began = time.monotonic()
        examples = self.examples[self.step]
        dealt = deal(examples, self.lengths, self.world.size, self.settings.micro_batch_tokens)
        counts = Counts(*(sum(self.lengths[i][side] for i in examples) for side in (1, 0)))
        torch.manual_seed((self.seed * 1_000_003 + self.step) * 4099 + self.world.rank)
        summed = torch.zeros(1 + len(self.engine.terms), device=self.world.device)
        for micro_batch in dealt[self.world.rank]:
            batch = collate(self.data.train, micro_batch, self.tokenizer.pad_token_id, self.world.device)
            summed += self.engine.accumulate(batch, counts)
        loss, *terms = self.world.sum(summed).tolist()  # the sum over ranks is nan where any rank's is
        self.refuse_non_finite(loss, examples)
        rate = learning_rate(self.settings, self.step, self.steps)
        norm = self.engine.step(rate)
        self.refuse_non_finite_gradient(norm, examples)
        tokens = sum(sum(self.lengths[i]) for i in examples)
        padded = sum(padded_tokens(part, self.lengths) for parts in dealt for part in parts)
        tracker.advance(self.step + 1, tokens, padded, time.monotonic() - began)
        named = dict(zip(self.engine.terms, terms, strict=True)) if len(terms) > 1 else {}
        return {"loss": loss, **named, "learning_rate": rate} | ({} if norm is None else {"gradient_norm": norm})

    def validate(self, tracker: NullTracker) -> None:
        """Summarize and score the validation examples; export the weights where they are the best so far."""
        began = time.monotonic()
        source = self.data.validation.source
        with self.engine.replica() as model:
            beams = self.evaluate.generation.model_copy(update={"num_beams": self.evaluate.num_beams})
            config = generation_config(model, beams, self.data.max_target_tokens)
            summaries = summarize(model, self.tokenizer, source, config, self.evaluate.batch_tokens, self.world)
        scores = self.world.broadcast(self._score(summaries) if summaries else None)
        tracker.record(self.step, {**scores, "validation_seconds": time.monotonic() - began})
        if self.step > 0 and scores[self.evaluate.metric] > self.best:
            self.best = scores[self.evaluate.metric]
            self.export("best")

    def save(self) -> None:
        state = {"step": self.step, "best": self.best, "seconds": time.monotonic() - self.began}
        self.engine.save(self.member.checkpoints, self.step, state, self.settings.keep_checkpoints)

    def export(self, name: str) -> None:
        """Write best/ or final/ in Hugging Face format."""
        with self.engine.replica() as model:
            if self.world.is_main:
                with atomic_folder(self.member.folder / name) as folder:
                    save_model(model, self.tokenizer, folder)
        self.world.barrier()

    def is_due(self, every_steps: int) -> bool:
        return self.step % every_steps == 0 or self.step == self.steps

    def refuse_non_finite(self, loss: float, examples: list[int]) -> None:
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss of step {self.step + 1} is {loss}; the weights were left as they were. {self._advice(examples)}"
            )

    def refuse_non_finite_gradient(self, norm: float | None, examples: list[int]) -> None:
        """Checked after the update, where the norm is known, and before anything is saved."""
        if norm is not None and not math.isfinite(norm):
            raise NonFiniteLossError(
                f"the gradient of step {self.step + 1} is not finite; the last checkpoint stands. {self._advice(examples)}"
            )

    def _advice(self, examples: list[int]) -> str:
        ids = ", ".join(self.data.train_ids[i] for i in examples[:8]) + (" ..." if len(examples) > 8 else "")
        return f"Its examples: {ids}. Lower the learning rate, use fp32, or look at the examples."

    def _resume(self) -> None:
        if self.world.is_main:
            restore_replaced(self.member.best)
        newest = self.world.broadcast(newest_complete(self.member.checkpoints))
        if newest is None:
            log.info("%s: starting at step 0 of %d", self.member, self.steps)
            return
        state = self.engine.load(newest)
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        log.info("%s: resuming at step %d of %d from %s", self.member, self.step, self.steps, newest)

    def _score(self, summaries: list[str]) -> dict[str, float]:
        scores = rouge(summaries, self.data.validation_references)
        means = {metric: sum(scores[metric]) / len(summaries) for metric in METRICS}
        return means | {"summary_words": sum(len(text.split()) for text in summaries) / len(summaries)}
