"""python -m tests.benchmarks.training [--steps 20] [--rounds 5] [--large]

Training side by side with `transformers.Seq2SeqTrainer`: the same model, examples, batch size, precision and threads; the
contestants take turns, medians are told. A 6-6 student of width 256 on titles of arXiv; with --large the shape of
BART-large (on a GPU, in bf16).
"""

import argparse
import concurrent.futures
import contextlib
import json
import lzma
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from distill import distributed
from distill.batching import TrainingData
from distill.objective import ScoredStudent
from distill.pretrained import _bart_config, train_tokenizer
from distill.recipe import Objective
from distill.run import Member
from distill.sections import Architecture, Evaluate, Tokenizer, Train
from distill.tokens import Encoder, Tokens, tokenize
from distill.tracking import NullTracker
from distill.trainer import Trainer
from tests.conftest import SHARED

CORPUS = SHARED / "data" / "arxiv_title" / "train.jsonl.xz"
SHAPES = {
    "6-6, width 256": Architecture(
        family="bart", width=256, encoder_layers=6, decoder_layers=6, heads=4, feed_forward=1024, positions=512
    ),
    "BART-large": Architecture(
        family="bart", width=1024, encoder_layers=12, decoder_layers=12, heads=16, feed_forward=4096, positions=1024
    ),
}
VOCABULARY, LONGEST_SOURCE, LONGEST_TARGET = 16_000, 512, 64
ON_GPU = torch.cuda.is_available()


def read_rows(count: int) -> list[dict[str, str]]:
    with lzma.open(CORPUS, "rt", encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(count)]


class Ours:
    """Our trainer's steps: one after the other of an epoch's plan."""

    def __init__(self, model: Any, tokenizer: Any, tokens: Tokens, settings: Train, folder: Path) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
        world = distributed.start()
        model = model.to(world.device, torch.bfloat16 if ON_GPU else torch.float32)
        data = TrainingData(tokens, [str(i) for i in range(len(tokens))], tokens, [], LONGEST_TARGET)
        student = ScoredStudent(model, Objective(), settings.label_smoothing)
        member = Member("students", "s", folder)
        self.trainer = Trainer(member, student, tokenizer, data, settings, Evaluate(), 1, world)
        self.tokens, self.padded = 0, 0

    def examples_per_second(self, steps: int) -> float:
        count, began = 0, time.perf_counter()
        for _ in range(steps):
            count += len(self.trainer.examples[self.trainer.step])
            self.trainer.train_step(Counter(self))
            self.trainer.step += 1
        return count / (time.perf_counter() - began)


class Counter(NullTracker):
    """Counts tokens and padded tokens."""

    def __init__(self, ours: Ours) -> None:
        self.ours = ours

    def advance(self, step: int, tokens: int, padded: int, seconds: float) -> None:
        self.ours.tokens, self.ours.padded = self.ours.tokens + tokens, self.ours.padded + padded


class Theirs:
    """Seq2SeqTrainer as its documentation uses it: batches padded to their longest, in random order."""

    def __init__(self, model: Any, tokenizer: Any, tokens: Tokens, settings: Train, folder: Path) -> None:
        self.model, self.folder, self.settings = model, folder, settings
        self.rows = [{"input_ids": s, "labels": t} for s, t in zip(tokens.source, tokens.target, strict=True)]
        self.collate = DataCollatorForSeq2Seq(tokenizer, model=model)
        self.seed, self.tokens, self.padded = 0, 0, 0

    def examples_per_second(self, steps: int) -> float:
        self.seed += 1
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(self.folder),
            per_device_train_batch_size=self.settings.batch_examples or 0,
            max_steps=steps,
            learning_rate=self.settings.learning_rate,
            max_grad_norm=self.settings.clip_norm,
            seed=self.seed,
            bf16=self.settings.precision == "bf16",
            use_cpu=not ON_GPU,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Seq2SeqTrainer(self.model, arguments, data_collator=self._counted, train_dataset=self.rows)
        return float(trainer.train().metrics["train_samples_per_second"])

    def _counted(self, rows: list[dict[str, Any]]) -> Any:
        batch = self.collate([dict(row) for row in rows])
        self.tokens += sum(len(row["input_ids"]) + len(row["labels"]) for row in rows)
        self.padded += batch["input_ids"].numel() + batch["labels"].numel()
        return batch


_contestant: "Ours | Theirs"


def enter(contestant: type, shape: str, batch: int, count: int, threads: int) -> None:
    """Build a contestant in a process of its own."""
    global _contestant
    torch.set_num_threads(threads)
    rows = read_rows(count)
    texts = (row[side] for row in rows for side in ("document", "summary"))
    tokenizer = train_tokenizer(Tokenizer(kind="bpe", vocabulary=VOCABULARY), "bart", texts)
    tokens = tokenize(Encoder(tokenizer, LONGEST_SOURCE, LONGEST_TARGET), rows)
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(_bart_config(SHAPES[shape], tokenizer))
    settings = Train(
        batch_examples=batch,
        micro_batch_tokens=2**20,  # a step is one micro-batch, as theirs
        steps=10**6,
        learning_rate=1e-4,
        zero_stage=1 if ON_GPU else 0,
        precision="bf16" if ON_GPU else "fp32",
    )
    _contestant = contestant(model, tokenizer, tokens, settings, Path(tempfile.mkdtemp()))


def turn(steps: int) -> tuple[float, int, int]:
    """(examples a second, tokens, padded tokens)"""
    _contestant.tokens = _contestant.padded = 0
    return _contestant.examples_per_second(steps), _contestant.tokens, _contestant.padded


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of one turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="examples of an optimizer step")
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    shape = "BART-large" if options.large else "6-6, width 256"
    turns: dict[str, list[tuple[float, int, int]]] = {"Seq2SeqTrainer": [], "ours": []}
    with contextlib.ExitStack() as stack:
        pools = {}
        for name, contestant in (("Seq2SeqTrainer", Theirs), ("ours", Ours)):
            told = (contestant, shape, options.batch, options.rows, options.threads)
            pools[name] = stack.enter_context(
                concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), enter, told)
            )
            pools[name].submit(turn, 2).result()  # warm-up
        for _ in range(options.rounds):
            for name, pool in pools.items():
                turns[name].append(pool.submit(turn, options.steps).result())
    print(
        f"{shape}: batch {options.batch}, {'GPU' if ON_GPU else 'CPU'}, {options.threads} threads, {options.rounds} rounds"
    )
    for name, rounds in turns.items():
        ratio = statistics.median(own[0] / their[0] for own, their in zip(rounds, turns["Seq2SeqTrainer"], strict=True))
        padding = 100 * (1 - sum(tokens for _, tokens, _ in rounds) / sum(padded for *_, padded in rounds))
        median = statistics.median(speed for speed, *_ in rounds)
        print(f"  {name}: {median:.2f} examples a second, {ratio:.2f} times Seq2SeqTrainer, padding {padding:.1f} %")


if __name__ == "__main__":
    main()
