"""Text files as lines of characters: plain, .gz or .xz; UTF-8, or UTF-16 with a byte order mark.

A line ends at a line feed and at nothing else: texts may hold other characters that Unicode counts as line breaks.
"""

import contextlib
import gzip
import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from distill.errors import InputError

COMPRESSED = ("", ".gz", ".xz")
UTF_8 = "UTF-8"
UTF_16 = "UTF-16"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF_32_MARKS = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")


def encoding_of(path: Path) -> str:
    """Return the name of a text file's encoding, UTF-8 or UTF-16, from its first bytes.

    Raise InputError if the file is UTF-32, if it is UTF-16 without a byte order mark, or if it cannot be read.
    """
    with _explained(path), contextlib.closing(_open(path)) as file:
        start = file.read(4)
    other = _refused_encoding(start)
    if other:
        raise InputError(
            f"{path}: this file is {other}. Expected UTF-8, or UTF-16 with a byte order mark; "
            f"convert it (for example: iconv -f {other.split()[0]} -t UTF-8)."
        )
    return UTF_16 if start.startswith(UTF_16_MARKS) else UTF_8


def _refused_encoding(start: bytes) -> str | None:
    """Return the name of an encoding that is not read, if the first four bytes of a file show it.

    Corpus files begin with ASCII characters: their other bytes are 0 in UTF-16 and UTF-32.
    """
    if start in UTF_32_MARKS:
        return "UTF-32"
    zeros = "".join("0" if byte == 0 else "x" for byte in start)
    without_mark = {"x0x0": "UTF-16LE", "0x0x": "UTF-16BE", "x000": "UTF-32LE", "000x": "UTF-32BE"}
    if zeros not in without_mark:
        return None
    return f"{without_mark[zeros]} without a byte order mark"


def lines(path: Path) -> Iterator[str]:
    """Return the lines of a text file, with the line feeds at their ends.

    Raise InputError, with the line, if the text is not in the encoding of its first bytes, or if the file is torn.
    """
    if encoding_of(path) == UTF_16:
        return _utf_16_lines(path)
    return _utf_8_lines(path)


def pieces(path: Path, characters: int) -> Iterator[str]:
    """Return a text file in pieces of so many characters. Raise InputError as `lines` does."""
    encoding = encoding_of(path)
    codec = "utf-16" if encoding == UTF_16 else "utf-8-sig"
    with _explained(path), contextlib.closing(_open(path)) as file:
        text = io.TextIOWrapper(file, encoding=codec, newline="")
        try:
            while piece := text.read(characters):
                yield piece
        except UnicodeError as error:
            raise InputError(f"{path}: the text is not {encoding} ({error}). Save it again as UTF-8.") from None


def _utf_8_lines(path: Path) -> Iterator[str]:
    with _explained(path), contextlib.closing(_open(path)) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: byte {error.start} ({line[error.start]:#04x}) is not UTF-8. "
                    "Expected UTF-8 text; convert the file (for example: iconv -f latin1 -t utf-8)."
                ) from None


def _utf_16_lines(path: Path) -> Iterator[str]:
    number = 0
    with _explained(path), contextlib.closing(_open(path)) as file:
        text = io.TextIOWrapper(file, encoding="utf-16", newline="\n")
        try:
            for line in text:
                number += 1
                yield line
        except UnicodeError as error:
            raise InputError(
                f"{path}, after line {number}: the text is not UTF-16 ({error}), but the file begins with the "
                "byte order mark of UTF-16. Save it again as UTF-8."
            ) from None


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (lzma.LZMAError, EOFError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}. Expected a whole file; copy it again.") from None


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")
