"""python -m jobs.benchmark RECIPE [key=value ...]

Speed, size and memory of all teachers and students, in one process and one run, taking turns; a benchmark.json each.

All models are measured again if the result of one is missing: speeds of different times cannot be compared.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distill.files import write_json
from distill.run import Member, Run
from distill.stages import BENCHMARK_FORMAT, benchmark_is_current
from jobs.start import Arguments, main

if TYPE_CHECKING:
    from distill.speed import Candidate

log = logging.getLogger(__name__)


def benchmark(arguments: Arguments) -> None:
    run = arguments.run
    if benchmark_is_current(run):
        log.info("the benchmark is complete")
        return
    began = time.monotonic()
    candidates = _candidates(run)
    try:
        results = _measure(run, candidates, began)
    finally:
        run.benchmark_progress.unlink(missing_ok=True)
    for member, result in results.items():
        write_json(member.benchmark, result)
        log.info("wrote %s", member.benchmark)


def _candidates(run: Run) -> "dict[Member, Candidate]":
    """Return the models to measure. Raises InputError if one is not trained, or its search not done."""
    weights = {member: run.weights(member) for member in run.members()}
    generation = {member: run.generation(member) for member in run.members()}

    from distill.families import shape_of
    from distill.preflight import source_limit
    from distill.pretrained import load_config
    from distill.speed import Candidate

    corpus = run.recipe.corpus
    return {
        member: Candidate(
            name=str(member),
            weights=path,
            generation=generation[member],
            own_decoding=run.own_decoding(member),
            max_source_tokens=source_limit(shape_of(load_config(path), path), corpus.max_source_tokens, str(member)),
            max_target_tokens=corpus.max_target_tokens,
            prefix=run.teacher_settings(member).prefix,
            languages=run.teacher_settings(member).languages,
        )
        for member, path in weights.items()
    }


def _measure(run: Run, candidates: "dict[Member, Candidate]", began: float) -> dict[Member, dict[str, Any]]:
    """Return what benchmark.json says of each model."""
    import random

    from distill import distributed
    from distill.corpus import read_split
    from distill.peak_memory import disk_bytes, peak_memory
    from distill.speed import SpeedTest

    device = distributed.place().device
    settings = run.recipe.benchmark
    rows = read_split(run.split("test"))
    rows = random.Random(run.recipe.seed).sample(rows, min(settings.documents, len(rows)))
    tell = _teller(run)
    test = SpeedTest(list(candidates.values()), rows, settings, device, tell, began)
    test.run()
    common: dict[str, Any] = {
        "format": BENCHMARK_FORMAT,
        "measured_at": time.time(),
        "settings": settings.model_dump(mode="json"),
    }
    common |= test.results()
    results = {member: common | test.results_of(candidate.name) for member, candidate in candidates.items()}
    test.release()  # on a GPU the processes below need the room
    for number, (member, result) in enumerate(results.items(), start=1):
        tell("memory of model", number, len(results), test.seconds_left())
        result["disk_bytes"] = disk_bytes(candidates[member].weights)
        if not result["unfit"]:
            result["peak_memory_bytes"] = peak_memory(candidates[member], rows, result["best_batch"])
    return results


def _teller(run: Run) -> Callable[[str, int, int, float | None], None]:
    """Return a function that writes the progress file, for the launcher's screen."""

    def tell(doing: str, step: int, steps: int, seconds_left: float | None) -> None:
        ends_at = None if seconds_left is None else time.time() + seconds_left
        write_json(run.benchmark_progress, {"doing": doing, "step": step, "steps": steps, "ends_at": ends_at})
        log.info("%s %d/%d", doing, step, steps)

    return tell


if __name__ == "__main__":
    main(benchmark, "benchmark")
