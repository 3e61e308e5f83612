"""The prepared corpus as a model reads it: tokenised splits, cut at the model's limits."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from distill.batching import Tokens, TrainingData, tokenize
from distill.corpus import DOCUMENTS, read_labels, read_split
from distill.errors import InputError
from distill.families import shape_of
from distill.files import read_json, sha256_file
from distill.preflight import source_limit
from distill.reading import Row
from distill.recipe import GOLD, sources
from distill.run import LabelSet, Run
from distill.sections import Evaluate

ONLY_GOLD = {GOLD: 1.0}


def load_training_data(
    run: Run, tokenizer: Any, model: PreTrainedModel, evaluate: Evaluate, train_on: Mapping[str, float] = ONLY_GOLD
) -> TrainingData:
    """What `train_on` says, and the fixed seeded sample of the validation split (gold) that is scored during training."""
    validation = read_split(run.split("validation"))
    chosen = random.Random(run.recipe.seed).sample(range(len(validation)), min(evaluate.examples, len(validation)))
    validation = [validation[i] for i in sorted(chosen)]
    rows = training_rows(run, train_on)
    return TrainingData(
        train=tokenize(tokenizer, rows, *limits_of(run, model)),
        train_ids=[row["id"] for row in rows],
        validation=tokenize(tokenizer, validation, *limits_of(run, model)),
        validation_references=[row["summary"] for row in validation],
        max_target_tokens=run.recipe.corpus.max_target_tokens,
    )


def load_training_tokens(run: Run, tokenizer: Any, model: PreTrainedModel) -> Tokens:
    """The training split as this tokenizer and the limits of this model cut it."""
    return tokenize(tokenizer, read_split(run.split("train")), *limits_of(run, model))


def training_rows(run: Run, train_on: Mapping[str, float]) -> list[Row]:
    """The examples of an epoch: gold first where it is read, then each label set, its ids marked with its name.

    InputError where labels are not merged, or none of them was kept.
    """
    rows: list[Row] = []
    for source, times in train_on.items():
        rows += repeated(_rows_of(run, source), times, run.recipe.seed)
    if not rows:
        raise InputError(f"train_on: {sources(train_on)} is no example at all. Expected some; raise the weights.")
    return rows


def repeated(rows: Sequence[Row], times: float, seed: int) -> list[Row]:
    """All rows as often as `times` says; of its fraction a seeded sample, the same in every epoch, in their order."""
    whole = int(times)
    part = random.Random(seed).sample(range(len(rows)), round((times - whole) * len(rows)))
    return [*rows] * whole + [rows[i] for i in sorted(part)]


def _rows_of(run: Run, source: str) -> list[Row]:
    if source == GOLD:
        return read_split(run.split("train"))
    labels = run.label_set(source)
    if not labels.is_merged():
        raise InputError(
            f"{labels} are not merged by the rules of the recipe ({labels.manifest}). Run jobs.merge --labels {source}."
        )
    documents, manifest = labelled_documents(run, labels), read_json(labels.manifest)
    for file, made in ((documents, manifest["contents"]["documents"]), (labels.table, manifest["sha256"])):
        if not file.exists() or sha256_file(file) != made:
            raise InputError(
                f"{labels} cannot be read: {file} is not the one of the merge ({labels.manifest}). Expected the documents "
                f"and the table of that time; delete {labels.folder} and label again, or bring the file back."
            )
    rows = read_labels(documents, labels.table)
    if not rows:
        raise InputError(f"{labels}: every label was dropped ({labels.manifest} counts why). Loosen keep_if.")
    return [row | {"id": f"{source}/{row['id']}"} for row in rows]


def labelled_documents(run: Run, labels: LabelSet) -> Path:
    """The table of the documents of a label set."""
    path = labels.documents / DOCUMENTS if labels.settings.documents else run.split("train")
    if not path.exists():
        raise InputError(f"{labels} have no documents ({path}); run jobs.prepare first.")
    return path


def limits_of(run: Run, model: PreTrainedModel) -> tuple[int, int]:
    """(longest source, longest target) in tokens."""
    corpus = run.recipe.corpus
    shape = shape_of(model.config.to_dict(), "the model")
    return source_limit(shape, corpus.max_source_tokens, "the model"), corpus.max_target_tokens
