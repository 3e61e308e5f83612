import gzip
import json
import lzma
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from distill import docstrings, reading
from distill.corpus import prepare_corpus, quantiles, read_split
from distill.corpus_settings import Corpus
from distill.docstrings import read_docstrings, split_docstring, split_of
from distill.errors import InputError
from distill.reading import sources
from distill.run import SPLITS
from tests.conftest import SHARED, make_rows, write_corpus


def prepare(folder: Path, out: Path, **settings: object) -> dict:  # type: ignore[type-arg]
    return prepare_corpus(Corpus(train=str(folder), **settings), 1, out)  # type: ignore[arg-type]


def test_splits_keep_every_row_in_order(tmp_path: Path) -> None:
    manifest = prepare(write_corpus(tmp_path / "c"), tmp_path / "out")
    assert read_split(tmp_path / "out" / "train.parquet") == make_rows(64)
    counts = manifest["splits"]["train"]
    assert (counts["examples"], counts["read"], counts["dropped"], counts["duplicate_documents"]) == (64, 64, {}, 0)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize("opener", [("xz", lzma.open), ("gz", gzip.open)])
def test_compressed_files(opener: tuple[str, Callable], tmp_path: Path) -> None:  # type: ignore[type-arg]
    folder = write_corpus(tmp_path / "c")
    plain = prepare(folder, tmp_path / "plain")
    for path in list(folder.iterdir()):
        with opener[1](f"{path}.{opener[0]}", "wb") as file:
            file.write(path.read_bytes())
        path.unlink()
    assert prepare(folder, tmp_path / "packed")["sha256"] == plain["sha256"]


def test_other_fields_any_unicode_and_a_byte_order_mark(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c")
    for path in folder.iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [json.dumps({"text": r["document"] + "\n\u2028\x85é\U0001f600", "tl;dr": r["summary"]}) for r in rows]
        path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    prepare(folder, tmp_path / "out", document="text", summary="tl;dr")
    rows = read_split(tmp_path / "out" / "test.parquet")
    assert len(rows) == 8 and all(row["document"].endswith("\n\u2028\x85é\U0001f600") for row in rows)
    assert rows[0]["id"] == "1"


def test_empty_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c")
    extra = [{"document": " ", "summary": "x"}, {"document": "x", "summary": None}, {"document": "x", "summary": ""}]
    rows = make_rows(10) + make_rows(2) + extra
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    counts = prepare(folder, tmp_path / "out")["splits"]["train"]
    assert counts["dropped"] == {"empty document": 1, "empty summary": 2}
    assert (counts["read"], counts["examples"]) == (15, 12)
    assert (counts["duplicate_documents"], counts["duplicate_ids"]) == (2, 2)


def test_a_seeded_sample(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c")
    prepare(folder, tmp_path / "a", max_examples={"train": 10})
    prepare(folder, tmp_path / "b", max_examples={"train": 10})
    rows = read_split(tmp_path / "a" / "train.parquet")
    assert rows == read_split(tmp_path / "b" / "train.parquet")
    assert len(rows) == 10 and [row for row in make_rows(64) if row in rows] == rows


def test_quantiles() -> None:
    assert quantiles(list(range(101))) == {
        "mean": 50.0, "min": 0, "p5": 5.0, "p25": 25.0, "p50": 50.0, "p75": 75.0, "p95": 95.0, "p99": 99.0, "max": 100,
    }  # fmt: skip


BAD_LINES = {
    "not an object": ("[1, 2]", "train.jsonl, line 3: list given, expected an object"),
    "not JSON": ("{'a': 1}", "train.jsonl, line 3: not JSON"),
    "a missing field": ('{"document": "x", "sumary": "y"}', "no field 'summary'; its fields are 'document', 'sumary'"),
    "a torn surrogate": (
        '{"document": "x\\ud83d", "summary": "y"}',
        "a lone surrogate '\\ud83d', half of a character, at character 1 of 'x\\ud83d'",
    ),
    "a NUL": ('{"document": "x", "summary": "y\\u0000z"}', "line 3: a NUL character at character 1 of 'y\\x00z'"),
    "a huge number": ('{"document": "x", "summary": "y", "n": ' + "9" * 5000 + "}", "line 3: not JSON"),
    "deep nesting": ("[" * 100_000, "line 3: not JSON"),
    "not a text": ('{"document": 5, "summary": "y"}', "'document' is int, expected a text"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    line, message = BAD_LINES[name]
    folder = write_corpus(tmp_path / "c")
    rows = [json.dumps(row) for row in make_rows(5)]
    (folder / "train.jsonl").write_text("\n".join([*rows[:2], line, *rows[2:]]))
    with pytest.raises(InputError) as error:
        prepare(folder, tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.partial"))


def test_wrong_encodings_and_torn_files(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c")
    good = (folder / "train.jsonl").read_bytes()
    (folder / "train.jsonl").write_bytes(good + b'{"document": "caf\xe9", "summary": "x"}\n')
    with pytest.raises(InputError, match=r"line 65: byte 17 \(0xe9\) is not UTF-8.*iconv"):
        prepare(folder, tmp_path / "out")
    (folder / "train.jsonl").unlink()
    for suffix, packed in (("xz", lzma.compress(good)), ("gz", gzip.compress(good))):
        torn = folder / f"train.jsonl.{suffix}"
        torn.write_bytes(packed[: len(packed) // 2])
        with pytest.raises(InputError, match="cannot be read"):
            prepare(folder, tmp_path / "out")
        torn.unlink()


def test_missing_and_empty_splits(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c")
    (folder / "test.jsonl").write_text("\n")
    with pytest.raises(InputError, match="the test split .* is empty"):
        prepare(folder, tmp_path / "out")
    (folder / "test.jsonl").unlink()
    with pytest.raises(InputError, match="has no test split; expected test.jsonl"):
        prepare(folder, tmp_path / "out")
    with pytest.raises(InputError, match="there is no such file or folder"):
        prepare(tmp_path / "none", tmp_path / "out")
    with pytest.raises(InputError, match="corpus.validation is missing"):
        sources(Corpus(train=str(folder / "train.jsonl")))
    (folder / "test.json").write_text("{}")
    (folder / "test.jsonl.gz").touch()
    with pytest.raises(InputError, match="several test splits: test.jsonl.gz, test.json"):
        sources(Corpus(train=str(folder)))


def test_more_than_half_dropped_is_an_error(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c")
    rows = make_rows(3) + [{"document": "", "summary": "x"}] * 4
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(InputError, match="4 of 7 rows of the train split .* had to be dropped"):
        prepare(folder, tmp_path / "out")


def test_a_real_corpus_from_xz_files(tmp_path: Path) -> None:
    folder = SHARED / "data" / "scitldr"
    if not folder.exists():
        pytest.skip(f"NO REAL CORPUS: {folder} is not there")
    manifest = prepare(folder, tmp_path / "out")
    assert [manifest["splits"][split]["examples"] for split in ("train", "validation", "test")] == [1988, 617, 618]


# ------------------------------------------------------------------------------------------------ docstrings

DOCSTRING = """Open a thing and keep it open.

    The thing is opened as often as it is asked for, and it is closed when the last of those who asked has gone
    home again. It stays warm meanwhile.

    Args:
        x: the thing that is opened
    """


def test_a_docstring_becomes_a_pair() -> None:
    pair = split_docstring("open_thing", DOCSTRING)
    assert pair is not None
    assert pair[1] == "Open a thing and keep it open."
    assert pair[0].startswith("open_thing: The thing is opened as often as") and "Args" not in pair[0]
    assert split_docstring("f", "Only a summary of this function.") is None
    assert split_docstring("f", "Short.\n\nToo short to be summarized.") is None


def test_packages_are_read_without_importing_them(tmp_path: Path) -> None:
    indented = DOCSTRING.replace("\n", "\n    ")
    for number in range(60):
        body = f'raise SystemExit\n\ndef f{number}():\n    """{indented.replace("thing", f"thing{number}")}"""\n'
        (tmp_path / f"m{number}.py").write_text(body)
    (tmp_path / "copy.py").write_text((tmp_path / "m0.py").read_text())  # the same text again
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    splits = read_docstrings([tmp_path])
    assert sum(map(len, splits.values())) == 60
    for split, rows in splits.items():
        assert rows and all(split_of(row["id"].split(":")[0]) == split for row in rows)
    assert splits == read_docstrings([tmp_path])


def documented(name: str, end: str = "") -> str:
    """Return a function and its docstring, which are different for each name."""
    text = DOCSTRING.replace("thing", f"thing {name}").replace("\n", "\n    ")
    return f'def {name}():\n    """{text}{end}"""\n'


READ = ("plain", "control", "after_chain", "latin", "last")  # the functions whose docstrings are examples


def write_hostile_packages(root: Path) -> None:
    """Write what other people's packages may hold. A reader could fail at each of these files."""
    texts = {
        "plain": documented("plain"),
        "control": documented("control", "\\x01\\x1b[31m\\x7f\\u202e"),
        "nul": documented("nul", "\\0"),
        "surrogate": documented("surrogate", "\\ud83d"),
        "huge": documented("huge", " word" * 2**20),
        "quadratic": documented("quadratic", "\n\n    args" + " " * 2**17 + "x"),
        "syntax_error": documented("syntax_error") + "def (",
        "nul_byte": documented("nul_byte") + "\0",
        "deep_expression": documented("deep_expression") + "x = " + "-" * 100_000 + "1\n",
        "deep_chain": "if a: pass\n" + "elif a: pass\n" * 1500 + documented("after_chain"),
        "unknown_encoding": "# coding: nothing\n" + documented("unknown_encoding"),
        "no_text_encoding": "# coding: hex\n" + documented("no_text_encoding"),
    }
    for name, text in texts.items():
        (root / f"{name}.py").write_text(text)
    (root / "latin1.py").write_bytes(b"# coding: latin-1\n" + documented("latin", "\xe9").encode("latin-1"))
    (root / "other_bytes.py").write_bytes(documented("other_bytes", "\xe9").encode("latin-1"))
    (root / "utf16.py").write_bytes(documented("utf16").encode("utf-16"))
    (root / "folder.py").mkdir()
    (root / "circle").symlink_to(root)
    (root / "circle.py").symlink_to(root / "circle.py")
    os.mkfifo(root / "pipe.py")
    with (root / "sparse.py").open("wb") as file:
        file.truncate(2**33)
    (root / "zz_last.py").write_text(documented("last"))
    Path(os.fsdecode(bytes(root) + b"/no_utf8_\xff.py")).write_text(documented("no_utf8"))


def test_no_package_can_fail_the_built_in_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for number in range(60):  # so that each split has examples
        (packages / f"m{number}.py").write_text(documented(f"f{number}"))
    write_hostile_packages(packages)
    found = read_docstrings([packages])
    monkeypatch.setattr(reading, "_all_docstrings", lambda: found)
    manifest = prepare_corpus(Corpus(train="docstrings"), 1, tmp_path / "out")
    rows = [row for split in SPLITS for row in read_split(tmp_path / "out" / f"{split}.parquet")]
    names = [row["id"].partition(":")[2] for row in rows]
    assert sorted(names) == sorted([*READ, *(f"f{number}" for number in range(60))])
    counts = manifest["splits"].values()
    assert sum(split["dropped"].get("no text", 0) for split in counts) == 3  # NUL, surrogate, no UTF-8 in the name
    assert sum(split["read"] for split in counts) == len(rows) + 3


def test_an_unreadable_package_is_passed_over() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "closed").mkdir(mode=0)
        unreadable = Path(folder) / "unreadable.py"
        unreadable.write_text(documented("unreadable"))
        unreadable.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root reads every file
        try:
            assert [path for _, path in docstrings._modules([Path(folder)])] == [unreadable]
            assert docstrings._pairs_of(unreadable) == []
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_no_failure(seed: int, tmp_path: Path) -> None:
    """Mutate a module at random places: each result is read or passed over."""
    random_bytes = random.Random(seed)
    for number in range(50):
        content = bytearray(documented(f"f{number}").encode())
        for _ in range(random_bytes.randrange(1, 6)):
            content[random_bytes.randrange(len(content))] = random_bytes.randrange(256)
        path = tmp_path / f"m{number}.py"
        path.write_bytes(content)
        for name, document, summary in docstrings._pairs_of(path):
            assert isinstance(name, str) and document and summary
