"""Any input -> rows {id, document, summary}, checked line by line. Pure Python: also used by a dry run."""

import contextlib
import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from distill.errors import InputError
from distill.recipe import Labels
from distill.run import Split
from distill.sections import Corpus

BUILT_IN = "docstrings"
SUFFIXES = (".jsonl", ".json", ".jsonl.xz", ".jsonl.gz", ".json.xz", ".json.gz")
ALIASES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}

Row = dict[str, str]


def split_files(corpus: Corpus) -> dict[Split, Path]:
    """The file of every split; InputError where one is missing. Empty for the built-in corpus."""
    if corpus.train == BUILT_IN:
        return {}
    folder = Path(corpus.train)
    given: dict[Split, str | None] = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    if folder.is_dir():
        given = {"train": None, "validation": corpus.validation, "test": corpus.test}
    return {split: _split_file(split, path, folder) for split, path in given.items()}


def documents_file(labels: Labels, name: str) -> Path | None:
    """The file of the documents that are labelled in place of the training split; InputError where it is missing."""
    return None if labels.documents is None else _data_file(f"labels.{name}.documents", labels.documents)


def read_rows(path: Path, document: str, summary: str, needs_summary: bool = True) -> Iterator[Row]:
    """Rows of a JSON-lines file (plain, .xz, .gz). InputError names the file, the line and what is wrong there."""
    with contextlib.closing(_open(path)) as file:
        for number, line in enumerate(_lines(file, path), start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield _check_encodable(_row(line, where, number, document, summary, needs_summary), where)


def _split_file(split: Split, given: str | None, folder: Path) -> Path:
    if given is not None:
        return _data_file(f"corpus.{split}", given)
    found = [folder / f"{name}{suffix}" for name in ALIASES[split] for suffix in SUFFIXES]
    existing = [path for path in found if path.is_file()]
    if not existing:
        place = f"{folder} has no {split} split" if folder.is_dir() else f"corpus.{split} is missing"
        raise InputError(f"{place}; expected {split}.jsonl (also .gz, .xz) there, or its path in corpus.{split}.")
    if len(existing) > 1:
        names = ", ".join(path.name for path in existing)
        raise InputError(f"{folder} has several {split} splits: {names}. Remove all but one, or name it.")
    return existing[0]


def _data_file(key: str, given: str) -> Path:
    path = Path(given)
    if path.is_dir():
        raise InputError(f"{key}: {given!r} is a folder, expected a file. Only corpus.train takes a folder.")
    if not path.is_file():
        also = f", or also a folder or {BUILT_IN!r}" if key == "corpus.train" else ""
        raise InputError(
            f"{key}: {given!r} given, but there is no such file or folder. "
            f"Expected a {', '.join(SUFFIXES[:4])} file{also}; correct the path."
        )
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{key}: {given!r} given, expected a file that ends in {', '.join(SUFFIXES)}.")
    return path


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(file: IO[bytes], path: Path) -> Iterator[str]:
    try:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: byte {error.start} ({line[error.start]:#04x}) is not UTF-8. "
                    "Expected UTF-8 text; convert the file (for example: iconv -f latin1 -t utf-8)."
                ) from None
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}. Expected a whole file; copy it again.") from None


def _row(line: str, where: str, number: int, document: str, summary: str, needs_summary: bool) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}). Expected one object per line; mend the line.") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: {type(value).__name__} given, expected an object with {document!r} and {summary!r}."
        )
    if not needs_summary:
        value.setdefault(summary, None)
    for name in (document, summary):
        if name not in value:
            raise InputError(
                f"{where}: no field {name!r}; its fields are {', '.join(map(repr, value)) or '(none)'}. "
                "Set corpus.document and corpus.summary to the right names."
            )
        if not isinstance(value[name], str | None):
            raise InputError(f"{where}: {name!r} is {type(value[name]).__name__}, expected a text. Mend the line.")
    return {
        "id": str(number if value.get("id") is None else value["id"]),
        "document": value[document] or "",
        "summary": value[summary] or "",
    }


def _check_encodable(row: Row, where: str) -> Row:
    """Half of a surrogate pair (a torn emoji escape) is no text that a file can hold."""
    for name, text in row.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: the {name} has a lone surrogate {text[error.start]!a} at character {error.start}, which is no "
                "valid Unicode. Expected whole characters; mend or remove the line."
            ) from None
    return row
