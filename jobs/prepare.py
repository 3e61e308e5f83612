"""python -m jobs.prepare RECIPE [key=value ...]

The corpus, once: train, validation and test as parquet, and a manifest of what was read, kept and dropped; and other
documents that are labelled.
"""

import logging

from distill.recipe import Recipe
from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def prepare(arguments: Arguments) -> None:
    from distill.corpus import prepare_corpus, prepare_documents
    from distill.run import SPLITS

    run = arguments.run
    if run.is_prepared():
        log.info("%s is complete", run.corpus)
        return
    _check_models(run.recipe)
    for labels in run.label_sets():
        if labels.settings.documents and not labels.documents.exists():
            counts = prepare_documents(
                run.recipe.corpus, labels.settings, labels.name, run.recipe.seed, labels.documents
            )
            log.info("%s: %d documents of %s words", labels, counts["examples"], counts["document_words"]["mean"])
    if run.corpus.exists():
        return
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


def _check_models(recipe: Recipe) -> None:
    """Refuse here, before any work, what the launcher could not see without torch and the hub."""
    from distill.families import shape_of
    from distill.preflight import base_shape, check_student, check_teacher, teacher_shape
    from distill.pretrained import check_same_tokenizer, load_config, load_tokenizer

    for name, teacher in recipe.teachers.items():
        shape = teacher_shape(recipe, name)
        if shape is None:
            shape = shape_of(load_config(str(teacher.model)), f"teachers.{name}.model")
            check_teacher(recipe, name, shape)
        for student_name, student in recipe.students.items():
            if student.teacher == name and student.model is not None:
                base = base_shape(recipe, student_name, shape)
                base = base or shape_of(load_config(student.model), f"students.{student_name}.model")
                check_student(recipe, student_name, shape, base)
                if student.objective.needs_teacher and teacher.model is not None:
                    tokenizers = load_tokenizer(student.model), load_tokenizer(teacher.model)
                    check_same_tokenizer(*tokenizers, student_name, name)


if __name__ == "__main__":
    main(prepare, "prepare")
