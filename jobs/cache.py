"""python -m jobs.cache RECIPE --teacher NAME [--shard K] [key=value ...]     (or deepspeed, torchrun, srun)

What a teacher says about the training targets, computed once for all its students. Shards know nothing of each other:
several processes share them out, and --shard K computes one alone, on any machine.
"""

import logging

from jobs.start import Arguments, check_shard, main

log = logging.getLogger(__name__)


def cache_teacher(arguments: Arguments) -> None:
    from distill.errors import InputError
    from distill.recipe import Teacher
    from distill.stages import cache_is_complete, is_cached

    run, member = arguments.run, arguments.member
    settings = run.settings(member) if member else None
    if member is None or not isinstance(settings, Teacher) or not is_cached(run.recipe, member.name):
        raise InputError(f"{member} has no cache that a student reads. Give --teacher NAME of one with a cache key.")
    assert settings.cache is not None
    check_shard(arguments.shard, settings.cache.shards, "cache.shards")
    if not run.corpus.exists():
        raise InputError(f"{run.folder} has no corpus; run jobs.prepare first.")
    if cache_is_complete(run, member):
        log.info("%s is complete", member.cache)
        return

    from distill import distributed
    from distill.data import encoder_of, load_gold_tokens
    from distill.pretrained import dtype_of, load_pair
    from distill.scoring import cache_contents
    from distill.shards import fill_each
    from distill.teacher_cache import CacheWriter

    world = distributed.place()
    weights = run.weights(member)
    model, tokenizer = load_pair(weights, settings.languages, dtype_of(settings.precision or "fp32"))
    tokens = load_gold_tokens(run, encoder_of(run, settings, tokenizer, model.config.to_dict()))
    writer = CacheWriter(
        folder=member.cache,
        made_of=cache_contents(run, member.name, tokens),
        model=model.to(world.device),
        tokens=tokens,
        pad=tokenizer.pad_token_id,
        batch_tokens=run.recipe.train.micro_batch_tokens,
        device=world.device,
        before_batch=arguments.stop.raise_if_set,
    )
    shards = range(settings.cache.shards) if arguments.shard is None else [arguments.shard]
    fill_each(shards[world.rank :: world.size], writer.write)


if __name__ == "__main__":
    main(cache_teacher, "cache", works_on="member", shards=True, stops="between batches")
