"""The training loop: one screen, reads top to bottom.

An optimizer step is a fixed set of examples whatever the world size; losses are sums, divided by the number of
target tokens of the whole step. Random state is a function of (seed, step, rank), so nothing of it is stored.
"""

import logging
import math
import random
import time
from typing import Any

import numpy as np
import torch

from distill.batching import BatchPlan, StepSource, TrainingData, collate, deal, padded_tokens
from distill.checkpoint import newest_intact, prune
from distill.claim import Claim
from distill.determinism import deterministic
from distill.distributed import World
from distill.engine import Engine
from distill.export import save_model
from distill.files import atomic_folder, read_jsonl, restore_replaced
from distill.generation import generation_config, summarize
from distill.objective import Counts, ScoredStudent, TeacherSource
from distill.plan import has_stalled, learning_rate, total_steps, validation_steps, warmup_steps
from distill.preemption import SECONDS_TO_LEAVE, StopFlag, StoppedError
from distill.run import Member
from distill.scores import corpus_scores
from distill.sections import Evaluate, Train, Wandb
from distill.student import checkpoint_activations, freeze, set_dropout
from distill.tracking import SAVE, NullTracker, Tracker
from distill.weights_and_biases import WandbRun

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
        stop: StopFlag | None = None,
        claim: Claim | None = None,
        wandb: Wandb | None = None,
    ) -> None:
        """`claim`: on rank 0, that this attempt may write."""
        freeze(student.student, train.freeze)
        set_dropout(student.student, train.dropout)
        if train.gradient_checkpointing:
            checkpoint_activations(student.student)
        self.member, self.tokenizer, self.data, self.world = member, tokenizer, data, world
        self.settings, self.evaluate, self.seed = train, evaluate, seed
        self.lengths = data.train.lengths()
        plan = BatchPlan(self.lengths, seed, train.batch_examples, train.batch_tokens)
        self.examples = StepSource(plan)
        self.steps = total_steps(train, plan.steps_per_epoch())
        self.validate_every_steps = validation_steps(evaluate, plan.steps_per_epoch())
        self.engine = Engine(student, train, world, teacher)
        self.stop, self.claim, self.wandb = stop or StopFlag(), claim, wandb
        # Loop state: all that a checkpoint stores besides weights and optimizer.
        self.step, self.validated, self.saved = 0, -1, -1
        self.best, self.best_step, self.seconds, self.records = float("-inf"), -1, 0.0, 0
        self.scores: list[float] = []  # of the validations so far, without that of the untrained model
        self.began = time.monotonic()
        self.slowest_save, self.saving = 0.0, 0.0
        self._looked, self._longest_unlooked = time.monotonic(), 0.0

    def run(self) -> None:
        """Train to the end from the newest intact checkpoint, or from the start; leaves best/ and final/.

        StoppedError, on all ranks together, where a signal asked one of them to stop, or the time is up: after a save.
        """
        with deterministic(self.settings.deterministic):
            self._run()

    def _run(self) -> None:
        self._resume()
        tracker = NullTracker()
        if self.world.is_main:
            told = {"train": self.settings.model_dump(), "evaluate": self.evaluate.model_dump(), "seed": self.seed}
            wandb = WandbRun(self.wandb, self.member, told) if self.wandb else None
            tracker = Tracker(self.member, self.step, self.steps, self.records, self.check_claim, wandb)
        self.began = time.monotonic() - self.seconds
        try:
            self._looked = time.monotonic()
            self.leave_if_asked()
            self._train(tracker)
        except StoppedError:
            self._save_and_leave(tracker)
            self.world.barrier()  # a launcher may end the others as soon as one has left
            raise
        finally:
            tracker.close()
        self.export("final")  # last: its folder says that the training is complete

    def _train(self, tracker: NullTracker) -> None:
        if self.step == 0 and self.evaluate.before_training and self.validated < 0:
            self.validate(tracker)
        while self.step < self.steps:
            if self.step > 0 and self.step % self.validate_every_steps == 0 and self.validated < self.step:
                self.validate(tracker)
            if has_stalled(self.scores, self.evaluate.early_stopping):
                tracker.record(self.step, {"stopped_early": True})
                break
            if self.step > 0 and self.step % self.settings.save_every_steps == 0 and self.saved < self.step:
                self.save(tracker)
            if self.step == 1 and self.saved < 0 and self.stop.knows_its_end:
                self.save(tracker)  # to know early how long one takes
            values = self.train_step(tracker)
            self.step += 1
            if self.step == 1 or self.is_due(self.settings.log_every_steps):
                tracker.record(
                    self.step, {**values, **tracker.speed(), "epoch": self.examples.epoch, "steps": self.steps}
                )
        if self.validated < self.step:
            self.validate(tracker)
        seconds = time.monotonic() - self.began
        tracker.record(self.step, {"training_minutes": seconds / 60, "saving_share": round(self.saving / seconds, 4)})

    def leave_if_asked(self) -> None:
        """All ranks must call; StoppedError on all of them where one was asked to stop."""
        now = time.monotonic()
        self._longest_unlooked, self._looked = max(self._longest_unlooked, now - self._looked), now
        if self.world.any(self.stop.is_set()):
            self.stop.ask("another rank was asked to stop")
            raise StoppedError(self.stop.reason)

    def train_step(self, tracker: NullTracker) -> dict[str, float]:
        """One optimizer step: micro-batches forward and backward, agree that the loss is finite, update."""
        began = time.monotonic()
        examples = self.examples[self.step]
        dealt = deal(examples, self.lengths, self.world.size, self.settings.micro_batch_tokens)
        counts = Counts(*(sum(self.lengths[i][side] for i in examples) for side in (1, 0)))
        self._seed()
        summed = torch.zeros(1 + len(self.engine.terms), device=self.world.device)
        for micro_batch in dealt[self.world.rank]:  # as many on every rank
            self.leave_if_asked()  # what was accumulated of this step is dropped: its checkpoint is of the step before
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
            summaries = summarize(
                model, self.tokenizer, source, config, self.evaluate.batch_tokens, self.world, self.leave_if_asked
            )
        scores = self.world.broadcast(self._score(summaries) if summaries else None)
        tracker.record(self.step, {**scores, "validation_seconds": time.monotonic() - began})
        if self.step > 0:
            self.scores.append(scores[self.evaluate.metric])
            if self.scores[-1] > self.best:
                self.best, self.best_step = self.scores[-1], self.step
                self.export("best")
        self.validated = self.step

    def save(self, tracker: NullTracker) -> None:
        self.check_claim()
        began = time.monotonic()
        state = {
            "step": self.step,
            "validated": self.validated,
            "best": self.best,
            "best_step": self.best_step,
            "scores": self.scores,
            "seconds": began - self.began,
            "saving": self.saving,
            "records": tracker.records,
        }
        size = self.engine.save(self.member.checkpoints, self.step, state)
        if self.world.is_main:
            settings = self.settings
            prune(self.member.checkpoints, settings.keep_checkpoints, settings.keep_every_steps, self.best_step)
        self.world.barrier()
        self.saved, seconds = self.step, time.monotonic() - began
        self.slowest_save, self.saving = max(self.slowest_save, seconds), self.saving + seconds
        self._plan_to_leave()
        tracker.record(self.step, {"save_seconds": seconds, "save_bytes": size})

    def _save_and_leave(self, tracker: NullTracker) -> None:
        """Save, where that can be finished in time as far as earlier saves tell; else the last checkpoint stands."""
        has_news = self.saved < self.step and (self.step > 0 or self.validated == 0)
        if has_news and not self.world.any(not self.stop.leaves_time_for(self.slowest_save)):
            self.save(tracker)
        elif has_news:
            log.warning("no time for a save, which took %.1f s before", self.slowest_save)
        newest = f"step-{self.saved:08d}" if self.saved >= 0 else "none: it begins again"
        log.info("%s: stopping at step %d (%s); checkpoint: %s", self.member, self.step, self.stop.reason, newest)

    def export(self, name: str) -> None:
        """Write best/ or final/ in Hugging Face format, with the recipe's decoding; a search comes later."""
        with self.engine.replica() as model:
            if self.world.is_main:
                self.check_claim()
                decoding = generation_config(model, self.evaluate.generation, self.data.max_target_tokens)
                with atomic_folder(self.member.folder / name) as folder:
                    save_model(model, self.tokenizer, folder, decoding)
        self.world.barrier()

    def check_claim(self) -> None:
        """TakenOverError on rank 0 where another attempt has this training; its launcher ends the other ranks."""
        if self.claim:
            self.claim.check()

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
        newest = self.world.broadcast(newest_intact(self.member.checkpoints) if self.world.is_main else None)
        if newest is None:
            log.info("%s: starting at step 0 of %d", self.member, self.steps)
            self._say_warmup()
            return
        state = self.engine.load(newest)
        self.step, self.validated, self.saved = state["step"], state["validated"], state["step"]
        self.best, self.best_step, self.scores = state["best"], state["best_step"], state["scores"]
        self.slowest_save = self.world.broadcast(self._slowest_before() if self.world.is_main else None)
        self._plan_to_leave()
        self.seconds, self.saving, self.records = state["seconds"], state["saving"], state["records"]
        log.info("%s: resuming at step %d of %d from %s", self.member, self.step, self.steps, newest)

    def _say_warmup(self) -> None:
        """Log the warm-up, and warn if the recipe's leaves no step after it."""
        warmup = warmup_steps(self.settings, self.steps)
        log.info("%s: the learning rate rises over %d steps", self.member, warmup)
        if self.settings.warmup_steps and warmup == self.steps:
            log.warning(
                "%s: train.warmup_steps: %d given, but there are %d steps, so the learning rate only rises. Give fewer, "
                "or leave it out for 5 %% of the steps.",
                self.member,
                self.settings.warmup_steps,
                self.steps,
            )

    def _slowest_before(self) -> float:
        """Seconds of the slowest save of earlier attempts."""
        return max((row[SAVE] for row in read_jsonl(self.member.metrics) if SAVE in row), default=0.0)

    def _plan_to_leave(self) -> None:
        """Before the end of the job: time for a save, twice over, and for the longest stretch without a look at the flag."""
        self.stop.seconds_to_leave = SECONDS_TO_LEAVE + 2 * self.slowest_save + self._longest_unlooked

    def _seed(self) -> None:
        """Random state is a function of seed, step and rank: nothing of it is stored, and resume finds it again."""
        seed = (self.seed * 1_000_003 + self.step) * 4099 + self.world.rank
        torch.manual_seed(seed)  # of the CPU and of all GPUs
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def _score(self, summaries: list[str]) -> dict[str, float]:
        scores = corpus_scores(summaries, self.data.validation_references, self.evaluate.bleu_tokenize)
        return scores | {"summary_words": sum(len(text.split()) for text in summaries) / len(summaries)}
