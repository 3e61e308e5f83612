"""The benchmark of real, tiny models."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import distill.peak_memory
import distill.speed
from distill.errors import InputError
from distill.files import read_json, write_json
from distill.peak_memory import peak_memory
from distill.preemption import StoppedError
from distill.recipe_file import parse_recipe
from distill.run import Run
from distill.sections import Benchmark, Generation
from distill.speed import Candidate, SpeedTest, is_out_of_memory, load_candidate
from distill.stages import benchmark_is_current
from jobs.benchmark import benchmark
from jobs.start import Arguments
from tests.conftest import make_model, make_rows

CPU = torch.device("cpu")
ROWS = make_rows(6)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["distill.peak_memory", "tests.unit.test_speed"])


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> list[Candidate]:
    folder = tmp_path_factory.mktemp("models")
    made = []
    for name, depth in (("deep", 4), ("shallow", 1)):
        make_model("bart", tokenizer, decoder=depth, noise=0.3).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        made.append(Candidate(name, str(folder / name), Generation(num_beams=2), str(folder / name), 40, 12))
    return made


def measure(candidates: list[Candidate], told: list[Any] | None = None, **settings: Any) -> SpeedTest:
    wanted = Benchmark.model_validate(
        {"documents": 6, "rounds": 3, "batch_sizes": [4, 1], "minutes": 10_000} | settings
    )
    heard = [] if told is None else told
    test = SpeedTest(candidates, ROWS, wanted, CPU, lambda *what: heard.append(what), time.monotonic())
    test.run()
    return test


def test_every_model_is_measured_in_every_round(candidates: list[Candidate]) -> None:
    told: list[Any] = []
    test = measure(candidates, told)
    common = test.results()
    assert common["plan"]["rounds_measured"] == 3 and common["plan"]["batch_sizes"] == (1, 4)
    assert common["machine"]["precision"] == "fp32"
    for name in ("deep", "shallow"):
        result = test.results_of(name)
        assert result["unfit"] is None and result["num_beams"] == 2
        rounds = result["latency_ms_rounds"]
        assert len(rounds) == 3 and min(rounds) <= result["latency_ms"] <= max(rounds)
        assert result["ms_per_token"] == pytest.approx(result["latency_ms"] / result["tokens_per_document"])
        assert {batch: len(values) for batch, values in result["documents_per_second_rounds"].items()} == {1: 3, 4: 3}
        assert result["documents_per_second"] > 0 and result["best_batch"] in (1, 4)
    steps = [what[:3] for what in told]
    assert steps == [("loading model", 1, 2), ("loading model", 2, 2), *(("round", n, 3) for n in (1, 2, 3))]


def test_tokens_are_those_that_were_generated(candidates: list[Candidate]) -> None:
    model = load_candidate(candidates[0], ROWS, CPU)
    one_by_one = [model.summarize([i])[1] for i in range(6)]
    assert sum(one_by_one) == model.summarize(range(6))[1], "padding does not count"
    for tokens, row in zip(one_by_one, ROWS, strict=True):
        ids = model.tokenizer(row["document"], truncation=True, max_length=40, return_tensors="pt")["input_ids"]
        output = model.model.generate(ids, generation_config=model.config)
        assert tokens == output.shape[1] - 1, "without the start token"


def test_a_slow_machine_measures_less_and_says_so(candidates: list[Candidate]) -> None:
    test = measure(candidates, minutes=1e-6)
    assert (test.plan.documents, test.plan.rounds, test.plan.batch_sizes) == (4, 2, (1,))
    assert "4 of 6 documents" in test.results()["plan"]["note"]
    assert len(test.results_of("deep")["latency_ms_rounds"]) == 2


def test_it_ends_early_if_the_machine_becomes_slower(candidates: list[Candidate]) -> None:
    wanted = Benchmark(documents=2, rounds=5, batch_sizes=[1], minutes=10_000)
    test = SpeedTest(candidates, ROWS, wanted, CPU, lambda *_: None, time.monotonic())
    assert test.plan.rounds == 5
    test.began -= 600_000  # so much time has gone by meanwhile
    test.run()
    assert test.rounds() == 2, "all models have these"
    assert test.results()["plan"]["rounds_measured"] == 2


def test_a_model_that_does_not_fit_is_left_out(candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(candidate: Candidate, *rest: Any) -> Any:
        if candidate.name == "deep":
            torch.empty(2**60)  # more memory than any machine has
        return load_candidate(candidate, *rest)

    monkeypatch.setattr(distill.speed, "load_candidate", load)
    test = measure(candidates)
    assert test.results_of("deep") == {"unfit": "deep does not fit into memory beside the models before it"}
    assert test.results_of("shallow")["latency_ms"] > 0


def test_a_batch_that_does_not_fit_is_left_out_for_all(candidates: list[Candidate], monkeypatch: Any) -> None:
    usual = distill.speed.LoadedModel.summarize

    def summarize(model: Any, indices: Any) -> Any:
        if len(indices) == 4 and model.model.config.decoder_layers == 4:
            torch.empty(2**60)
        return usual(model, indices)

    monkeypatch.setattr(distill.speed.LoadedModel, "summarize", summarize)
    test = measure(candidates)
    for name in ("deep", "shallow"):
        assert list(test.results_of(name)["documents_per_second_rounds"]) == [1]


def test_other_errors_are_no_lack_of_memory(candidates: list[Candidate], tmp_path: Path) -> None:
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(InputError):
        measure([replace(candidates[0], weights=str(tmp_path))])


def test_an_interrupted_benchmark_starts_anew(
    candidates: list[Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = {candidate.name: {"model": candidate.weights} for candidate in candidates}
    corpus = {"train": "docstrings", "max_source_tokens": 40, "max_target_tokens": 12}
    small = {"documents": 2, "rounds": 1, "batch_sizes": [1], "minutes": 10_000}
    run = Run(parse_recipe({"name": "x", "corpus": corpus, "teachers": teachers, "benchmark": small}), tmp_path)
    run.corpus.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS), run.split("test"))
    old = {"measured_at": 1.0, "settings": {}, "latency_ms": 5.0}
    for member in run.members():
        write_json(member.benchmark, old)

    def stop(candidate: Candidate, *_: Any) -> int:
        progress = read_json(run.benchmark_progress)
        assert progress["doing"] == "memory of model"
        if candidate.name.endswith("shallow"):
            raise StoppedError("SIGTERM")
        return 1

    monkeypatch.setattr(distill.peak_memory, "peak_memory", stop)
    with pytest.raises(StoppedError):
        benchmark(Arguments(run))
    assert all(read_json(member.benchmark) == old for member in run.members()), "no half of the results"
    assert not run.benchmark_progress.exists()
    monkeypatch.setattr(distill.peak_memory, "peak_memory", lambda *_: 7)
    benchmark(Arguments(run))
    assert benchmark_is_current(run) and not run.benchmark_progress.exists()
    assert [read_json(member.benchmark)["peak_memory_bytes"] for member in run.members()] == [7, 7]


class Killed:
    """Kills the process that unpickles it, as the system does if there is no memory left."""

    def __reduce__(self) -> Any:
        return (_kill_this_process, ())


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_memory_is_measured_in_a_process_of_its_own(candidates: list[Candidate], monkeypatch: Any) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)
    found = peak_memory(candidates[0], ROWS, 8)
    assert found is not None and found > 0
    assert peak_memory(replace(candidates[0], prefix=Killed()), ROWS, 1) is None, "out of memory"  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the memory of deep failed"):
        peak_memory(replace(candidates[0], weights="/nowhere"), ROWS, 1)
