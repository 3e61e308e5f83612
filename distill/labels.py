"""The labels of a teacher: their shards, their engine, and the table that students read."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from distill.corpus import LABELS_SCHEMA, quantiles, read_references, read_split
from distill.ctranslate import CTranslate2
from distill.engines import parity_of
from distill.files import atomic_file, read_json, sha256_file, write_json
from distill.filters import Measures, broken_rules, measure
from distill.generation import Candidate, Engine, HuggingFace
from distill.imported import match_labels
from distill.reading import Row
from distill.recipe import BestOf
from distill.run import LabelSet, Run
from distill.shards import shards_of
from distill.summaries import SummaryWriter, read_summaries
from distill.task import Task, label_task

NO_LABEL = "no label"
"""Why a document of a file's labels is not read, if the file has none for it."""


def label_writer(
    run: Run, labels: LabelSet, device: torch.device, before_batch: Callable[[], None] = lambda: None
) -> SummaryWriter:
    """Fills the shards of a label set; InputError where its engine has not been compared with Hugging Face."""
    task = label_task(run, labels)
    return SummaryWriter(
        folder=labels.folder,
        contents=task.contents,
        engine=_engine(labels, task, device),
        ids=task.ids,
        source=task.source,
        batch_tokens=labels.settings.batch_tokens,
        before_batch=before_batch,
    )


def _engine(labels: LabelSet, task: Task, device: torch.device) -> Engine:
    settings = labels.settings.engine
    if settings.name == "huggingface":
        return HuggingFace(task.model.to(device), task.tokenizer, task.config, device)
    parity_of(labels, task)
    return CTranslate2(labels.engine / "model", task.tokenizer, task.config, settings.compute, device)


def merge_labels(run: Run, labels: LabelSet) -> dict[str, Any]:
    """Write labels.parquet and, last, manifest.json, which is returned: one row for each document, with its label and
    why students must not read it, if so.

    InputError, by name, where shards are missing, altered or made otherwise than the recipe says now; or what is wrong
    with the file of labels.
    """
    rows, made_of = _of_file(run, labels) if labels.settings.file else _of_teacher(run, labels)
    with atomic_file(labels.table) as partial:
        pq.write_table(pa.Table.from_pylist(rows, LABELS_SCHEMA), partial)
    manifest = {
        "documents": len(rows),
        "kept": sum(not row["dropped"] for row in rows),
        "dropped": dict(Counter(rule for row in rows for rule in row["dropped"])),
        "measures": _distributions(rows),
        "keep_if": labels.settings.keep_if.given,
        "best_of": labels.settings.best_of_block,
        **made_of,
        "sha256": sha256_file(labels.table),
    }
    write_json(labels.manifest, manifest)
    return manifest


def _of_teacher(run: Run, labels: LabelSet) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of the shards that a teacher has filled, and what the manifest tells of them."""
    task, job = label_task(run, labels), f"jobs.label --labels {labels.name}"
    summaries = read_summaries(labels.folder, task.contents, task.ids, task.source, job)
    documents = zip(task.rows(), task.references(), summaries, strict=True)
    rows = [_row(i, *document, labels) for i, document in enumerate(documents)]
    shards = shards_of(labels.folder, task.contents.shards, ".jsonl")
    hashes = {shard.data.name: read_json(shard.manifest)["sha256"] for shard in shards}
    return rows, {"contents": asdict(task.contents), "shards": hashes}


def _of_file(run: Run, labels: LabelSet) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of a file of labels, and what the manifest tells of it."""
    table = run.split("train")
    documents, references = read_split(table), read_references(table)
    texts, found = match_labels(labels, documents)
    rows = [
        _row_of_file(number, row, gold, texts.get(number), labels)
        for number, (row, gold) in enumerate(zip(documents, references, strict=True))
    ]
    return rows, {"contents": {"documents": sha256_file(table)}, "file": found}


def _row_of_file(number: int, row: Row, gold: list[str], text: str | None, labels: LabelSet) -> dict[str, Any]:
    if text is None:
        return {"number": number, "id": row["id"], "label": "", "dropped": [NO_LABEL]}
    measures = measure(text, row["document"], gold)
    dropped = broken_rules(text, measures, labels.settings.keep_if)
    return {"number": number, "id": row["id"], "label": text, "dropped": dropped, **measures}


def _row(number: int, row: Row, gold: list[str], candidates: list[Candidate], labels: LabelSet) -> dict[str, Any]:
    each = [(one, measure(one.text, row["document"], gold)) for one in candidates]
    chosen, measures = best(each, labels.settings.best_of)
    said = {"log_probability": chosen.log_probability, "tokens": chosen.tokens, "finished": chosen.finished}
    dropped = broken_rules(chosen.text, measures | said, labels.settings.keep_if)
    return {"number": number, "id": row["id"], "label": chosen.text, "dropped": dropped, **measures, **said}


def best(candidates: list[tuple[Candidate, Measures]], best_of: BestOf | None) -> tuple[Candidate, Measures]:
    """The first of the beam, or the best by `best_of`; of equals the earlier."""
    if best_of is None:
        return candidates[0]
    if best_of.by == "log_probability":
        return max(candidates, key=lambda pair: pair[0].log_probability)
    return max(candidates, key=lambda pair: pair[1][best_of.by] or 0.0)


def _distributions(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Quantiles of every measure over all documents that have a label, the dropped ones too.

    `unfinished` is None for labels of a file, which does not tell.
    """
    labelled = [row for row in rows if NO_LABEL not in row["dropped"]]
    numbers = [field.name for field in LABELS_SCHEMA if field.type == pa.float64()]
    values = {name: [row[name] for row in labelled if row.get(name) is not None] for name in numbers}
    values["words"] = [len(row["label"].split()) for row in labelled]
    told = [row["finished"] for row in labelled if "finished" in row]
    unfinished = told.count(False) if told else None
    return {name: quantiles(some) for name, some in values.items() if some} | {"unfinished": unfinished}
