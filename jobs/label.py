"""python -m jobs.label RECIPE --labels NAME [--shard K] [key=value ...]     (or torchrun, deepspeed, srun)

A teacher's summaries of the training documents, or of others. Shards know nothing of each other: several processes share
them out, --shard K makes one alone, on any machine, and one that was killed goes on at its last whole batch.
"""

import logging

from jobs.start import Arguments, check_shard, main

log = logging.getLogger(__name__)


def label(arguments: Arguments) -> None:
    from distill.shards import fill_each, shards_of

    run, labels = arguments.run, arguments.labels
    assert labels is not None
    settings = labels.settings
    check_shard(arguments.shard, settings.shards, f"labels.{labels.name}.shards")
    run.weights(run.member("teachers", labels.teacher))  # refused before torch is loaded

    from distill import distributed

    world = distributed.place()
    shards = shards_of(labels.folder, settings.shards, ".jsonl")
    shards = shards[world.rank :: world.size] if arguments.shard is None else [shards[arguments.shard]]
    missing = [shard.number for shard in shards if not shard.is_complete()]
    if not missing:
        log.info("%d shards of %s are complete", len(shards), labels)
        return

    from distill.labels import label_writer

    writer = label_writer(run, labels, world.device, arguments.stop.raise_if_set)
    fill_each(missing, writer.write)


if __name__ == "__main__":
    main(label, "label", works_on="labels", shards=True, stops="between batches")
