"""Files of examples -> records, checked as they are read: JSON lines, CSV, parquet, pairs of line files. Streams."""

import contextlib
import csv
import gzip
import itertools
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from distill.errors import InputError

COMPRESSED = ("", ".gz", ".xz")
JSON = tuple(kind + packed for kind in (".jsonl", ".json") for packed in COMPRESSED)
CSV = tuple(kind + packed for kind in (".csv", ".tsv") for packed in COMPRESSED)
PARQUET = (".parquet",)
LINES = (".source",)  # beside it the .target
SUFFIXES = (*JSON, *CSV, *PARQUET, *LINES)
PARQUET_ROWS = 512  # held at a time
PARQUET_BUFFER = 2**20  # bytes of each column
LINE_FIELDS = ("source", "target")

Record = tuple[str, dict[str, Any]]  # where it stands, and its fields


def read_records(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    """The records of a file whose name ends in one of SUFFIXES; `fields` are those that are looked at.

    InputError names the file, the line and what is wrong there.
    """
    if path.name.endswith(JSON):
        return _json_lines(path)
    if path.name.endswith(CSV):
        return _csv(path)
    if path.name.endswith(PARQUET):
        return _parquet(path, fields)
    return _line_pairs(path, path.with_suffix(".target"))


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _json_object(line, where)


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}). Expected one object per line; mend the line.") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: {type(value).__name__} given, expected an object with the corpus's fields.")
    return value


def _csv(path: Path) -> Iterator[Record]:
    """A header line, then rows; a quoted field may hold line breaks."""
    csv.field_size_limit(sys.maxsize)  # 128 KiB otherwise
    reader = csv.reader(_lines(path), delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
    header: list[str] = []
    try:
        header = next(reader, [])
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise InputError(
                f"{path}: the column {twice[0]!r} is there twice. Expected different names in its first line."
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if row:
                yield where, _csv_record(header, row, where)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not CSV ({error}). Expected quotes around fields with commas, quotes or line "
            "breaks, and quotes within them doubled; mend the line."
        ) from None


def _csv_record(header: list[str], row: list[str], where: str) -> dict[str, Any]:
    if len(row) != len(header):
        raise InputError(
            f"{where}: {len(row)} fields, but the first line names {len(header)} ({', '.join(header)}). "
            "Expected as many; put quotes around fields that hold commas."
        )
    return dict(zip(header, row, strict=True))


def _parquet(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without buffers of its own it would read a row group whole, and a row group may be the whole corpus.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER) as file:
            names = file.schema_arrow.names
            chosen = [name for name in names if name in fields or name in {field.split(".")[0] for field in fields}]
            rows = (row for batch in file.iter_batches(PARQUET_ROWS, columns=chosen) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}, row {number}", dict.fromkeys(names) | row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}. Expected a whole parquet file; copy it again.") from None


def _line_pairs(source: Path, target: Path) -> Iterator[Record]:
    """One document in each line of `source`, its summary in the same line of `target`."""
    if not target.is_file():
        raise InputError(f"{source} has no {target.name} beside it; expected the summaries there, line by line.")
    pairs = itertools.zip_longest(_lines(source), _lines(target))
    for number, (document, summary) in enumerate(pairs, start=1):
        if document is None or summary is None:
            counts = [sum(1 for _ in _lines(path)) for path in (source, target)]
            raise InputError(
                f"{source} has {counts[0]} lines, {target.name} has {counts[1]}. Expected as many: line by line a document "
                "and its summary; a summary with a line break in it may have become two lines."
            )
        yield (
            f"{source}, line {number}",
            dict(zip(LINE_FIELDS, (document.strip("\r\n"), summary.strip("\r\n")), strict=True)),
        )


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file as UTF-8, ended by a line feed and by nothing else."""
    with contextlib.closing(_open(path)) as file:
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


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
