"""Speed and size of several models side by side: they take turns, so that a drifting machine is fair to all."""

import concurrent.futures
import logging
import multiprocessing
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from distill.distributed import World
from distill.generation import generate, generation_config
from distill.pretrained import load_pair
from distill.reading import Row
from distill.sections import Benchmark, Generation, Languages
from distill.tokens import Encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model that is measured: what to load, how it decodes, its limits in tokens."""

    name: str
    weights: str
    generation: Generation
    own_decoding: str
    """The folder or hub name of the generation config that `generation` goes over."""
    max_source_tokens: int
    max_target_tokens: int
    prefix: str = ""
    languages: Languages | None = None


@dataclass(frozen=True)
class _Loaded:
    model: PreTrainedModel
    tokenizer: Any
    config: GenerationConfig
    source: list[list[int]]

    def seconds(self, indices: list[int], world: World) -> float:
        """Wall time of one batch of beam search, from token ids to texts."""
        began = time.perf_counter()
        for _ in generate(self.model, self.tokenizer, self.source, self.config, [indices], world.device):
            pass
        return time.perf_counter() - began


def measure(candidates: Sequence[Candidate], rows: Sequence[Row], settings: Benchmark, world: World) -> dict[str, Any]:
    """By name of candidate: parameters, disk bytes, latency, throughput, peak memory (at the best batch size).

    Latency is milliseconds per document at batch 1: the mean over the documents, the median over the rounds.
    Throughput is documents per second at the best of the batch sizes, the median over the rounds.
    """
    loaded = {candidate.name: _load(candidate, rows, world) for candidate in candidates}
    for one in loaded.values():
        one.seconds([0], world)  # warm-up
    latency = _latency(loaded, len(rows), settings, world)
    throughput = _throughput(loaded, len(rows), settings, world)
    return {
        candidate.name: {
            "parameters": loaded[candidate.name].model.num_parameters(),
            "disk_bytes": disk_bytes(candidate.weights),
            "latency_ms": latency[candidate.name],
            "documents_per_second": max(throughput[candidate.name].values()),
            "documents_per_second_by_batch": throughput[candidate.name],
            "peak_memory_bytes": peak_memory(candidate, list(rows), _best_batch(throughput[candidate.name])),
            "documents": len(rows),
            "device": _device_name(world),
            "threads": torch.get_num_threads(),
        }
        for candidate in candidates
    }


def disk_bytes(weights: str) -> int | None:
    """Size of a model folder; None for a hub name."""
    folder = Path(weights)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else None


def peak_memory(candidate: Candidate, rows: list[Row], batch: int) -> int:
    """Bytes of a process of its own that loads the model and summarizes one batch.

    On a GPU the most that torch held there; on a CPU the growth of the peak resident memory.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_peak_memory_here, candidate, rows, batch).result()


def _peak_memory_here(candidate: Candidate, rows: list[Row], batch: int) -> int:
    on_gpu = torch.cuda.is_available()
    world = World(0, 1, 0, torch.device("cuda" if on_gpu else "cpu"))
    before = 0 if on_gpu else _peak_resident_bytes()  # of the libraries, before the model
    one = _load(candidate, rows, world)
    one.seconds(list(range(min(batch, len(rows)))), world)
    return torch.cuda.max_memory_allocated() if on_gpu else _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    # Not getrusage: its maximum is inherited from the parent process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def _load(candidate: Candidate, rows: Sequence[Row], world: World) -> _Loaded:
    model, tokenizer = load_pair(candidate.weights, candidate.languages, own_decoding=candidate.own_decoding)
    encoder = Encoder(tokenizer, candidate.max_source_tokens, candidate.max_target_tokens, candidate.prefix)
    source, _ = encoder([row["document"] for row in rows], "source")
    config = generation_config(model, candidate.generation, candidate.max_target_tokens)
    return _Loaded(model.to(world.device), tokenizer, config, source)


def _latency(loaded: dict[str, _Loaded], documents: int, settings: Benchmark, world: World) -> dict[str, float]:
    rounds: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(settings.rounds):
        seconds = dict.fromkeys(loaded, 0.0)
        for document in range(documents):
            for name, one in loaded.items():
                seconds[name] += one.seconds([document], world)
        for name in loaded:
            rounds[name].append(1000 * seconds[name] / documents)
    return {name: statistics.median(values) for name, values in rounds.items()}


def _throughput(
    loaded: dict[str, _Loaded], documents: int, settings: Benchmark, world: World
) -> dict[str, dict[int, float]]:
    result: dict[str, dict[int, float]] = {name: {} for name in loaded}
    for batch in settings.batch_sizes:
        indices = [i % documents for i in range(batch)]
        seconds: dict[str, list[float]] = {name: [] for name in loaded}
        try:
            for _ in range(settings.rounds):
                for name, one in loaded.items():
                    seconds[name].append(one.seconds(indices, world))
        except torch.OutOfMemoryError:
            log.warning("batch size %d does not fit this GPU beside all models; left out", batch)
            continue
        for name in loaded:
            result[name][batch] = batch / statistics.median(seconds[name])
    return result


def _best_batch(documents_per_second: dict[int, float]) -> int:
    return max(documents_per_second, key=documents_per_second.__getitem__)


def _device_name(world: World) -> str:
    return torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu"
