"""Labels made elsewhere: a file of them, matched to the documents of the training split and counted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.files import sha256_file
from distill.formats import Columns, read_records
from distill.reading import NO_TEXT, Row, labels_file
from distill.recipe import Labels
from distill.run import LabelSet

FIELDS = Columns((), ("id", "document", "label", "summary"))
SHOWN = 5
"""Ids in a message."""


@dataclass
class Matched:
    """The label of each document that has one, and what the file held."""

    texts: dict[int, str] = field(default_factory=dict)
    """By the number of the document in its table."""
    lines: int = 0
    unknown: int = 0
    """Lines whose id, and document, the training split does not have."""
    duplicates: int = 0
    """Lines that repeat what an earlier line said of the same document."""
    empty: int = 0
    """Lines without a text."""
    unknown_examples: list[str] = field(default_factory=list)
    _lines_of: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, text: str, where: str) -> None:
        """Raise InputError if the document has another label already."""
        if number not in self.texts:
            self.texts[number] = text
            self._lines_of[number] = where
        elif self.texts[number] == text:
            self.duplicates += 1
        else:
            raise InputError(
                f"{where}: another label for the document of {self._lines_of[number]}. Expected one label for each document; "
                "remove one of the two lines."
            )

    def counts(self, documents: int) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "labelled": len(self.texts),
            "without_label": documents - len(self.texts),
            "unknown": self.unknown,
            "unknown_examples": self.unknown_examples,
            "duplicates": self.duplicates,
            "empty": self.empty,
        }


def match_labels(labels: LabelSet, documents: Sequence[Row]) -> tuple[dict[int, str], dict[str, Any]]:
    """Return the labels of the file by the number of their document, and counts for the manifest.

    Raise InputError if a line is not {id or document, label or summary}, if two lines disagree about a document, if an id
    belongs to another document than the line says, or if no line belongs to any document.
    """
    path = labels_file(labels.settings, labels.name)
    finder = _Finder(documents)
    matched = Matched()
    for where, record in read_records(path, FIELDS):
        matched.lines += 1
        text = _text_of(record, where)
        numbers = finder.find(record, where)
        if not numbers:
            matched.unknown += 1
            if len(matched.unknown_examples) < SHOWN:
                matched.unknown_examples.append(str(record.get("id") or record.get("document"))[:80])
        elif not text.strip():
            matched.empty += 1
        for number in numbers if text.strip() else ():
            matched.add(number, text.strip(), where)
    if not matched.texts:
        ids = ", ".join(row["id"] for row in documents[:SHOWN])
        raise InputError(
            f"labels.{labels.name}.file: none of the {matched.lines} lines of {path} is a label of a training document "
            f"({matched.empty} are empty; unknown: {', '.join(matched.unknown_examples) or 'none'}). Expected texts, and ids "
            f"such as {ids}, or the documents' own texts."
        )
    return matched.texts, {"path": str(path), "sha256": sha256_file(Path(path)), **matched.counts(len(documents))}


def check_first_label(labels: Labels, name: str) -> None:
    """Read the first line of a file of labels. Raise InputError if it is not {id or document, label or summary}."""
    for where, record in read_records(labels_file(labels, name), FIELDS):
        _Finder([]).find(record, where)
        _text_of(record, where)
        return
    raise InputError(f"labels.{name}.file: {labels.file} is empty; expected at least one label.")


def describe_file(found: Mapping[str, Any]) -> str:
    """Return what a file of labels held, in words. `found`: the counts of `match_labels`."""
    counted = {
        "unknown": "of unknown documents",
        "empty": "empty",
        "duplicates": "said twice",
    }
    told = [f"{found[key]} {words}" for key, words in counted.items() if found[key]]
    if found["unknown_examples"]:
        told[0] += f" ({', '.join(found['unknown_examples'])})"
    lines = f"{found['lines']} lines" + (f", of them {', '.join(told)}" if told else "")
    return f"{lines}; {found['labelled']} documents have a label, {found['without_label']} have none"


class _Finder:
    """Finds documents by id, or by text up to white space."""

    def __init__(self, documents: Sequence[Row]) -> None:
        self._texts = [_squeezed(row["document"]) for row in documents]
        self._by_id = _numbers_by(row["id"] for row in documents)
        self._by_text = _numbers_by(self._texts)

    def find(self, record: Mapping[str, Any], where: str) -> list[int]:
        """Return the numbers of the documents that a line is about; several if they are the same text."""
        name = record.get("id")
        document = record.get("document")
        if name is None and document is None:
            raise InputError(f"{where}: no id and no document. Expected one of them, to know whose label it is.")
        if document is not None and not isinstance(document, str):
            raise InputError(f"{where}: 'document' is {type(document).__name__}, expected a text. Mend the line.")
        found = self._by_id.get(str(name), []) if name is not None else []
        if not found:
            return self._by_text.get(_squeezed(document), []) if document is not None else []
        if document is not None:
            same = [number for number in found if self._texts[number] == _squeezed(document)]
            if not same:
                raise InputError(
                    f"{where}: the id {str(name)!r} is that of another document in the training split. Expected the ids of "
                    "the corpus; remove the ids, so that the documents decide."
                )
            return same
        if len({self._texts[number] for number in found}) > 1:
            raise InputError(
                f"{where}: the id {str(name)!r} is that of {len(found)} different documents. Expected the document too, to "
                "know which one is meant."
            )
        return found


def _numbers_by(keys: Iterator[str] | Sequence[str]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        numbers.setdefault(key, []).append(number)
    return numbers


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _text_of(record: Mapping[str, Any], where: str) -> str:
    """Return the label of a line; empty if it is null."""
    given = [name for name in ("label", "summary") if name in record]
    if not given:
        raise InputError(
            f"{where}: no 'label' and no 'summary'; its fields are {', '.join(map(repr, record)) or '(none)'}."
        )
    text = record[given[0]]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"{where}: {given[0]!r} is {type(text).__name__}, expected a text. Mend the line.")
    found = NO_TEXT.search(text)
    if found:
        raise InputError(
            f"{where}: {found[0]!a} at character {found.start()} of the label. Expected text; mend the line."
        )
    return text
