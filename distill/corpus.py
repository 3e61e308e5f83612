"""Any input -> train, validation and test tables of {id, document, summary}, and a manifest of what was seen."""

import functools
import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distill.corpus_settings import Corpus
from distill.duplicates import HASHES, Sketches, alike_between, alike_within, sketch
from distill.errors import InputError
from distill.files import atomic_folder, write_json
from distill.formats import other_encoding
from distill.reading import Example, Row, Source, documents_source, sources
from distill.recipe import Labels
from distill.run import SPLITS, Split
from distill.splitting import choose_splits

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("document", pa.string()),
        ("summary", pa.string()),
        ("references", pa.list_(pa.string())),  # where there are several; `summary` is the first
    ]
)
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
ROWS_PER_WRITE = 1024  # held at a time,
CHARACTERS_PER_WRITE = 2**24  # or so many
MOST_DROPPED = 0.5


def prepare_corpus(
    corpus: Corpus, seed: int, folder: Path, check: Callable[[dict[str, Any]], None] = lambda manifest: None
) -> dict[str, Any]:
    """Write `folder`/{train,validation,test}.parquet and manifest.json, all or nothing; return the manifest.

    `check` may refuse what was prepared by an exception; then nothing is written.

    Rows with an empty document or summary are dropped and counted; more than half of a split is an InputError, as
    is everything else that is not a table of texts. Streams: what is kept of a row is its sketch and its counts.
    """
    given, seen = sources(corpus), dict[Split, SplitCounts]()
    parts = _parts_of_train(given["train"], corpus, seed)
    manifest: dict[str, Any] = {"source": corpus.model_dump(mode="json"), "splits": {}}
    with atomic_folder(folder) as partial:
        for split in SPLITS:
            source = given.get(split, given["train"])
            seen[split] = counts = SplitCounts(f"the {split} split", source.name)
            read = functools.partial(_clean, source, counts)
            if parts is not None and (split == "train" or split not in given):
                read = functools.partial(_part, source, counts, parts, split)
            kept = _sampled(read, corpus.max_examples.get(split), seed)
            _write_parquet(partial / f"{split}.parquet", kept, counts)
            counts.check()
            manifest["splits"][split] = counts.summary() | {"encodings": _other_encodings(source)}
        for split in SPLITS[1:]:
            alike = alike_between(seen[split].sketches(), seen["train"].sketches())
            manifest["splits"][split]["near_duplicates_in_train"] = alike
        fingerprints = "".join(manifest["splits"][split]["sha256"] for split in SPLITS)
        manifest["sha256"] = hashlib.sha256(fingerprints.encode()).hexdigest()
        check(manifest)
        write_json(partial / "manifest.json", manifest)
    return manifest


def prepare_documents(corpus: Corpus, labels: Labels, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Write `folder`/documents.parquet of other documents that are labelled, and manifest.json; return the manifest.

    Summaries are kept where the file has them, to compare the labels with; students never read them. InputError where
    a rule of `keep_if` or `best_of` needs summaries that are not there.
    """
    source = documents_source(corpus, labels, name)
    assert source is not None
    counts = SplitCounts(f"labels.{name}.documents", source.name)
    with atomic_folder(folder) as partial:
        kept = _sampled(functools.partial(_clean, source, counts), labels.max_documents, seed)
        _write_parquet(partial / DOCUMENTS, _with_gold(kept, labels, name, source), counts)
        counts.check()
        manifest = {"source": labels.documents, **counts.summary(), "encodings": _other_encodings(source)}
        write_json(partial / "manifest.json", manifest)
    return manifest


def kept_labels(table: Path) -> list[int]:
    """The numbers of the documents whose labels students may read."""
    rows = pq.read_table(table, columns=["number", "dropped"]).to_pylist()
    assert [row["number"] for row in rows] == list(range(len(rows))), f"{table} is not in its documents' order"
    return [row["number"] for row in rows if not row["dropped"]]


def _with_gold(examples: Iterator[Example], labels: Labels, name: str, source: Source) -> Iterator[Example]:
    """The examples; InputError at the first without the summary that a rule compares labels with."""
    best_by_rouge = labels.best_of is not None and labels.best_of.by != "log_probability"
    for example in examples:
        if not example.references and (labels.keep_if.needs_gold or best_by_rouge):
            key = "keep_if" if labels.keep_if.needs_gold else "best_of"
            raise InputError(
                f"labels.{name}.{key}: compares labels with gold summaries, but {example.id} of {source.name} has none. "
                "Expected a summary for every document; remove the rules that need one."
            )
        yield example


def read_split(path: Path) -> list[Row]:
    """The rows of a prepared table, in corpus order: id, document, and summary, which is the first of several."""
    rows: list[Row] = pq.read_table(path, columns=["id", "document", "summary"]).to_pylist()
    return rows


def read_ids(path: Path) -> list[str]:
    ids: list[str] = pq.read_table(path, columns=["id"])["id"].to_pylist()
    return ids


def read_references(path: Path) -> list[list[str]]:
    """All summaries of each document of a prepared table, in corpus order."""
    rows = pq.read_table(path, columns=["summary", "references"]).to_pylist()
    return [row["references"] or [row["summary"]] for row in rows]


class SplitCounts:
    """What prepare saw in one split: some 120 bytes of each example."""

    def __init__(self, what: str, where: str) -> None:
        self.what, self.where = what, where
        self.read, self.kept, self.references = 0, 0, 0
        self.dropped: Counter[str] = Counter()
        self._ids, self._documents = array("q"), array("q")
        self._document_words, self._summary_words = array("I"), array("I")
        self._sketches, self._content = bytearray(), hashlib.sha256()

    def add(self, example: Example) -> None:
        self.kept += 1
        self.references += len(example.references)
        self._ids.append(_short_hash(example.id))
        self._documents.append(_short_hash(example.document))
        self._document_words.append(len(example.document.split()))
        self._summary_words.extend(len(text.split()) for text in example.references)
        self._sketches += sketch(example.document).tobytes()
        self._content.update(json.dumps(example).encode())

    def sketches(self) -> Sketches:
        return np.frombuffer(self._sketches, dtype=np.uint32).reshape(-1, HASHES)

    def summary(self) -> dict[str, Any]:
        return {
            "examples": self.kept,
            "read": self.read,
            "dropped": dict(self.dropped),
            "references": self.references,
            "duplicate_ids": self.kept - len(np.unique(self._ids)),
            "duplicate_documents": self.kept - len(np.unique(self._documents)),
            "near_duplicates": alike_within(self.sketches()),
            "document_words": quantiles(self._document_words),
            "summary_words": quantiles(self._summary_words),
            "sha256": self._content.hexdigest(),
        }

    def check(self) -> None:
        """InputError where there is nothing, where most was dropped, or where all documents are the same."""
        dropped = sum(self.dropped.values())
        if self.read == 0:
            raise InputError(f"{self.what} ({self.where}) is empty; expected at least one example.")
        if dropped > MOST_DROPPED * self.read:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items())
            raise InputError(
                f"{dropped} of {self.read} rows of {self.what} ({self.where}) had to be dropped ({reasons}); "
                "expected at most half. Are corpus.document and corpus.summary the right fields?"
            )
        if self.kept > 1 and len(np.unique(self._documents)) == 1:
            raise InputError(
                f"all {self.kept} documents of {self.what} ({self.where}) are the same text. Expected different ones. "
                "Is corpus.document the right field?"
            )


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def quantiles(lengths: Sequence[float]) -> dict[str, float]:
    """Mean, minimum, maximum and the 5, 25, 50, 75, 95, 99 % quantiles; all 0 where there is nothing."""
    ordered = np.sort(np.asarray(lengths if len(lengths) else [0]))
    named = {f"p{q}": float(ordered[round(q / 100 * (len(ordered) - 1))]) for q in (5, 25, 50, 75, 95, 99)}
    return {"mean": round(float(ordered.mean()), 2), "min": ordered[0].item(), **named, "max": ordered[-1].item()}


def _parts_of_train(source: Source, corpus: Corpus, seed: int) -> npt.NDArray[np.str_] | None:
    """Return the split of every training example that is kept; None if `corpus.split` is not given. Read them all."""
    if not corpus.taken_from_train:
        return None
    counts, sketches = SplitCounts("the training files", source.name), bytearray()
    for example in _clean(source, counts):
        sketches += sketch(example.document).tobytes()
    counts.check()
    rows = np.frombuffer(sketches, dtype=np.uint32).reshape(-1, HASHES)
    return choose_splits(rows, corpus.taken_from_train, seed)


def _part(source: Source, counts: SplitCounts, parts: npt.NDArray[np.str_], split: Split) -> Iterator[Example]:
    """Return the examples of one split of the training files. Rows that are dropped count as those of train."""
    for number, example in enumerate(_clean(source, counts)):
        if parts[number] == split:
            yield example
    others = int((parts != split).sum())
    counts.read -= others
    if split != "train":
        counts.read -= counts.dropped.total()
        counts.dropped.clear()


def _clean(source: Source, counts: SplitCounts) -> Iterator[Example]:
    """The examples that have a document and, where it is needed, a summary; the others are counted."""
    counts.read, counts.dropped = 0, Counter()
    for example in source.examples():
        counts.read += 1
        if example is None:
            counts.dropped["no text"] += 1
        elif not example.document.strip():
            counts.dropped["empty document"] += 1
        elif source.needs_summary and not example.references:
            counts.dropped["empty summary"] += 1
        else:
            yield example


def _sampled(read: Callable[[], Iterator[Example]], most: int | None, seed: int) -> Iterator[Example]:
    """A seeded sample of `most` examples in their order, or all of them. Reads twice rather than hold them all."""
    if most is None:
        return read()
    count = sum(1 for _ in read())
    chosen = set(random.Random(seed).sample(range(count), min(most, count)))
    return (example for number, example in enumerate(read()) if number in chosen)


def _other_encodings(source: Source) -> dict[str, str]:
    """Return the encodings of the files of a source that are not in UTF-8."""
    found = {str(path): other_encoding(path) for path in source.files}
    return {path: encoding for path, encoding in found.items() if encoding}


def _write_parquet(path: Path, examples: Iterator[Example], counts: SplitCounts) -> None:
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for batch in _batches(examples):
            for example in batch:
                counts.add(example)
            writer.write_table(pa.Table.from_pylist([_table_row(example) for example in batch], SCHEMA))


def _batches(examples: Iterator[Example]) -> Iterator[list[Example]]:
    """At most ROWS_PER_WRITE examples at a time, and fewer long ones; one empty batch where there are none."""
    batch, characters = list[Example](), 0
    for example in examples:
        batch.append(example)
        characters += len(example.document)
        if len(batch) == ROWS_PER_WRITE or characters > CHARACTERS_PER_WRITE:
            yield batch
            batch, characters = [], 0
    yield batch


def _table_row(example: Example) -> dict[str, Any]:
    several = list(example.references) if len(example.references) > 1 else None
    summary = example.references[0] if example.references else ""
    return {"id": example.id, "document": example.document, "summary": summary, "references": several}
