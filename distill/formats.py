"""Files of examples -> records, checked as they are read. Every format streams.

The formats are JSON lines, JSON arrays, CSV, parquet, pairs of line files, and the Arrow files of `save_to_disk`.
"""

import csv
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.json_array import is_array, read_array
from distill.text_files import COMPRESSED, UTF_8, encoding_of, lines

JSON_LINES = tuple(f".jsonl{packed}" for packed in COMPRESSED)
JSON = tuple(f".json{packed}" for packed in COMPRESSED)
CSV = tuple(kind + packed for kind in (".csv", ".tsv") for packed in COMPRESSED)
PARQUET = (".parquet",)
LINES = (".source",)  # beside it the .target
SUFFIXES = (*JSON_LINES, *JSON, *CSV, *PARQUET, *LINES)
ARROW = (".arrow",)  # only in a folder that `save_to_disk` wrote
ROWS = 512  # of a binary file, held at a time
PARQUET_BUFFER = 2**20  # bytes of each column
LINE_FIELDS = ("source", "target")
DELIMITERS = {";": "a semicolon", "\t": "a tab", "|": "a vertical bar", ",": "a comma"}
LONGEST_COLUMN_NAME = 60  # characters; a first line with longer ones is taken for a row of texts
MOST_WORDS_OF_A_NAME = 6

Record = tuple[str, dict[str, Any]]  # its place, and its fields


@dataclass(frozen=True)
class Columns:
    """What is read of a file."""

    needed: tuple[str, ...]
    """The fields that every record must have; `translation.ro` is a field of a field."""
    optional: tuple[str, ...] = ("id",)
    delimiter: str | None = None
    """Of CSV; None: a tab in .tsv files, else a comma."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.optional, *self.needed)


def read_records(path: Path, columns: Columns) -> Iterator[Record]:
    """Return the records of a file, in their order, with the fields of `columns` and maybe others.

    Raise InputError with the file, the line and what is wrong there.
    """
    if path.name.endswith(JSON_LINES):
        return _json_lines(path)
    if path.name.endswith(JSON):
        return read_array(path) if is_array(path) else _json_lines(path)
    if path.name.endswith(CSV):
        return _csv(path, columns)
    if path.name.endswith(PARQUET):
        return _parquet(path, columns.names)
    if path.name.endswith(ARROW):
        return _arrow(path)
    return _line_pairs(path, path.with_suffix(".target"))


def other_encoding(path: Path) -> str | None:
    """Return the encoding of a text file that is not in UTF-8, and None for all other files."""
    if path.name.endswith((*PARQUET, *ARROW)):
        return None
    encoding = encoding_of(path)
    return None if encoding == UTF_8 else encoding


# ------------------------------------------------------------------------------------------------ JSON


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _json_object(line, where)


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        begun = line.strip() in ("[", "{")
        advice = "If the whole file is one array of objects, name it .json" if begun else "Expected one object per line"
        raise InputError(f"{where}: not JSON ({error}). {advice}; mend the line.") from None
    if not isinstance(value, dict):
        advice = " If the whole file is one array of objects, name it .json." if isinstance(value, list) else ""
        raise InputError(f"{where}: {type(value).__name__} given, expected an object with the corpus's fields.{advice}")
    return value


# ------------------------------------------------------------------------------------------------ CSV


def _csv(path: Path, columns: Columns) -> Iterator[Record]:
    """Read a line with the columns' names, then rows; a quoted field may hold line breaks."""
    csv.field_size_limit(sys.maxsize)  # 128 KiB otherwise
    delimiter = columns.delimiter or ("\t" if ".tsv" in path.suffixes else ",")
    reader = csv.reader(lines(path), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        header = next(reader, [])
        if header:
            _check_header(path, header, delimiter, columns)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if row:
                yield where, _csv_record(header, row, where)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not CSV ({error}). Expected quotes around fields with commas, quotes or "
            "line breaks, and quotes within them doubled; mend the line."
        ) from None


def _check_header(path: Path, header: list[str], delimiter: str, columns: Columns) -> None:
    """Raise InputError if the first line does not name the columns that are needed, each once."""
    missing = [name for name in columns.needed if name not in header]
    where = f"{path}, line 1"
    if missing:
        other = _likely_delimiter(header, delimiter, columns)
        if other:
            raise InputError(
                f"{where}: no column {missing[0]!r}. The fields seem to be separated by {DELIMITERS[other]}, but they "
                f'were read as separated by {DELIMITERS.get(delimiter, repr(delimiter))}. Set corpus.delimiter: "{_shown(other)}".'
            )
        if any(_is_text(name) for name in header):
            example = ",".join(columns.needed)
            raise InputError(
                f"{where}: no column {missing[0]!r}. This line seems to be a row of texts ({header[0][:40]!r} ...), not "
                f"the names of the columns. Write their names above it, one for each of the {len(header)} fields "
                f"(for example {example!r})."
            )
        raise InputError(
            f"{where}: no field {missing[0]!r}; its fields are {', '.join(map(repr, header))}. "
            "Set corpus.document and corpus.summary to the right names. (The first line must hold the names.)"
        )
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise InputError(f"{where}: the column {twice[0]!r} is there twice. Expected different names.")


def _likely_delimiter(header: list[str], delimiter: str, columns: Columns) -> str | None:
    """Return the delimiter that would make columns with the names that are needed of the first line."""
    line = delimiter.join(header)
    others = [other for other in DELIMITERS if other != delimiter]
    for other in others:
        if set(columns.needed) <= {name.strip().strip('"') for name in line.split(other)}:
            return other
    if len(header) == 1 and not _is_text(line):
        return next((other for other in others if other in line), None)
    return None


def _is_text(name: str) -> bool:
    return len(name) > LONGEST_COLUMN_NAME or len(name.split()) > MOST_WORDS_OF_A_NAME


def _shown(delimiter: str) -> str:
    return "\\t" if delimiter == "\t" else delimiter


def _csv_record(header: list[str], row: list[str], where: str) -> dict[str, Any]:
    if len(row) != len(header):
        raise InputError(
            f"{where}: {len(row)} fields, but the first line names {len(header)} ({', '.join(header)}). "
            "Expected as many; put quotes around fields that hold the delimiter."
        )
    return dict(zip(header, row, strict=True))


# ------------------------------------------------------------------------------------------------ parquet and Arrow


def _parquet(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = {field.split(".")[0] for field in fields}
    try:
        # Without buffers of its own it would read a row group whole, and a row group may be the whole corpus.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER) as file:
            names = file.schema_arrow.names
            chosen = [name for name in names if name in fields or name in whole]
            rows = (row for batch in file.iter_batches(ROWS, columns=chosen) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}, row {number}", dict.fromkeys(names) | row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}. Expected a whole parquet file; copy it again.") from None


def _arrow(path: Path) -> Iterator[Record]:
    """Read a file of a folder that `save_to_disk` wrote: a stream of Arrow batches."""
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
            for batch in batches:
                for start in range(0, batch.num_rows, ROWS):
                    for row in batch.slice(start, ROWS).to_pylist():
                        number += 1
                        yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}. Expected a whole Arrow file; copy it again.") from None


# ------------------------------------------------------------------------------------------------ pairs of line files


def _line_pairs(source: Path, target: Path) -> Iterator[Record]:
    """Read one document from each line of `source`, its summary from the same line of `target`."""
    if not target.is_file():
        raise InputError(f"{source} has no {target.name} beside it; expected the summaries there, line by line.")
    pairs = itertools.zip_longest(lines(source), lines(target))
    for number, (document, summary) in enumerate(pairs, start=1):
        if document is None or summary is None:
            counts = [sum(1 for _ in lines(path)) for path in (source, target)]
            raise InputError(
                f"{source} has {counts[0]} lines, {target.name} has {counts[1]}. Expected as many: line by line a "
                "document and its summary; a summary with a line break in it may have become two lines."
            )
        texts = (document.strip("\r\n"), summary.strip("\r\n"))
        yield f"{source}, line {number}", dict(zip(LINE_FIELDS, texts, strict=True))
