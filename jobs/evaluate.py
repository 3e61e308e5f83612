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
    run.weights(member), run.generation(member)  # refused before torch is loaded

    from distill import distributed
    from distill.baseline import first_sentence_scores
    from distill.evaluation import fill_together, on_main, score_split, summary_writer
    from distill.scores import central, shown_metrics
    from distill.task import evaluation_task

    world = distributed.start() if arguments.shard is None else distributed.place()
    task = evaluation_task(run, member, split)
    writer = summary_writer(task, member.evaluation_shards(split), settings, world, arguments.stop.raise_if_set)
    if arguments.shard is not None:
        writer.write(arguments.shard)
        return
    fill_together(writer, world)
    if world.is_main and split == "test":
        first_sentence_scores(run)  # before the scores, so that whoever shows them can show both
    if scores := on_main(world, lambda: score_split(run, member, split, task)):
        shown = {name: round(central(scores[name]), 2) for name in shown_metrics(settings.metric)}
        log.info("%s on %s: %s", member, split, shown)


if __name__ == "__main__":
    main(evaluate, "evaluate", works_on="member", shards=True, stops="between batches")
