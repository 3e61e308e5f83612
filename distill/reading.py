"""What a recipe gives as its corpus -> examples, checked one by one. No torch: also used by a dry run."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from distill.docstrings import read_docstrings
from distill.errors import InputError
from distill.formats import LINE_FIELDS, LINES, SUFFIXES, Record, read_records
from distill.hub import Hub, hub_dataset
from distill.recipe import Labels
from distill.run import SPLITS, Split
from distill.sections import Corpus

BUILT_IN = "docstrings"
FIELDS = ("document", "summary")
ALIASES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}

Row = dict[str, str]
"""Of a prepared table: id, document, summary."""


class Example(NamedTuple):
    """A document and its summaries, best known first; none where they are not needed."""

    id: str
    document: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where the examples of a split come from."""

    name: str
    """For messages."""
    records: Callable[[], Iterator[Record]]
    document: str
    summary: str
    file: Path | None = None
    drops_refused: bool = False
    """Drop records that are refused otherwise. True for the built-in corpus: its users did not write it."""

    def examples(self, needs_summary: bool = True) -> Iterator[Example | None]:
        """Yield the example of each record, or None for a record that is dropped.

        Raises InputError, with the place and what is wrong there, if a record is refused.
        """
        for number, (where, record) in enumerate(self.records(), start=1):
            try:
                example = _checked(self._example(record, where, number, needs_summary), where)
            except InputError:
                if not self.drops_refused:
                    raise
                example = None
            yield example

    def _example(self, record: Mapping[str, Any], where: str, number: int, needs_summary: bool) -> Example:
        document = field_of(record, self.document, where)
        summary = field_of(record, self.summary, where, needs_summary)
        name = record.get("id")
        return Example(
            id=str(number if name is None else name),
            document=_text(document, self.document, where),
            references=_references(summary, self.summary, where),
        )


def sources(corpus: Corpus) -> dict[Split, Source]:
    """The source of every split; InputError where one is missing. Reads nothing yet."""
    if corpus.train == BUILT_IN:
        return _built_in()
    hub = hub_dataset(corpus)
    if hub:
        return {split: _of_hub(hub, split, corpus) for split in SPLITS}
    return {split: _of_file(path, corpus) for split, path in _split_files(corpus).items()}


def documents_source(corpus: Corpus, labels: Labels, name: str) -> Source | None:
    """The documents that are labelled in place of the training split; InputError where the file is missing."""
    if labels.documents is None:
        return None
    return _of_file(_data_file(f"labels.{name}.documents", labels.documents), corpus)


def _built_in() -> dict[Split, Source]:
    return {
        split: Source(BUILT_IN, functools.partial(_docstrings, split), *FIELDS, drops_refused=True) for split in SPLITS
    }


def _docstrings(split: Split) -> Iterator[Record]:
    return ((f"{BUILT_IN} {row['id']}", row) for row in _all_docstrings()[split])


@functools.cache
def _all_docstrings() -> dict[str, list[Row]]:
    return read_docstrings()


def _of_hub(hub: Hub, split: Split, corpus: Corpus) -> Source:
    document, summary = hub.fields(corpus)
    return Source(f"{hub}, {split}", lambda: hub.records(split, ALIASES[split]), document, summary)


def _of_file(path: Path, corpus: Corpus) -> Source:
    document, summary = LINE_FIELDS if path.name.endswith(LINES) else FIELDS
    document, summary = corpus.document or document, corpus.summary or summary
    return Source(str(path), lambda: read_records(path, ("id", document, summary)), document, summary, path)


def _split_files(corpus: Corpus) -> dict[Split, Path]:
    folder = Path(corpus.train)
    given: dict[Split, str | None] = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    if folder.is_dir():
        given = {"train": None, "validation": corpus.validation, "test": corpus.test}
    return {split: _split_file(split, path, folder) for split, path in given.items()}


def _split_file(split: Split, given: str | None, folder: Path) -> Path:
    if given is not None:
        return _data_file(f"corpus.{split}", given)
    found = [folder / f"{name}{suffix}" for name in ALIASES[split] for suffix in SUFFIXES]
    existing = [path for path in found if path.is_file()]
    if not existing:
        place = f"{folder} has no {split} split" if folder.is_dir() else f"corpus.{split} is missing"
        raise InputError(
            f"{place}; expected {split}.jsonl (also .csv, .tsv, .parquet, .source with .target; .gz, .xz) there, or its "
            f"path in corpus.{split}."
        )
    if len(existing) > 1:
        names = ", ".join(path.name for path in existing)
        raise InputError(f"{folder} has several {split} splits: {names}. Remove all but one, or name it.")
    return existing[0]


def _data_file(key: str, given: str) -> Path:
    path = Path(given)
    if path.is_dir():
        raise InputError(f"{key}: {given!r} is a folder, expected a file. Only corpus.train takes a folder.")
    if not path.is_file():
        also = f", a folder of such files, a dataset's name OWNER/NAME or {BUILT_IN!r}" if key == "corpus.train" else ""
        raise InputError(
            f"{key}: {given!r} given, but there is no such file or folder. "
            f"Expected a file that ends in {', '.join(SUFFIXES)}{also}; correct the path."
        )
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{key}: {given!r} given, expected a file that ends in {', '.join(SUFFIXES)}.")
    return path


# ------------------------------------------------------------------------------------------------ one record


def field_of(record: Mapping[str, Any], name: str, where: str, needed: bool = True) -> Any:
    """The value of a field; `translation.ro` is a field of a field. InputError where there is none, unless not `needed`."""
    value: Any = record
    for part in [name] if name in record else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            if not needed:
                return None
            raise InputError(
                f"{where}: no field {name!r}; its fields are {', '.join(map(repr, _names(record))) or '(none)'}. "
                "Set corpus.document and corpus.summary to the right names."
            )
        value = value[part]
    return value


def _names(record: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in record.items():
        yield from _names(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name]


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str | None):
        raise InputError(f"{where}: {name!r} is {type(value).__name__}, expected a text. Mend the line.")
    return value or ""


def _references(value: Any, name: str, where: str) -> tuple[str, ...]:
    """The texts that are not empty of one text or a list of them."""
    several = value if isinstance(value, list) else [value]
    texts = [_text(one, f"{name}[{i}]" if value is several else name, where) for i, one in enumerate(several)]
    return tuple(text for text in texts if text.strip())


NO_TEXT = re.compile("[\ud800-\udfff\x00]")


def _checked(example: Example, where: str) -> Example:
    """The example; InputError at what no text file can hold."""
    for text in (example.id, example.document, *example.references):
        found = NO_TEXT.search(text)
        if found:
            what = "a NUL character" if found[0] == "\x00" else f"a lone surrogate {found[0]!a}, half of a character,"
            raise InputError(
                f"{where}: {what} at character {found.start()} of {text[:40]!a}. Expected text; mend or remove the line."
            )
    return example
