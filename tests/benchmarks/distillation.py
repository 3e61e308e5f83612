"""python -m tests.benchmarks.distillation loss | step [--source 512] [--rounds 5]

Distillation beside the naive loop: Hugging Face's forward of both models, whole logits, torch.nn.functional.kl_div.
`loss`: peak memory and time of the loss alone. `step`: a whole optimizer step at BART-large's shape. On the GPU where
there is one (bf16), else on the CPU (fp32). The contestants take turns, so that a drifting machine is fair to all.
"""

import argparse
import concurrent.futures
import copy
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from distill import distributed
from distill.batching import collate
from distill.distillation import Distillation
from distill.head import chunked_losses
from distill.losses import cross_entropy, divergence
from distill.objective import Counts, ScoredStudent
from distill.peak_memory import peak_resident_bytes
from distill.recipe import Cache, Objective, Teacher
from distill.sections import Train
from distill.signal import HiddenSignal
from distill.student import freeze, set_dropout, shrink
from distill.tokens import Tokens

T = 2.0
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


# ------------------------------------------------------------------------------------------------ the loss alone

VOCABULARY, TOKENS, WIDTH = 96_103, 4096, 1024


def loss_inputs(trained_head: bool) -> tuple[torch.Tensor, ...]:
    make = torch.Generator(device=DEVICE).manual_seed(0)
    hidden, taught = (torch.randn(TOKENS, WIDTH, device=DEVICE, dtype=DTYPE, generator=make) for _ in range(2))
    weight, head = (torch.randn(VOCABULARY, WIDTH, device=DEVICE, dtype=DTYPE, generator=make) for _ in range(2))
    labels = torch.randint(0, VOCABULARY, (TOKENS,), device=DEVICE, generator=make)
    for tensor in (weight, head):
        tensor /= WIDTH**0.5
    return hidden.requires_grad_(), weight.requires_grad_(trained_head), taught, head, labels


def naive_loss(
    hidden: torch.Tensor, weight: torch.Tensor, taught: torch.Tensor, head: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    logits, teacher_logits = hidden @ weight.T, taught @ head.T
    kl = F.kl_div((logits / T).log_softmax(-1), (teacher_logits / T).softmax(-1), reduction="batchmean")
    return F.cross_entropy(logits, labels) + 0.8 * T**2 * kl


def our_loss(
    hidden: torch.Tensor, weight: torch.Tensor, taught: torch.Tensor, head: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    signal = HiddenSignal(taught, head, None)

    def token_losses(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        kl = T**2 * divergence(*signal.log_probabilities(logits, rows, T))
        return torch.stack([cross_entropy(logits, labels[rows]), kl]) / TOKENS

    return chunked_losses(hidden, weight, None, token_losses, torch.tensor([1.0, 0.8], device=DEVICE))[0]


def measure_loss(loss: Callable[..., torch.Tensor], trained_head: bool) -> tuple[float, float, float]:
    """(seconds, peak bytes above the inputs, the loss) of one forward and backward, in a process of its own."""
    inputs = loss_inputs(trained_head)
    if ON_GPU:
        loss(*inputs).backward()  # warm-up
        inputs[0].grad = inputs[1].grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if ON_GPU else peak_resident_bytes()
    began = time.perf_counter()
    value = loss(*inputs)
    value.backward()
    if ON_GPU:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    after = torch.cuda.max_memory_allocated() if ON_GPU else peak_resident_bytes()
    return seconds, float(after - before), float(value.detach())


def benchmark_loss(rounds: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    contestants = {"naive": naive_loss, "ours": our_loss}
    print(f"loss: vocabulary {VOCABULARY}, {TOKENS} target tokens, width {WIDTH}, {DTYPE}, {DEVICE}")
    for trained_head in (False, True):
        results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, loss in contestants.items():
                with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    results[name].append(pool.submit(measure_loss, loss, trained_head).result())
        seconds, peak, value = (
            {name: statistics.median(r[column] for r in rows) for name, rows in results.items()} for column in range(3)
        )
        print(
            f"  head {'trained' if trained_head else 'frozen'}: "
            f"naive {seconds['naive']:.2f} s, {peak['naive'] / 1e9:.2f} GB; "
            f"ours {seconds['ours']:.2f} s, {peak['ours'] / 1e9:.2f} GB; "
            f"memory 1/{peak['naive'] / peak['ours']:.1f}, time {seconds['ours'] / seconds['naive']:.2f} times; "
            f"losses differ by {abs(value['naive'] - value['ours']) / value['naive']:.1e}"
        )


# ------------------------------------------------------------------------------------------------ a whole step


def bart_large() -> Any:
    config = AutoConfig.for_model(
        "bart", vocab_size=50264, max_position_embeddings=1024, d_model=1024, dropout=0.0, scale_embedding=False
    )
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(config, dtype=DTYPE).eval()


class NaiveLoop:
    """As anybody would write it: both models whole, each its own encoder, whole logits."""

    def __init__(self, teacher: Any, student: Any, batch: dict[str, Any]) -> None:
        self.teacher, self.student, self.batch = teacher.to(DEVICE), student.to(DEVICE), batch
        trained = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step(self) -> float:
        arguments = {name: self.batch[name] for name in ("input_ids", "attention_mask", "labels")}
        self.student.train()
        with torch.no_grad():
            taught = self.teacher(**arguments).logits
        own = self.student(**arguments)
        kl = F.kl_div((own.logits / T).log_softmax(-1), (taught / T).softmax(-1), reduction="sum") * T**2
        loss = own.loss + 0.8 * kl / arguments["labels"].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


class Ours:
    """The engine that jobs.train drives, on one process."""

    def __init__(self, student: Any, batch: dict[str, Any], teacher: Any, shares: bool, world: Any) -> None:
        from distill.engine import Engine

        objective = Objective.model_validate({"kl": {"weight": 0.8}})
        scored = ScoredStudent(student, objective, 0.0, Distillation(shares_encoder=shares))
        precision = "bf16" if ON_GPU else "fp32"
        train = Train(steps=1, learning_rate=1e-5, zero_stage=1 if ON_GPU else 0, precision=precision)
        self.engine, self.batch = Engine(scored, train, world, teacher), batch
        labels = batch["labels"]
        self.counts = Counts(labels.numel(), batch["input_ids"].numel())

    def step(self) -> float:
        loss, *_ = self.engine.accumulate(self.batch, self.counts).tolist()
        self.engine.step(1e-5)
        return float(loss)


def make_batch(examples: int, source: int, target: int) -> tuple[Tokens, dict[str, Any]]:
    make = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50000, (examples, source + target), generator=make).tolist()
    tokens = Tokens([row[:source] for row in ids], [row[source:] for row in ids], {})
    return tokens, collate(tokens, list(range(examples)), 1, DEVICE)


def benchmark_step(source: int, target: int, examples: int, rounds: int) -> None:
    from distill.engine import LiveTeacher

    world = distributed.start()
    teacher = bart_large()
    student = shrink(teacher, list(range(12)), [0, 6, 11])
    freeze(student, ["encoder", "embeddings"])
    set_dropout(student, 0.0)
    tokens, batch = make_batch(examples, source, target)
    cached = cache(teacher, tokens)
    naive = NaiveLoop(copy.deepcopy(teacher), copy.deepcopy(student), batch)
    settings = Teacher(model="here")
    live = LiveTeacher(teacher, settings, Distillation(shares_encoder=True), world)
    contestants: dict[str, Any] = {
        "naive": naive,
        "ours": Ours(copy.deepcopy(student), batch, live, True, world),
        "ours from the hidden cache": Ours(student, batch, cached, False, world),
    }
    first = {name: one.step() for name, one in contestants.items()}  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, one in contestants.items():
            seconds[name].append(timed(one.step))
    print(f"step: BART-large 12-3, {examples} x {source} source, {target} target tokens, {DTYPE}, {DEVICE}")
    for name in contestants:
        ratio = statistics.median(a / b for a, b in zip(seconds["naive"], seconds[name], strict=True))
        median = statistics.median(seconds[name])
        rate = examples * (source + target) / median
        print(
            f"  {name}: {median:.2f} s ({min(seconds[name]):.2f} to {max(seconds[name]):.2f}), "
            f"{rate:.0f} tokens/s, {ratio:.2f} times as fast as naive; first loss {first[name]:.6f}"
        )


def cache(teacher: Any, tokens: Tokens) -> Any:
    from distill.teacher_cache import CachedTeacher, CacheWriter, contents

    made_of = contents(
        Cache(keep="hidden"), [T], "bf16" if ON_GPU else "fp32", dict.fromkeys(("corpus", "tokens", "teacher"), "-")
    )
    folder = Path(tempfile.mkdtemp())
    CacheWriter(folder, made_of, teacher.to(DEVICE), tokens, 1, 10**6, DEVICE).write(0)
    return CachedTeacher(folder, made_of, tokens, teacher.config.to_dict(), DEVICE, T, Distillation())


def timed(step: Callable[[], float]) -> float:
    if ON_GPU:
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loss", "step"])
    parser.add_argument("--source", type=int, default=512)
    parser.add_argument("--target", type=int, default=64)
    parser.add_argument("--examples", type=int, help="of a step; by default 2048 source tokens' worth")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.what == "loss":
        benchmark_loss(options.rounds)
    else:
        examples = options.examples or max(1, 2048 // options.source)
        benchmark_step(options.source, options.target, examples, options.rounds)


if __name__ == "__main__":
    main()
