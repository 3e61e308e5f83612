"""Texts as a model reads them: token ids, made once for each table and read by all processes from one file.

A file of token ids is an Arrow table that is mapped, not read: every process of a machine shares its pages.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.errors import InputError
from distill.files import atomic_file, clear_leftovers, sha256_file
from distill.reading import Row

SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("cut", pa.bool_())])
ROWS_AT_ONCE = 1000
CHARACTERS_PER_TOKEN = 32  # more than any language's

Side = Literal["source", "target"]


class TokenRows(Sequence[list[int]]):
    """Rows of token ids in Arrow chunks, in the order of `indices` where they are given."""

    def __init__(self, chunks: pa.ChunkedArray, indices: npt.NDArray[np.int64] | None = None) -> None:
        self._chunks, self._indices = chunks, indices

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "TokenRows":
        return cls(pa.chunked_array([pa.array(list(rows), type=SCHEMA.field("ids").type)]))

    def __len__(self) -> int:
        return len(self._chunks) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index if self._indices is None else int(self._indices[index])
        row: list[int] = self._chunks[place].values.to_numpy().tolist()
        return row

    def lengths(self) -> list[int]:
        """Tokens of each row."""
        lengths = pc.list_value_length(self._chunks).to_numpy()
        chosen: list[int] = (lengths if self._indices is None else lengths[self._indices]).tolist()
        return chosen

    def chosen(self, indices: Sequence[int]) -> "TokenRows":
        """Some of the rows, in that order, possibly several times; nothing is copied."""
        numbers = np.asarray(indices, dtype=np.int64)
        return TokenRows(self._chunks, numbers if self._indices is None else self._indices[numbers])

    def __add__(self, other: "TokenRows") -> "TokenRows":
        """These rows, then the others; nothing is copied."""
        chunks = pa.chunked_array([*self._chunks.chunks, *other._chunks.chunks], type=SCHEMA.field("ids").type)
        return TokenRows(chunks, np.concatenate([self._places(), other._places() + len(self._chunks)]))

    def _places(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self._chunks)) if self._indices is None else self._indices


@dataclass(frozen=True)
class Tokens:
    """Tokenised examples; `truncated` counts documents and summaries that were cut."""

    source: Sequence[list[int]]
    target: Sequence[list[int]]
    truncated: dict[str, int]

    def __len__(self) -> int:
        return len(self.source)

    def lengths(self) -> list[tuple[int, int]]:
        """(source, target) tokens of each example."""
        return list(zip(row_lengths(self.source), row_lengths(self.target), strict=True))


def row_lengths(rows: Sequence[list[int]]) -> list[int]:
    return rows.lengths() if isinstance(rows, TokenRows) else [len(row) for row in rows]


def hash_rows(rows: Iterable[Sequence[int]]) -> str:
    """One hash of all token ids and where each row begins and ends."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.array([len(row), *row], dtype="<i4").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Encoder:
    """Texts -> token ids: a tokenizer, what stands before every document, and where both sides are cut."""

    tokenizer: Any
    max_source_tokens: int
    max_target_tokens: int
    prefix: str = ""

    def __call__(self, texts: Sequence[str], side: Side) -> tuple[list[list[int]], list[bool]]:
        """(token ids with the special ones, whether the text was cut)"""
        if side == "source":
            return self._encode([self.prefix + text for text in texts], "text", self.max_source_tokens)
        return self._encode(list(texts), "text_target", self.max_target_tokens)

    def _encode(self, texts: list[str], argument: str, most: int) -> tuple[list[list[int]], list[bool]]:
        def ids(some: list[str], longest: int) -> list[list[int]]:
            settings = {"truncation": True, "max_length": longest, "return_attention_mask": False, "verbose": False}
            encoded: list[list[int]] = self.tokenizer(**{argument: some}, **settings)["input_ids"]
            return encoded

        cuts_the_end = self.tokenizer.truncation_side == "right"
        read = [beginning(text, most) for text in texts] if cuts_the_end else texts.copy()
        rows = ids(read, most + 1)
        for i, text in enumerate(texts):
            if len(rows[i]) <= most and len(read[i]) < len(text):  # few tokens of many characters: of all of it then
                read[i], rows[i] = text, ids([text], most + 1)[0]
        cut = [len(row) > most for row in rows]
        shorter = iter(ids([text for text, is_cut in zip(read, cut, strict=True) if is_cut], most) if any(cut) else [])
        return [next(shorter) if is_cut else row for row, is_cut in zip(rows, cut, strict=True)], cut

    def key(self, side: Side) -> str:
        """Equal keys, equal token ids of equal texts."""
        limit = self.max_source_tokens if side == "source" else self.max_target_tokens
        languages = [getattr(self.tokenizer, name, None) for name in ("src_lang", "tgt_lang")]
        told = [side, limit, self.prefix if side == "source" else "", languages, self.tokenizer.truncation_side]
        told.append(_hash_tokenizer(self.tokenizer))
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def beginning(text: str, tokens: int) -> str:
    """So much of a text as surely has more than `tokens` tokens, where it is long: tokenizers read all before they cut.

    It ends before a space, which no token reaches over, so that its first tokens are those of the whole text.
    """
    end = CHARACTERS_PER_TOKEN * (tokens + 1)
    if len(text) <= end:
        return text
    space = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
    return text[: space if space > 0 else end]


def tokenize(encoder: Encoder, rows: Sequence[Row]) -> Tokens:
    """Of a few rows, in memory."""
    source, cut_documents = encoder([row["document"] for row in rows], "source")
    target, cut_summaries = encoder([row["summary"] for row in rows], "target")
    return Tokens(source, target, {"documents": sum(cut_documents), "summaries": sum(cut_summaries)})


def table_tokens(encoder: Encoder, table: Path, column: str, folder: Path) -> tuple[TokenRows, npt.NDArray[np.bool_]]:
    """The token ids of a column of a parquet table, and which texts were cut; from a file in `folder`, made if need be.

    Documents and summaries are encoded as what their models read and write: `document` is the source. Who makes the
    file at the same time makes the same; none waits.
    """
    side: Side = "source" if column == "document" else "target"
    name = hashlib.sha256(f"{sha256_file(table)} {column} {encoder.key(side)}".encode()).hexdigest()[:32]
    path = folder / f"{table.stem}-{side}-{name}.arrow"
    if not path.exists():
        clear_leftovers(path)
        with atomic_file(path, keep=True) as partial:
            _write(partial, _texts(table, column), lambda texts: encoder(texts, side))
    try:
        mapped = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is torn ({error}). Delete it; the same command makes it again.") from None
    return TokenRows(mapped["ids"]), mapped["cut"].to_numpy()


def _write(path: Path, batches: Iterator[list[str]], encode: Callable[[list[str]], tuple[Any, list[bool]]]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for texts in batches:
            ids, cut = encode(texts)
            writer.write_batch(pa.record_batch([pa.array(ids, SCHEMA.field("ids").type), pa.array(cut)], schema=SCHEMA))


def _texts(table: Path, column: str) -> Iterator[list[str]]:
    with pq.ParquetFile(table, pre_buffer=False) as file:  # else all that was read stays
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
            yield batch.column(0).to_pylist()


def _hash_tokenizer(tokenizer: Any) -> str:
    """Of all that decides what a tokenizer makes of a text; the same for one that was saved and loaded again."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        content = json.dumps({**state, "truncation": None, "padding": None, "post_processor": None}, sort_keys=True)
        ends = tokenizer("")["input_ids"], tokenizer(text_target="")["input_ids"]  # what the post-processor adds
        return hashlib.sha256(f"{content} {ends}".encode()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(
            path for path in Path(folder).rglob("*") if path.is_file() and path.name != "tokenizer_config.json"
        )
        content = " ".join(sha256_file(path) for path in files)
    return hashlib.sha256(f"{type(tokenizer).__name__} {content}".encode()).hexdigest()
