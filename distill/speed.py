"""Speed of several models side by side.

The models take turns, document by document, so that a machine that becomes slower is slower for all of them. All are
measured on the same documents, in the same number of rounds.
"""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from distill.benchmark_plan import MIN_ROUNDS, Timing, make_plan, memory_seconds
from distill.generation import count_tokens, decode_texts, generate_tokens, generation_config
from distill.machine import CpuTime, describe, load_average
from distill.pretrained import DTYPES, load_pair
from distill.reading import Row
from distill.sections import Benchmark, Generation, Languages
from distill.tokens import Encoder

log = logging.getLogger(__name__)

PRECISION = "fp32"
"""The models are loaded and measured in it."""
PROBED_BATCH = 8
"""Timed in the warm-up, to estimate larger ones."""
PROBED_SHARE = 0.1
"""Of the whole time: the most that these batches may need."""

OUT_OF_MEMORY_WORDS = ("can't allocate memory", "ALLOC_FAILED")
"""torch's on the CPU, and those of CUDA's libraries."""

Tell = Callable[[str, int, int, float | None], None]
"""Is told where the benchmark is: what it does, step, steps, seconds left (None if this is not known yet)."""


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
class LoadedModel:
    """A model on its device, and the documents as it reads them."""

    model: PreTrainedModel
    tokenizer: Any
    config: GenerationConfig
    source: list[list[int]]
    device: torch.device

    def summarize(self, indices: Sequence[int]) -> tuple[float, int]:
        """Return (seconds, generated tokens) of one batch of beam search, from token ids to texts."""
        source = [self.source[i] for i in indices]
        began = time.perf_counter()
        output_BT = generate_tokens(self.model, self.tokenizer, source, self.config, self.device)
        decode_texts(self.tokenizer, output_BT)
        seconds = time.perf_counter() - began
        return seconds, count_tokens(output_BT, self.config)


@dataclass
class Measured:
    """What was measured of one model, a value for each round."""

    latency_ms: list[float] = field(default_factory=list)
    """Milliseconds per document at batch 1: the mean over the documents."""
    tokens_per_document: float = 0.0
    documents_per_second: dict[int, list[float]] = field(default_factory=dict)

    def best_batch(self) -> int:
        """Return the batch size of the highest median throughput; 1 if no batch was measured."""
        medians = {batch: statistics.median(values) for batch, values in self.documents_per_second.items()}
        return max(medians, key=medians.__getitem__, default=1)


def load_candidate(candidate: Candidate, rows: Sequence[Row], device: torch.device) -> LoadedModel:
    """Return the model on its device. Raises InputError if it cannot be read."""
    model, tokenizer = load_pair(
        candidate.weights, candidate.languages, DTYPES[PRECISION], own_decoding=candidate.own_decoding
    )
    encoder = Encoder(tokenizer, candidate.max_source_tokens, candidate.max_target_tokens, candidate.prefix)
    source, _ = encoder([row["document"] for row in rows], "source")
    config = generation_config(model, candidate.generation, candidate.max_target_tokens)
    return LoadedModel(model.to(device), tokenizer, config, source, device)


def is_out_of_memory(error: Exception) -> bool:
    """Return True for an allocation that failed, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


class SpeedTest:
    """Loads the models, plans with the warm-up's timings, and measures round by round."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        rows: Sequence[Row],
        settings: Benchmark,
        device: torch.device,
        tell: Tell,
        began: float,
    ) -> None:
        """`began`: when the job began, before it imported the libraries (`time.monotonic()`)."""
        self.began = began
        self.import_seconds = self.seconds_spent()
        self.load_before = load_average()
        self.load_during = 0.0
        self.other_cores = 0.0
        self.rows = rows
        self.settings = settings
        self.device = device
        self.tell = tell
        self.models: dict[str, LoadedModel] = {}
        self.timings: dict[str, Timing] = {}
        self.unfit: dict[str, str] = {}
        """Why a model is not measured: it does not fit into memory."""
        for number, candidate in enumerate(candidates, start=1):
            tell("loading model", number, len(candidates), None)
            self._warm_up(candidate)
        self._probe_batches()
        timings = list(self.timings.values())
        self.plan = make_plan(settings, len(rows), timings, self.seconds_spent())
        self.measured = {name: Measured() for name in self.models}

    def seconds_spent(self) -> float:
        return time.monotonic() - self.began

    def seconds_left(self) -> float:
        """Return what the plan leaves; below 0 if it took longer than planned."""
        return self.plan.seconds - self.seconds_spent()

    def run(self) -> None:
        """Measure all rounds."""
        plan = self.plan
        log.info(
            "%d documents, %d rounds, batches of %s: about %.0f s",
            plan.documents,
            plan.rounds,
            ", ".join(map(str, plan.batch_sizes)),
            plan.seconds,
        )
        if plan.note:
            log.warning(plan.note)
        before = CpuTime.now()
        for number in range(1, plan.rounds + 1):
            self.tell("round", number, plan.rounds, self.seconds_left())
            began = time.monotonic()
            self._latency_turn()
            for batch in plan.batch_sizes:
                self._batch_turn(batch, number)
            self._log_round(number)
            self.load_during = max(self.load_during, load_average())
            if number < plan.rounds and self._must_end(number, time.monotonic() - began):
                break
        self.other_cores = CpuTime.now().other_cores_since(before)

    def rounds(self) -> int:
        """Return how many rounds were measured."""
        return max((len(measured.latency_ms) for measured in self.measured.values()), default=0)

    def results(self) -> dict[str, Any]:
        """Return what holds for all models: the plan, what became of it, the machine."""
        machine = describe(self.device, PRECISION, self.load_before, self.load_during, self.other_cores)
        plan = asdict(self.plan) | {"rounds_measured": self.rounds()}
        return {"plan": plan, "machine": asdict(machine)}

    def results_of(self, name: str) -> dict[str, Any]:
        """Return what was measured of one model; only the reason if it does not fit."""
        if name in self.unfit:
            return {"unfit": self.unfit[name]}
        measured = self.measured[name]
        latency_ms = statistics.median(measured.latency_ms)
        batch = measured.best_batch()
        throughput = measured.documents_per_second
        return {
            "unfit": None,
            "parameters": self.models[name].model.num_parameters(),
            "num_beams": self.models[name].config.num_beams,
            "latency_ms": latency_ms,
            "latency_ms_rounds": measured.latency_ms,
            "tokens_per_document": measured.tokens_per_document,
            "ms_per_token": latency_ms / measured.tokens_per_document,
            "best_batch": batch,
            "documents_per_second": statistics.median(throughput[batch]) if throughput else None,
            "documents_per_second_rounds": throughput,
        }

    def release(self) -> None:
        """Free the models' memory."""
        self.models.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _warm_up(self, candidate: Candidate) -> None:
        """Load a model, and time it. The longest document comes first: it shows whether the model fits."""
        by_length = sorted(range(len(self.rows)), key=lambda i: len(self.rows[i]["document"]))
        log.info("loading %s", candidate.name)
        began = time.monotonic()
        try:
            model = load_candidate(candidate, self.rows, self.device)
            process_seconds = self.import_seconds + time.monotonic() - began
            model.summarize([by_length[-1]])
            document_seconds, _ = model.summarize([by_length[len(by_length) // 2]])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.unfit[candidate.name] = f"{candidate.name} does not fit into memory beside the models before it"
            log.warning("%s; it is left out: %s", self.unfit[candidate.name], error)
            return
        self.models[candidate.name] = model
        self.timings[candidate.name] = Timing(process_seconds, document_seconds)

    def _probe_batches(self) -> None:
        """Time a larger batch of each model too, if this is quick enough."""
        batch = min(PROBED_BATCH, max(self.settings.batch_sizes))
        most_seconds = batch * sum(timing.document_seconds for timing in self.timings.values())
        if batch == 1 or most_seconds > PROBED_SHARE * 60 * self.settings.minutes:
            return
        for name, timing in self.timings.items():
            seconds = self._seconds_of_batch(name, batch)
            if seconds is not None:
                self.timings[name] = replace(timing, batch=batch, batch_seconds=seconds)

    def _latency_turn(self) -> None:
        seconds = dict.fromkeys(self.models, 0.0)
        tokens = dict.fromkeys(self.models, 0)
        for document in range(self.plan.documents):
            for name, model in self.models.items():
                took, generated = model.summarize([document])
                seconds[name] += took
                tokens[name] += generated
        for name, measured in self.measured.items():
            measured.latency_ms.append(1000 * seconds[name] / self.plan.documents)
            measured.tokens_per_document = tokens[name] / self.plan.documents

    def _batch_turn(self, batch: int, number: int) -> None:
        """Measure one batch of each model. A size that does not fit one of them is left out for all, in all rounds."""
        if number > 1 and not any(batch in measured.documents_per_second for measured in self.measured.values()):
            return
        seconds = {name: self._seconds_of_batch(name, batch) for name in self.models}
        for name, took in seconds.items():
            throughput = self.measured[name].documents_per_second
            if took is not None and None not in seconds.values():
                throughput.setdefault(batch, []).append(batch / took)
            else:
                throughput.pop(batch, None)

    def _seconds_of_batch(self, name: str, batch: int) -> float | None:
        """Return the time of one batch, or None if it does not fit into memory."""
        try:
            return self.models[name].summarize(batch_of(batch, len(self.rows)))[0]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.warning("a batch of %d does not fit into memory beside all models: %s", batch, name)
            return None

    def _must_end(self, number: int, round_seconds: float) -> bool:
        """Return True if one more round would end after the time, and there are rounds enough."""
        memory = memory_seconds(list(self.timings.values()), max(self.plan.batch_sizes))
        ends = self.seconds_spent() + round_seconds + memory
        if number < MIN_ROUNDS or ends <= 60 * self.settings.minutes:
            return False
        log.warning("round %d took %.0f s, longer than planned: no further round fits", number, round_seconds)
        return True

    def _log_round(self, number: int) -> None:
        for name, measured in self.measured.items():
            throughput = ", ".join(
                f"{values[-1]:.1f} in batches of {batch}" for batch, values in measured.documents_per_second.items()
            )
            latency_ms = measured.latency_ms[-1]
            where = f"round {number}/{self.plan.rounds}"
            log.info("%s, %s: %.1f ms per document; documents per second: %s", where, name, latency_ms, throughput)


def batch_of(size: int, documents: int) -> list[int]:
    """Return `size` document numbers, beginning again at the first if there are fewer."""
    return [i % documents for i in range(size)]
