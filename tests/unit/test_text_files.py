"""Texts as people have them: encodings, delimiters, line ends, one array in a file."""

import csv
import gzip
import json
import lzma
import re
from pathlib import Path

import pytest

from distill import json_array
from distill.corpus_settings import Corpus
from distill.errors import InputError
from distill.formats import other_encoding
from distill.reading import Example, sources


def read_file(path: Path, **keys: str) -> list[Example]:
    given = sources(Corpus(train=str(path), validation=str(path), test=str(path), **keys))  # type: ignore[arg-type]
    return list(given["train"].examples())


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "csv.xz", "json.gz"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be-with-mark"])
def test_byte_order_marks(encoding: str, suffix: str, tmp_path: Path) -> None:
    """Excel writes UTF-16 with a mark; line breaks of Unicode in a text end no line."""
    rows = [{"document": f"one\u2028two é \u0a0a {i} \U0001f600", "summary": "x"} for i in range(9)]
    if suffix == "jsonl":
        text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    elif suffix.startswith("json"):
        text = json.dumps(rows, ensure_ascii=False)
    else:
        delimiter = "\t" if suffix == "tsv" else ","
        text = "\n".join([f"document{delimiter}summary", *(delimiter.join(row.values()) for row in rows)])
    mark, codec = ("\ufeff", "utf-16-be") if encoding.endswith("mark") else ("", encoding)
    path = tmp_path / f"a.{suffix}"
    packed = {"xz": lzma.compress, "gz": gzip.compress}.get(path.suffix[1:], bytes)
    path.write_bytes(packed((mark + text).encode(codec)))
    assert [example.document for example in read_file(path)] == [row["document"] for row in rows]
    assert other_encoding(path) == (None if encoding == "utf-8-sig" else "UTF-16")


def test_line_files_in_utf_16(tmp_path: Path) -> None:
    (tmp_path / "a.source").write_text("eins\u2028a\nzwei\n", encoding="utf-16")
    (tmp_path / "a.target").write_text("one\ntwo\n", encoding="utf-8")
    assert read_file(tmp_path / "a.source") == [Example("1", "eins\u2028a", ("one",)), Example("2", "zwei", ("two",))]


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-32"])
def test_other_encodings_are_named(codec: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("document,summary\nx,y\n".encode(codec))
    name = codec.upper().replace("-LE", "LE").replace("-BE", "BE") + ("" if codec == "utf-32" else " without a byte")
    with pytest.raises(InputError, match=f"a.csv: this file is {name}.*iconv -f {name.split()[0]} -t UTF-8"):
        read_file(tmp_path / "a.csv")


def test_a_torn_utf_16_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("document,summary\nx,y\n".encode("utf-16") + b"\x41")
    with pytest.raises(InputError, match="after line 2: the text is not UTF-16"):
        read_file(tmp_path / "a.csv")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_delimiter(delimiter: str, tmp_path: Path) -> None:
    texts = ['a "quoted" text; with | all, of\tthem', "a text\nof two lines"]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["document", "summary"], *([text, "s"] for text in texts)])
    read = read_file(tmp_path / "a.csv", delimiter=delimiter)
    assert [example.document for example in read] == texts
    with pytest.raises(
        InputError, match='Set corpus.delimiter: "' + re.escape({"\t": "\\t"}.get(delimiter, delimiter))
    ):
        read_file(tmp_path / "a.csv")


def test_texts_of_a_table_stay_as_they_are(tmp_path: Path) -> None:
    """What looks like a number, or like nothing, is a text; only blank ones are none."""
    rows = (
        '\ufeffid,document,summary\r\n007,the fox jumps,null\r\n007,NA,42\r\n3,"two\r\nlines, ""quoted""",None\r\n'
        "4,1e5,nan\r\n5,true,<b>html</b> \U0001f600\r\n6,   ,blank\r\n7,blank,  \r\n8,שלום עולם,مرحبا\r\n"
    )
    (tmp_path / "a.csv").write_bytes(rows.encode())
    assert read_file(tmp_path / "a.csv") == [
        Example("007", "the fox jumps", ("null",)),
        Example("007", "NA", ("42",)),
        Example("3", 'two\r\nlines, "quoted"', ("None",)),
        Example("4", "1e5", ("nan",)),
        Example("5", "true", ("<b>html</b> \U0001f600",)),
        Example("6", "   ", ("blank",)),
        Example("7", "blank", ()),
        Example("8", "שלום עולם", ("مرحبا",)),
    ]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    documents = ["a.", "b.\r", "the quick\u2028brown\x85 jumps\x0b over\x0c a\x1c lazy\x1d dog\x1e\u2029 seven", "c\rd"]
    (tmp_path / "a.source").write_bytes("\n".join(documents).encode())
    (tmp_path / "a.target").write_bytes(b"1\n2\n3\n4")
    assert [example.document for example in read_file(tmp_path / "a.source")] == [
        text.strip("\r") for text in documents
    ]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("piece", [1, 7, 10**6])
def test_an_array_in_pieces_of_any_size(
    piece: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"document": 'a "b" [c] {d}, \\ é' + "x" * n, "summary": "s", "n": [n, {"m": None}]} for n in range(40)]
    monkeypatch.setattr(json_array, "PIECE", piece)
    (tmp_path / "a.json").write_text("\n " + json.dumps(rows, indent=indent) + "\n")
    assert [row for _, row in json_array.read_array(tmp_path / "a.json")] == rows


BAD_ARRAYS = {
    "not an object": ('[{"document": "x", "summary": "y"}, 5]', "element 2: '5' begins it, expected an object"),
    "torn": ('[{"document": "x", "summary": "y"}, {"docu', "element 2: not JSON"),
    "no end": ('[{"document": "x", "summary": "y"}', "after element 1, but there is the end of the file"),
    "no comma": ('[{"document": "x", "summary": "y"} {}]', "expected a comma .* after element 1"),
    "more": ('[{"document": "x", "summary": "y"}] []', "there is text after the array's end"),
    "a wrong quote": ("[{'document': 1}]" + " " * 99, "element 1: not JSON"),
    "a missing field": ('[{"document": "x"}]', "element 1: no field 'summary'"),
    "deep": ("[" + '{"a":' * 100_000, "element 1: not JSON"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_a_bad_array_is_refused_with_its_element(name: str, tmp_path: Path) -> None:
    content, message = BAD_ARRAYS[name]
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_file(tmp_path / "a.json")


def test_an_empty_array_is_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[ ]")
    assert read_file(tmp_path / "a.json") == []
