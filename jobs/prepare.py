"""python -m jobs.prepare RECIPE [key=value ...]

The corpus, once: train, validation and test as parquet, and a manifest of what was read, kept and dropped; and other
documents that are labelled.
"""

import logging
from typing import TYPE_CHECKING, Any

from distill.errors import InputError
from distill.recipe import Teacher
from distill.run import Member, Run
from jobs.start import Arguments, main

if TYPE_CHECKING:
    from distill.tokens import Encoder

log = logging.getLogger(__name__)


def prepare(arguments: Arguments) -> None:
    run = arguments.run
    if run.is_prepared():
        log.info("%s is complete", run.corpus)
        return

    from distill.corpus_warnings import corpus_warnings, record_cuts, write_warnings
    from distill.data import tokenize_corpus

    encoders = _check_models(run)
    _prepare_documents(run)
    if not run.corpus.exists():
        _prepare_corpus(run)
    for member, teacher, encoder in encoders:
        record_cuts(member, tokenize_corpus(run, encoder, teacher))
    for sentence in corpus_warnings(run, least_share=0.0):
        log.warning("%s", sentence)
    write_warnings(run)


def _prepare_documents(run: Run) -> None:
    from distill.corpus import prepare_documents

    corpus, seed = run.recipe.corpus, run.recipe.seed
    for labels in run.label_sets():
        extra = labels.settings.documents and labels.settings.is_made_here
        if extra and not labels.documents.exists():
            _log_counts(str(labels), prepare_documents(corpus, labels.settings, labels.name, seed, labels.documents))


def _prepare_corpus(run: Run) -> None:
    from distill.corpus import prepare_corpus
    from distill.files import read_json, write_json
    from distill.run import SPLITS
    from distill.shared import check_same_corpus

    def refuse_another(manifest: dict[str, Any]) -> None:
        check_same_corpus(run, manifest["sha256"])
        before = read_json(run.corpus_record)["sha256"] if run.corpus_record.exists() else manifest["sha256"]
        if before != manifest["sha256"]:
            raise InputError(
                f"{run.corpus}: the corpus is another one (hash {manifest['sha256'][:12]}) than that from which {run.folder} was "
                f"begun ({before[:12]}). Expected the same examples; bring them back, give the recipe another name (name=...), "
                f"or delete {run.folder}."
            )
        write_json(
            run.corpus_record, {"sha256": manifest["sha256"]}
        )  # before the corpus: never the one without the other

    manifest = prepare_corpus(run.recipe.corpus, run.recipe.seed, run.corpus, refuse_another)
    for split in SPLITS:
        _log_counts(split, manifest["splits"][split])


def _log_counts(what: str, counts: dict[str, Any]) -> None:
    log.info(
        "%s: %d examples (%d dropped), words %s -> %s",
        what,
        counts["examples"],
        sum(counts["dropped"].values()),
        counts["document_words"]["mean"],
        counts["summary_words"]["mean"],
    )
    for file, encoding in counts["encodings"].items():
        log.info("%s is read as %s, as its byte order mark says", file, encoding)


def _check_models(run: Run) -> "list[tuple[Member, str, Encoder]]":
    """Refuse here, before any work, what the launcher could not see without torch and the hub.

    Return how the given models read texts, with the name of the teacher whose prefix and languages they have.
    """
    from distill.families import shape_of
    from distill.preflight import base_shape, check_student, check_teacher, teacher_shape
    from distill.pretrained import check_same_tokenizer

    recipe, encoders = run.recipe, []
    for name, teacher in recipe.teachers.items():
        tokenizer, shape = None, teacher_shape(recipe, name)
        model = run.weights(run.member("teachers", name)) if teacher.run else teacher.model
        if model is not None:
            config, tokenizer, encoder = _reading(run, teacher, model)
            shape = shape_of(config, f"teachers.{name}.model")
            check_teacher(recipe, name, shape)
            encoders.append((run.member("teachers", name), name, encoder))
        assert shape is not None
        for student_name, student in recipe.students.items():
            if student.teacher == name and student.model is not None:
                config, own, encoder = _reading(run, teacher, student.model)
                base = base_shape(recipe, student_name, shape) or shape_of(config, f"students.{student_name}.model")
                check_student(recipe, student_name, shape, base)
                encoders.append((run.member("students", student_name), name, encoder))
                if student.objective.needs_teacher and tokenizer is not None:
                    check_same_tokenizer(own, tokenizer, student_name, name)
    return encoders


def _reading(run: Run, teacher: Teacher, model: str) -> "tuple[dict[str, Any], Any, Encoder]":
    """(config, tokenizer, encoder) of a model; InputError where they do not go together."""
    from distill.data import encoder_of
    from distill.folder import check_special_tokens, check_vocabulary
    from distill.pretrained import load_config, load_model, load_tokenizer

    config, tokenizer = load_config(model), load_tokenizer(model, teacher.languages)
    check_vocabulary(tokenizer, config["vocab_size"], model)
    check_special_tokens(tokenizer, config, model)
    load_model(model, "auto")  # mapped, not copied: its weights are there, and those of its config
    return config, tokenizer, encoder_of(run, teacher, tokenizer, config)


if __name__ == "__main__":
    main(prepare, "prepare")
