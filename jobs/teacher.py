"""python -m jobs.teacher RECIPE --teacher NAME [key=value ...]

The initial weights of a teacher that the recipe trains: from a pretrained model, or from scratch with a tokenizer
trained on the corpus. Written to teachers/NAME/initial.
"""

import logging

from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def make_teacher(arguments: Arguments) -> None:
    from distill.errors import InputError
    from distill.recipe import Teacher

    run, member = arguments.run, arguments.member
    assert member is not None
    settings = run.settings(member)
    if not isinstance(settings, Teacher) or settings.train is None:
        raise InputError(f"{member} is not trained by this recipe. Give the name of a teacher with a train block.")
    if member.initial.exists():
        log.info("%s is complete", member.initial)
        return

    import torch

    from distill.corpus import read_split
    from distill.corpus_warnings import record_cuts, write_warnings
    from distill.data import encoder_of, tokenize_corpus
    from distill.export import save_model
    from distill.files import atomic_folder
    from distill.pretrained import build_model, load_pair, train_tokenizer

    if settings.model is not None:
        model, tokenizer = load_pair(settings.model, settings.languages)
    else:
        assert settings.architecture is not None and settings.tokenizer is not None
        rows = read_split(run.split("train"))
        texts = (row[field] for row in rows for field in ("document", "summary"))
        tokenizer = train_tokenizer(settings.tokenizer, settings.architecture.family, texts)
        torch.manual_seed(run.recipe.seed)
        model = build_model(settings.architecture, tokenizer, run.recipe.corpus.max_target_tokens)
    encoder = encoder_of(run, settings, tokenizer, model.config.to_dict())
    record_cuts(member, tokenize_corpus(run, encoder, member.name))
    write_warnings(run)
    tokenizer.model_max_length = encoder.max_source_tokens
    model.config.prefix = settings.prefix
    with atomic_folder(member.initial) as folder:
        save_model(model, tokenizer, folder)
    log.info("%s: %.1f M parameters", member, model.num_parameters() / 1e6)


if __name__ == "__main__":
    main(make_teacher, "teacher", works_on="member")
