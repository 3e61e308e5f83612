"""python -m jobs.prepare RECIPE [key=value ...]

The corpus, once: train, validation and test as parquet, and a manifest of what was read, kept and dropped.
"""

import logging

from distill.recipe import Recipe
from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def prepare(arguments: Arguments) -> None:
    from distill.corpus import prepare_corpus
    from distill.run import SPLITS

    run = arguments.run
    if run.corpus.exists():
        log.info("%s is complete", run.corpus)
        return
    _check_hub_teachers(run.recipe)
    manifest = prepare_corpus(run.recipe.corpus, run.recipe.seed, run.corpus)
    for split in SPLITS:
        counts = manifest["splits"][split]
        log.info(
            "%s: %d examples (%d dropped, %d duplicate documents), words %s -> %s",
            split,
            counts["examples"],
            sum(counts["dropped"].values()),
            counts["duplicate_documents"],
            counts["document_words"]["mean"],
            counts["summary_words"]["mean"],
        )


def _check_hub_teachers(recipe: Recipe) -> None:
    """Refuse here, before any work, what the launcher could not see without torch and the hub."""
    from distill.families import shape_of
    from distill.preflight import check_teacher, teacher_shape

    for name, teacher in recipe.teachers.items():
        if teacher.model is not None and teacher_shape(recipe, name) is None:
            from distill.pretrained import load_config

            check_teacher(recipe, name, shape_of(load_config(teacher.model), f"teachers.{name}.model"))


if __name__ == "__main__":
    main(prepare, "prepare")
