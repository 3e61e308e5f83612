"""deepspeed --module jobs.search RECIPE --student NAME [--shard K] [key=value ...]     (or torchrun, python -m)

Tries the decodings of `evaluate.search` on the validation split, each in shards as the final test is; then search.json,
whose best one the final test uses. --shard K computes one of each, on any machine, and does not score.
"""

import logging
import shutil
import time
from functools import partial

from distill.errors import InputError
from distill.search import points
from jobs.start import Arguments, check_shard, main

log = logging.getLogger(__name__)


def search(arguments: Arguments) -> None:
    run, member = arguments.run, arguments.member
    assert member is not None
    settings = run.evaluate_settings(member)
    if settings.search is None:
        raise InputError(
            f"{member} has no evaluate.search. Expected a grid; give one, for example {{num_beams: [1, 4]}}."
        )
    check_shard(arguments.shard, settings.shards, "evaluate.shards")
    if member.search.exists():
        shutil.rmtree(member.search_points, ignore_errors=True)  # of a job killed after it had found the best
        log.info("%s is complete", member.search)
        return
    run.weights(member)  # refused before torch is loaded

    from distill import distributed
    from distill.evaluation import fill_together, on_main, score_point, summary_writer, write_best
    from distill.task import decoded, search_task

    world = distributed.start() if arguments.shard is None else distributed.place()
    task = search_task(run, member, settings.search)
    todo = [
        (point, not point.folder.exists()) for point in points(settings.search, member) if not point.result.exists()
    ]
    for point, is_new in todo if arguments.shard is not None else world.broadcast(todo):
        began = time.monotonic()
        generation = settings.generation.model_copy(update=point.settings)
        trial = decoded(task, generation, run.recipe.corpus.max_target_tokens)
        writer = summary_writer(trial, point.folder, settings, world, arguments.stop.raise_if_set)
        log.info("%s: %s", member, point.settings)
        if arguments.shard is not None:
            writer.write(arguments.shard)
            continue
        fill_together(writer, world)
        seconds = round(time.monotonic() - began, 2) if is_new else None
        on_main(world, partial(score_point, run, member, trial, point, seconds))
    if arguments.shard is None:
        found = on_main(world, partial(write_best, run, member, task))
        log.info("%s: the best by %s is %s", member, settings.metric, found and found["best"])


if __name__ == "__main__":
    main(search, "search", works_on="member", shards=True, stops="between batches")
