"""python -m jobs.benchmark RECIPE [key=value ...]

Speed, size and memory of all teachers and students, in one process and one run, taking turns; a benchmark.json each.
"""

import logging
import time

from distill.stages import benchmark_is_current
from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def benchmark(arguments: Arguments) -> None:
    run = arguments.run
    members = run.members()
    if benchmark_is_current(run):
        log.info("the benchmark is complete")
        return
    weights = {member: run.weights(member) for member in members}
    generation = {member: run.generation(member) for member in members}

    import random

    from distill import distributed
    from distill.corpus import read_split
    from distill.families import shape_of
    from distill.files import write_json
    from distill.preflight import source_limit
    from distill.pretrained import load_config
    from distill.speed import Candidate, measure

    world = distributed.start()
    corpus, settings = run.recipe.corpus, run.recipe.benchmark
    rows = read_split(run.split("test"))
    rows = random.Random(run.recipe.seed).sample(rows, min(settings.documents, len(rows)))
    candidates = [
        Candidate(
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
    ]
    measured = measure(candidates, rows, settings, world)
    common = {"measured_at": time.time(), "settings": settings.model_dump(mode="json")}
    for member in members:
        write_json(member.benchmark, common | measured[str(member)])
        log.info("%s: %s", member, measured[str(member)])


if __name__ == "__main__":
    main(benchmark, "benchmark")
