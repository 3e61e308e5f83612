"""python -m jobs.shrink RECIPE --student NAME [key=value ...]

The student: its teacher (or the model that the recipe gives it) with fewer layers.
Written to students/NAME/initial in Hugging Face format.
"""

import logging

from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def shrink_teacher(arguments: Arguments) -> None:
    from distill.errors import InputError
    from distill.recipe import Student

    run, member = arguments.run, arguments.member
    assert member is not None
    settings = run.settings(member)
    if not isinstance(settings, Student):
        raise InputError(f"{member} is no student; give --student NAME.")
    if member.initial.exists():
        log.info("%s is complete", member.initial)
        return

    from distill.distillation import student_layers
    from distill.export import save_model
    from distill.families import shape_of
    from distill.files import atomic_folder
    from distill.preflight import source_limit
    from distill.pretrained import load_pair
    from distill.student import shrink

    teacher = run.member("teachers", settings.teacher)
    teacher_settings = run.teacher_settings(member)
    weights = settings.model or run.weights(teacher)
    own_decoding = settings.model or run.own_decoding(teacher)
    base, tokenizer = load_pair(weights, teacher_settings.languages, own_decoding=own_decoding)
    shape = shape_of(base.config.to_dict(), weights)
    tokenizer.model_max_length = source_limit(shape, run.recipe.corpus.max_source_tokens, weights)
    encoder_layers, decoder_layers = student_layers(run.recipe, member.name, shape)
    student = shrink(base, encoder_layers, decoder_layers, run.origin(settings))
    student.config.prefix = teacher_settings.prefix
    with atomic_folder(member.initial) as folder:
        save_model(student, tokenizer, folder)
    log.info(
        "%s: encoder layers %s, decoder layers %s, %.1f of %.1f M parameters",
        member,
        encoder_layers,
        decoder_layers,
        student.num_parameters() / 1e6,
        base.num_parameters() / 1e6,
    )


if __name__ == "__main__":
    main(shrink_teacher, "shrink", works_on="member")
