"""What a recipe gives as its corpus -> examples, checked one by one. No torch: also used by a dry run."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from distill.corpus_files import ALIASES, BUILT_IN, files_of, split_files
from distill.corpus_settings import Corpus
from distill.docstrings import read_docstrings
from distill.errors import InputError
from distill.formats import LINE_FIELDS, LINES, Columns, Record, read_records
from distill.hub import Hub, hub_dataset, only_the_cache
from distill.recipe import Labels
from distill.run import SPLITS, Split

FIELDS = ("document", "summary")

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
    files: tuple[Path, ...] = ()
    needs_summary: bool = True
    drops_refused: bool = False
    """Drop records that are refused otherwise. True for the built-in corpus: its users did not write it."""

    def examples(self) -> Iterator[Example | None]:
        """Yield the example of each record, or None for a record that is dropped.

        Raises InputError, with the place and what is wrong there, if a record is refused.
        """
        for number, (where, record) in enumerate(self.records(), start=1):
            try:
                example = _checked(self._example(record, where, number), where)
            except InputError:
                if not self.drops_refused:
                    raise
                example = None
            yield example

    def _example(self, record: Mapping[str, Any], where: str, number: int) -> Example:
        document = field_of(record, self.document, where)
        summary = field_of(record, self.summary, where, self.needs_summary)
        name = record.get("id")
        return Example(
            id=str(number if name is None else name),
            document=_text(document, self.document, where),
            references=_references(summary, self.summary, where),
        )


def sources(corpus: Corpus) -> dict[Split, Source]:
    """Return the source of every split, without those that `corpus.split` takes from train. Read no example yet.

    Raise InputError if a split has no source.
    """
    own: list[Split] = [split for split in SPLITS if split not in corpus.taken_from_train]
    if corpus.train == BUILT_IN:
        _refuse_split_of_built_in(corpus)
        return _built_in()
    hub = hub_dataset(corpus)
    if hub:
        return {split: _of_hub(hub, split, corpus) for split in own}
    files = split_files(corpus)
    return {split: _of_files(files[split], corpus) for split in own}


def documents_source(corpus: Corpus, labels: Labels, name: str) -> Source | None:
    """The documents that are labelled in place of the training split; InputError where the file is missing."""
    if labels.documents is None or labels.run:
        return None
    files = files_of(f"labels.{name}.documents", labels.documents)
    return _of_files(files, corpus, needs_summary=False)


def check_first_examples(corpus: Corpus) -> None:
    """Read the first example of every split. Raise InputError if it is not as the recipe says.

    Skip the built-in corpus, and a dataset of the hub that is not in this machine's cache.
    """
    if corpus.train == BUILT_IN:
        return
    hub = hub_dataset(corpus)
    if hub is None:
        for split, source in sources(corpus).items():
            check_first_example(source, f"the {split} split")
        return
    with only_the_cache():
        if hub.is_loadable():
            for split, source in sources(corpus).items():
                check_first_example(source, f"the {split} split")


def check_first_example(source: Source, what: str) -> None:
    """Raise InputError if a source has no example, or if its first one is not as the recipe says."""
    if next(source.examples(), None) is None:
        raise InputError(f"{what} ({source.name}) is empty; expected at least one example.")


def _refuse_split_of_built_in(corpus: Corpus) -> None:
    if corpus.split:
        raise InputError(f"corpus.split: given, but {BUILT_IN!r} has a validation and a test split; remove the key.")


def labels_file(labels: Labels, name: str) -> Path:
    """Return the file of labels that were made elsewhere. Raise InputError if it is missing or of an unknown kind."""
    assert labels.file is not None
    files = files_of(f"labels.{name}.file", labels.file)
    if len(files) != 1:
        raise InputError(f"labels.{name}.file: {labels.file!r} names {len(files)} files. Expected one.")
    path = files[0]
    if path.name.endswith(LINES):
        raise InputError(
            f"labels.{name}.file: {labels.file!r} has no names of fields. Expected JSON lines, CSV or parquet."
        )
    return path


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


def _of_files(files: list[Path], corpus: Corpus, needs_summary: bool = True) -> Source:
    document, summary = LINE_FIELDS if files[0].name.endswith(LINES) else FIELDS
    document = corpus.document or document
    summary = corpus.summary or summary
    if needs_summary:
        columns = Columns((document, summary), ("id",), corpus.delimiter)
    else:
        columns = Columns((document,), ("id", summary), corpus.delimiter)

    def records() -> Iterator[Record]:
        for path in files:
            yield from read_records(path, columns)

    name = str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    return Source(name, records, document, summary, tuple(files), needs_summary)


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
