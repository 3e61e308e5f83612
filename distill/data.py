"""The prepared corpus as a model reads it: tokenised splits, cut at the model's limits."""

import dataclasses
import functools
import operator
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.batching import TrainingData
from distill.corpus import DOCUMENTS, kept_labels, read_ids, read_references, read_split
from distill.errors import InputError
from distill.families import shape_of
from distill.files import read_json, sha256_file
from distill.preflight import source_limit
from distill.recipe import GOLD, Teacher, sources
from distill.run import LabelSet, Run
from distill.sections import Evaluate
from distill.tokens import Encoder, TokenRows, Tokens, table_tokens, tokenize

ONLY_GOLD = {GOLD: 1.0}


def load_training_data(
    run: Run, encoder: Encoder, evaluate: Evaluate, train_on: Mapping[str, float] = ONLY_GOLD
) -> TrainingData:
    """What `train_on` says, and the fixed seeded sample of the validation split (gold) that is scored during training."""
    table = run.split("validation")
    rows, references = read_split(table), read_references(table)
    chosen = fixed_sample(len(rows), evaluate.examples, run.recipe.seed)
    train, train_ids = training_tokens(run, encoder, train_on)
    return TrainingData(
        train=train,
        train_ids=train_ids,
        validation=tokenize(encoder, [rows[i] for i in chosen]),
        validation_references=[references[i] for i in chosen],
        max_target_tokens=run.recipe.corpus.max_target_tokens,
    )


def fixed_sample(count: int, most: int, seed: int) -> list[int]:
    """At most so many numbers below `count`, ascending."""
    return sorted(random.Random(seed).sample(range(count), min(most, count)))


def load_gold_tokens(run: Run, encoder: Encoder) -> Tokens:
    """The training split as an encoder reads it."""
    return training_tokens(run, encoder, ONLY_GOLD)[0]


def training_tokens(run: Run, encoder: Encoder, train_on: Mapping[str, float]) -> tuple[Tokens, list[str]]:
    """The examples of an epoch and their ids: gold first where it is read, then each label set, its ids marked with its
    name. What is read twice is there twice, but in one place of the memory.

    InputError where labels are not merged, or none of them was kept.
    """
    parts = [_repeated(_read(run, encoder, source), times, run.recipe.seed) for source, times in train_on.items()]
    ids = [name for part in parts for name in part.ids]
    if not ids:
        raise InputError(f"train_on: {sources(train_on)} is no example at all. Expected some; raise the weights.")
    source, target = (
        functools.reduce(operator.add, rows) for rows in zip(*((p.source, p.target) for p in parts), strict=True)
    )
    cut = {side: int(sum(part.cut[side].sum() for part in parts)) for side in ("documents", "summaries")}
    return Tokens(source, target, cut), ids


def tokenize_corpus(run: Run, encoder: Encoder, teacher: str) -> list[dict[str, Any]]:
    """Make the token files of the documents and gold summaries that `teacher` and its students read whole; those of labels
    are made by the first training that reads them.

    Return how many texts of each kind are cut at which limit.
    """
    students = {name for name, student in run.recipe.students.items() if student.teacher == teacher}
    read = {source for name in students for source in run.recipe.students[name].train_on}
    labels = [one for one in run.label_sets() if one.teacher == teacher or one.name in read]
    searched = any(run.evaluate_settings(one).search for one in run.members() if one.name in {teacher, *students})
    documents = {run.split("train"): "train documents", run.split("test"): "test documents"}
    if searched:
        documents[run.split("validation")] = "validation documents"
    for one in labels:
        documents.setdefault(labelled_documents(run, one), f"documents of {one}")
    cuts = []
    for table, what in documents.items():
        _, cut = table_tokens(encoder, table, "document", run.tokens)
        cuts.append(_counted(what, "max_source_tokens", encoder.max_source_tokens, cut))
    _, cut = table_tokens(encoder, run.split("train"), "summary", run.tokens)
    cuts.append(_counted("train summaries", "max_target_tokens", encoder.max_target_tokens, cut))
    return cuts


def _counted(what: str, limit: str, tokens: int, cut: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return {"what": what, "limit": limit, "tokens": tokens, "cut": int(cut.sum()), "of": len(cut)}


@dataclass(frozen=True)
class _Part:
    """What one source of `train_on` gives."""

    ids: list[str]
    source: TokenRows
    target: TokenRows
    cut: dict[str, npt.NDArray[np.bool_]]

    def chosen(self, indices: Sequence[int]) -> "_Part":
        cut = {side: marks[np.asarray(indices, dtype=np.int64)] for side, marks in self.cut.items()}
        return _Part([self.ids[i] for i in indices], self.source.chosen(indices), self.target.chosen(indices), cut)


def _repeated(part: _Part, times: float, seed: int) -> _Part:
    count = len(part.ids)
    return part if times == 1 else part.chosen(repeated(range(count), times, seed))


def repeated(rows: Sequence[int], times: float, seed: int) -> list[int]:
    """All rows as often as `times` says; of its fraction a seeded sample, the same in every epoch, in their order."""
    whole = int(times)
    part = random.Random(seed).sample(range(len(rows)), round((times - whole) * len(rows)))
    return [*rows] * whole + [rows[i] for i in sorted(part)]


def _read(run: Run, encoder: Encoder, source: str) -> _Part:
    if source == GOLD:
        table = run.split("train")
        documents, cut_documents = table_tokens(encoder, table, "document", run.tokens)
        summaries, cut_summaries = table_tokens(encoder, table, "summary", run.tokens)
        return _Part(read_ids(table), documents, summaries, {"documents": cut_documents, "summaries": cut_summaries})
    labels = run.label_set(source)
    table = _checked_documents(run, labels)
    documents, cut_documents = table_tokens(encoder, table, "document", run.tokens)
    texts, cut_texts = table_tokens(encoder, labels.table, "label", run.tokens)
    everything = _Part(read_ids(table), documents, texts, {"documents": cut_documents, "summaries": cut_texts})
    kept = kept_labels(labels.table)
    if not kept:
        raise InputError(f"{labels}: every label was dropped ({labels.manifest} counts why). Loosen keep_if.")
    part = everything.chosen(kept)
    return dataclasses.replace(part, ids=[f"{source}/{name}" for name in part.ids])


def _checked_documents(run: Run, labels: LabelSet) -> Path:
    """The table of the documents of labels that are merged and as they were then; InputError where they are not."""
    if not labels.is_merged():
        raise InputError(
            f"{labels} are not merged by the rules of the recipe ({labels.manifest}). Run jobs.merge --labels {labels.name}."
        )
    documents, manifest = labelled_documents(run, labels), read_json(labels.manifest)
    for file, made in ((documents, manifest["contents"]["documents"]), (labels.table, manifest["sha256"])):
        if not file.exists() or sha256_file(file) != made:
            raise InputError(
                f"{labels} cannot be read: {file} is not the one of the merge ({labels.manifest}). Expected the documents "
                f"and the table of that time; delete {labels.folder} and label again, or bring the file back."
            )
    return documents


def labelled_documents(run: Run, labels: LabelSet) -> Path:
    """The table of the documents of a label set."""
    settings = labels.settings
    there = Path(settings.run) / "corpus" / "train.parquet" if settings.run else run.split("train")
    path = labels.documents / DOCUMENTS if settings.documents else there
    if not path.exists():
        raise InputError(f"{labels} have no documents ({path}); run jobs.prepare first.")
    return path


def encoder_of(run: Run, teacher: Teacher, tokenizer: Any, config: Mapping[str, Any]) -> Encoder:
    """Texts as `teacher` and its students read and write them, cut at the recipe's limits and those of a model's config."""
    corpus = run.recipe.corpus
    longest = source_limit(shape_of(config, "the model"), corpus.max_source_tokens, "the model")
    return Encoder(tokenizer, longest, corpus.max_target_tokens, teacher.prefix)
