"""Any input -> train, validation and test tables of {id, document, summary}, and a manifest of what was seen."""

import hashlib
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.docstrings import read_docstrings
from distill.errors import InputError
from distill.files import atomic_folder, write_json
from distill.reading import BUILT_IN, Row, documents_file, read_rows, split_files
from distill.recipe import Labels
from distill.run import SPLITS
from distill.sections import Corpus

SCHEMA = pa.schema([("id", pa.string()), ("document", pa.string()), ("summary", pa.string())])
LABELS_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),  # of the document in its table
        ("id", pa.string()),
        ("label", pa.string()),
        ("dropped", pa.list_(pa.string())),  # why students must not read it; empty: they may
        ("tokens", pa.int64()),
        ("finished", pa.bool_()),
        *(
            (name, pa.float64())
            for name in (
                "log_probability",
                "rouge1",
                "rouge2",
                "rougeL",
                "length_ratio",
                "repeated_ngrams",
                "copied_share",
            )
        ),
    ]
)
DOCUMENTS = "documents.parquet"
ROWS_PER_WRITE = 4096
MOST_DROPPED = 0.5


def prepare_corpus(corpus: Corpus, seed: int, folder: Path) -> dict[str, Any]:
    """Write `folder`/{train,validation,test}.parquet and manifest.json, all or nothing; return the manifest.

    Rows with an empty document or summary are dropped and counted; more than half of a split is an InputError, as
    is everything else that is not a table of texts.
    """
    files = split_files(corpus)
    built_in = read_docstrings() if not files else {}
    manifest: dict[str, Any] = {"source": corpus.model_dump(mode="json"), "splits": {}}
    with atomic_folder(folder) as partial:
        for split in SPLITS:
            rows = read_rows(files[split], corpus.document, corpus.summary) if files else iter(built_in[split])
            counts = SplitCounts()
            kept = _sampled(_clean(rows, counts), corpus.max_examples.get(split), seed)
            _write_parquet(partial / f"{split}.parquet", kept, counts)
            _check(f"the {split} split", counts, str(files.get(split, BUILT_IN)))
            manifest["splits"][split] = counts.summary()
        fingerprints = "".join(manifest["splits"][split]["sha256"] for split in SPLITS)
        manifest["sha256"] = hashlib.sha256(fingerprints.encode()).hexdigest()
        write_json(partial / "manifest.json", manifest)
    return manifest


def prepare_documents(corpus: Corpus, labels: Labels, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Write `folder`/documents.parquet of other documents that are labelled, and manifest.json; return the manifest.

    Summaries are kept where the file has them, to compare the labels with; students never read them. InputError where
    a rule of `keep_if` or `best_of` needs summaries that are not there.
    """
    path = documents_file(labels, name)
    assert path is not None
    counts = SplitCounts()
    with atomic_folder(folder) as partial:
        rows = _clean(read_rows(path, corpus.document, corpus.summary, needs_summary=False), counts, ("document",))
        kept = _sampled(rows, labels.max_documents, seed)
        _write_parquet(partial / DOCUMENTS, _with_gold(kept, labels, name, path), counts)
        _check(f"labels.{name}.documents", counts, str(path))
        manifest = {"source": labels.documents, **counts.summary()}
        write_json(partial / "manifest.json", manifest)
    return manifest


def read_labels(documents: Path, table: Path) -> list[Row]:
    """The labels that students may read, each as the summary of its document, in the documents' order."""
    rows, labels = read_split(documents), pq.read_table(table, columns=["number", "label", "dropped"]).to_pylist()
    kept = [label for label in labels if not label["dropped"]]
    return [
        {"id": rows[label["number"]]["id"], "document": rows[label["number"]]["document"], "summary": label["label"]}
        for label in kept
    ]


def _with_gold(rows: Iterator[Row], labels: Labels, name: str, path: Path) -> Iterator[Row]:
    """The rows; InputError at the first without the summary that a rule compares labels with."""
    best_by_rouge = labels.best_of is not None and labels.best_of.by != "log_probability"
    for row in rows:
        if not row["summary"].strip() and (labels.keep_if.needs_gold or best_by_rouge):
            key = "keep_if" if labels.keep_if.needs_gold else "best_of"
            raise InputError(
                f"labels.{name}.{key}: compares labels with gold summaries, but {row['id']} of {path} has none. "
                "Expected a summary for every document; remove the rules that need one."
            )
        yield row


def read_split(path: Path) -> list[Row]:
    """The rows of a prepared split, in corpus order."""
    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


@dataclass
class SplitCounts:
    """What prepare saw in one split."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    document_words: list[int] = field(default_factory=list)
    summary_words: list[int] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    documents: Counter[bytes] = field(default_factory=Counter)
    content: Any = field(default_factory=hashlib.sha256)

    def add(self, row: Row) -> None:
        self.kept += 1
        self.ids.add(row["id"])
        self.document_words.append(len(row["document"].split()))
        self.summary_words.append(len(row["summary"].split()))
        self.documents[hashlib.blake2b(row["document"].encode(), digest_size=8).digest()] += 1
        self.content.update(json.dumps([row["id"], row["document"], row["summary"]]).encode())

    def summary(self) -> dict[str, Any]:
        return {
            "examples": self.kept,
            "read": self.read,
            "dropped": dict(self.dropped),
            "duplicate_ids": self.kept - len(self.ids),
            "duplicate_documents": self.kept - len(self.documents),
            "document_words": quantiles(self.document_words),
            "summary_words": quantiles(self.summary_words),
            "sha256": self.content.hexdigest(),
        }


def quantiles(lengths: list[int]) -> dict[str, float]:
    """Mean, minimum, maximum and the 5, 25, 50, 75, 95, 99 % quantiles."""
    ordered = sorted(lengths)
    named = {f"p{q}": float(ordered[round(q / 100 * (len(ordered) - 1))]) for q in (5, 25, 50, 75, 95, 99)}
    return {"mean": round(statistics.fmean(ordered), 2), "min": ordered[0], **named, "max": ordered[-1]}


def _clean(
    rows: Iterator[Row], counts: SplitCounts, fields: tuple[str, ...] = ("document", "summary")
) -> Iterator[Row]:
    for row in rows:
        counts.read += 1
        empty = [name for name in fields if not row[name].strip()]
        if empty:
            counts.dropped[f"empty {empty[0]}"] += 1
        else:
            yield row


def _sampled(rows: Iterator[Row], most: int | None, seed: int) -> Iterator[Row]:
    """A seeded sample of `most` rows in their order, or all of them."""
    if most is None:
        yield from rows
        return
    everything = list(rows)
    chosen = random.Random(seed).sample(range(len(everything)), min(most, len(everything)))
    yield from (everything[i] for i in sorted(chosen))


def _write_parquet(path: Path, rows: Iterator[Row], counts: SplitCounts) -> None:
    with pq.ParquetWriter(path, SCHEMA) as writer:
        batch: list[Row] = []
        for row in rows:
            counts.add(row)
            batch.append(row)
            if len(batch) == ROWS_PER_WRITE:
                writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, SCHEMA))


def _check(what: str, counts: SplitCounts, where: str) -> None:
    dropped = sum(counts.dropped.values())
    if counts.read == 0:
        raise InputError(f"{what} ({where}) is empty; expected at least one example.")
    if dropped > MOST_DROPPED * counts.read:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.dropped.items())
        raise InputError(
            f"{dropped} of {counts.read} rows of {what} ({where}) had to be dropped ({reasons}); "
            "expected at most half. Are corpus.document and corpus.summary the right fields?"
        )
