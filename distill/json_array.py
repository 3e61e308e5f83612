"""A file that holds one JSON array of objects -> its objects. Streams: it holds one object and one piece of the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.text_files import pieces

PIECE = 2**20  # characters read at a time
NEAR_THE_END = 16  # characters; an error so near the end of what was read may only mean that there is more
BLANK = " \t\r\n"


def is_array(path: Path) -> bool:
    """Return True if the first character of a text file that is not blank is `[`."""
    for piece in pieces(path, 1024):
        text = piece.lstrip(BLANK)
        if text:
            return text[0] == "["
    return False


def read_array(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the place and the value of every object of an array.

    Raise InputError, with the number of the element, at what is not JSON and at what is no object.
    """
    reader = _Reader(path)
    reader.expect("[", "the array's first character")
    if reader.next_character() == "]":
        return
    number = 0
    while True:
        number += 1
        where = f"{path}, element {number}"
        yield where, reader.value(where)
        if reader.next_character() == "]":
            break
        reader.expect(",", f"a comma or the array's end after element {number}")
    reader.expect("]", "the array's end")
    if reader.next_character():
        raise InputError(f"{path}: there is text after the array's end. Expected one array; mend the file.")


class _Reader:
    """Parses JSON values one after the other, and reads on when one is not complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces = pieces(path, PIECE)
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """Return the next character that is not blank, without taking it; "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in BLANK:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def expect(self, character: str, what: str) -> None:
        """Take the next character. Raise InputError if it is another one."""
        found = self.next_character()
        if found != character:
            shown = repr(found) if found else "the end of the file"
            raise InputError(f"{self._path}: expected {what}, but there is {shown}. Mend or copy the file again.")
        self._at += 1

    def value(self, where: str) -> dict[str, Any]:
        """Take the next value. Raise InputError if it is no object or not JSON."""
        first = self.next_character()
        if first and first != "{":
            raise InputError(f"{where}: {first!r} begins it, expected an object ('{{') with the corpus's fields.")
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._may_be_incomplete(error) and self._read_on():
                    continue
                raise InputError(f"{where}: not JSON ({error.msg}). Expected an object; mend it.") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON ({error}). Expected an object; mend it.") from None
            found: dict[str, Any] = value
            return found

    def _may_be_incomplete(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - NEAR_THE_END

    def _read_on(self) -> bool:
        """Read as much again as is held, so that a long object is not parsed too often. Return False at the end."""
        rest = self._text[self._at :]
        added: list[str] = []
        while sum(map(len, added)) <= len(rest):
            piece = next(self._pieces, "")
            if not piece:
                break
            added.append(piece)
        self._text = rest + "".join(added)
        self._at = 0
        return bool(added)
