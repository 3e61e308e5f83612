"""deepspeed --module jobs.train RECIPE --student NAME [key=value ...]     (or torchrun, srun, python -m)

Train a student against its objective (or --teacher NAME: a teacher of the recipe's own) with DeepSpeed, from its initial
weights or the newest complete checkpoint; leaves best/ and final/.
"""

import logging

from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def train(arguments: Arguments) -> None:
    from distill.errors import InputError
    from distill.recipe import Student

    run, member = arguments.run, arguments.member
    assert member is not None
    settings = run.train_settings(member)
    if settings is None:
        raise InputError(f"{member} is not trained by this recipe. Give a student, or a teacher with a train block.")
    if member.is_trained():
        log.info("%s is complete", member.final)
        return
    if not member.initial.exists():
        raise InputError(f"{member} has no {member.initial}; run jobs.shrink (or jobs.teacher) first.")

    from distill import distributed
    from distill.claim import Claim
    from distill.data import ONLY_GOLD, encoder_of, load_training_data
    from distill.pretrained import dtype_of, load_pair
    from distill.scoring import scored_student
    from distill.trainer import Trainer

    world = distributed.start()
    claim = Claim(member.claim) if world.is_main else None
    teacher_settings = run.teacher_settings(member)
    model, tokenizer = load_pair(member.initial, teacher_settings.languages, dtype_of(settings.precision))
    evaluate = run.evaluate_settings(member)
    chosen = run.settings(member)
    train_on = chosen.train_on if isinstance(chosen, Student) else ONLY_GOLD
    encoder = encoder_of(run, teacher_settings, tokenizer, model.config.to_dict())
    # Of the exported tokenizer: `tokenizer(text, truncation=True)` cuts documents where this run does.
    tokenizer.model_max_length = encoder.max_source_tokens
    with world.main_first():  # which makes what files of token ids are missing; the others read them
        data = load_training_data(run, encoder, evaluate, train_on)
    student, teacher = scored_student(run, member, model, tokenizer, data.train, world)
    trainer = Trainer(
        member,
        student,
        tokenizer,
        data,
        settings,
        evaluate,
        run.seed(member),
        world,
        teacher,
        arguments.stop,
        claim,
        run.recipe.wandb,
    )
    log.info(
        "%s: %d examples, %d steps on %d process(es), %s; cut at their limits: %s",
        member,
        len(data.train),
        trainer.steps,
        world.size,
        world.device.type,
        data.train.truncated,
    )
    trainer.run()


if __name__ == "__main__":
    main(train, "train", works_on="member", stops="between batches")
