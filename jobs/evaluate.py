"""deepspeed --module jobs.evaluate RECIPE --student NAME [--split test] [--shard K] [key=value ...]     (or torchrun, python -m)

Beam search on a whole split, in shards that the processes share out and that go on where they were killed; then
predictions.jsonl in corpus order and scores.json. --shard K computes one alone, on any machine, and does not score.
"""

import logging
import shutil

from jobs.start import Arguments, check_shard, main

log = logging.getLogger(__name__)


def evaluate(arguments: Arguments) -> None:
    run, member, split = arguments.run, arguments.member, arguments.split
    assert member is not None
    settings = run.evaluate_settings(member)
    check_shard(arguments.shard, settings.shards, "evaluate.shards")
    folder = member.evaluation(split)
    if (folder / "scores.json").exists():
        shutil.rmtree(member.evaluation_shards(split), ignore_errors=True)  # of a job killed after it had scored
        log.info("%s is complete", folder)
        return
    run.weights(member)  # refused before torch is loaded

    from distill import distributed
    from distill.claim import TakenOverError
    from distill.errors import InputError
    from distill.evaluation import score_split
    from distill.generation import HuggingFace
    from distill.preemption import StoppedError
    from distill.scores import central, shown_metrics
    from distill.shards import fill_each
    from distill.summaries import SummaryWriter
    from distill.task import evaluation_task

    world = distributed.start() if arguments.shard is None else distributed.place()
    task = evaluation_task(run, member, split)
    writer = SummaryWriter(
        folder=member.evaluation_shards(split),
        contents=task.contents,
        engine=HuggingFace(task.model.to(world.device), task.tokenizer, task.config, world.device),
        ids=task.ids,
        source=task.source,
        batch_tokens=settings.batch_tokens,
        before_batch=arguments.stop.raise_if_set,
    )
    if arguments.shard is not None:
        writer.write(arguments.shard)
        return
    stopped: BaseException | None = None
    try:
        fill_each(range(world.rank, settings.shards, world.size), writer.write)
    except (StoppedError, TakenOverError, OSError) as error:
        stopped = error
    if world.any(stopped is not None):  # none waits for one that is gone
        raise stopped or StoppedError("another process stopped")
    problem = None
    if world.is_main:
        try:
            scores = score_split(run, member, split, task)
            shown = {name: round(central(scores[name]), 2) for name in shown_metrics(settings.metric)}
            log.info("%s on %s: %s", member, split, shown)
        except InputError as error:
            problem = str(error)
    problem = world.broadcast(problem)
    if problem:
        raise InputError(problem)


if __name__ == "__main__":
    main(evaluate, "evaluate", works_on="member", shards=True, stops="between batches")
