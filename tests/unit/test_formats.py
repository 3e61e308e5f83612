"""Every kind of corpus gives the same examples; what is wrong is named with its place."""

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet

from distill.corpus import prepare_corpus, read_references, read_split
from distill.corpus_settings import Corpus
from distill.errors import InputError
from distill.formats import Columns, read_records
from distill.reading import Example, check_first_examples, sources
from tests.conftest import SHARED, make_rows, write_corpus

SIZES = {"train": 30, "validation": 4, "test": 5}
FIXTURES = SHARED / "fixtures"


def rows_of(split: str) -> list[dict[str, str]]:
    rows = make_rows(SIZES[split], seed=len(split))
    rows[1]["document"] += ' a "quoted, word"; and é\u2028 more'
    return rows


def write_csv(path: Path, split: str, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["summary", "id", "document"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows_of(split))


def write_parquet(path: Path, split: str) -> None:
    pq.write_table(pa.Table.from_pylist([row | {"other": 1} for row in rows_of(split)]), path, row_group_size=7)


def write_lines(path: Path, split: str) -> None:
    for side, field in (("source", "document"), ("target", "summary")):
        text = "".join(row[field] + "\n" for row in rows_of(split))
        path.with_suffix(f".{side}").write_text(text, encoding="utf-8")
    path.with_suffix(".len").write_bytes(b"\x80 stale")


def write_gzipped(path: Path, split: str) -> None:
    write_csv(path.with_suffix(""), split)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()


KINDS: dict[str, Callable[[Path, str], None]] = {
    "csv": write_csv,
    "csv.gz": write_gzipped,
    "tsv": lambda path, split: write_csv(path, split, "\t"),
    "parquet": write_parquet,
    "source": write_lines,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_examples(kind: str, tmp_path: Path) -> None:
    for split in SIZES:
        KINDS[kind](tmp_path / f"{split}.{kind}", split)
    read = {split: list(source.examples()) for split, source in sources(Corpus(train=str(tmp_path))).items()}
    for split in SIZES:
        numbered = enumerate(rows_of(split), start=1)
        expected = [
            Example(str(n) if kind == "source" else row["id"], row["document"], (row["summary"],))
            for n, row in numbered
        ]
        assert read[split] == expected  # type: ignore[index]


def cached_dataset(cache: Path, name: str, rows: Callable[[str], list[dict[str, object]]], config: str) -> None:
    """What `load_dataset` leaves in the cache of a machine that has loaded `name` before."""
    data = {}
    for split in SIZES:
        data[split] = str(cache / f"{split}.parquet")
        pq.write_table(pa.Table.from_pylist(rows(split)), data[split])
    owner, short = name.split("/")
    builder = Parquet(cache_dir=str(cache / "built"), dataset_name=short, config_name=config, hash="0", data_files=data)
    builder.download_and_prepare()
    built = Path(builder.cache_dir)
    info = json.loads((built / "dataset_info.json").read_text())
    (built / "dataset_info.json").write_text(json.dumps(info | {"config_name": config}))
    shutil.move(built.parents[1], cache / f"{owner}___{short}" / config)


DATASETS = {
    "EdinburghNLP/xsum": ("document", "summary", "default", {}),
    "abisee/cnn_dailymail": ("article", "highlights", "3.0.0", {}),
    "knkarthick/samsum": ("dialogue", "summary", "default", {}),
    "wmt/wmt16": ("en", "ro", "ro-en", {"config": "ro-en", "document": "translation.en", "summary": "translation.ro"}),
    "someone/something": ("text", "gist", "default", {"document": "text", "summary": "gist"}),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_by_its_name_from_the_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, summary, config, keys = DATASETS[name]

    def rows(split: str) -> list[dict[str, object]]:
        pairs = [{document: row["document"], summary: row["summary"]} for row in rows_of(split)]
        return [{"translation": pair} for pair in pairs] if name.startswith("wmt") else pairs  # type: ignore[misc]

    cached_dataset(tmp_path, name, rows, config)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    corpus = Corpus(train=name, **keys)  # type: ignore[arg-type]
    manifest = prepare_corpus(corpus, 1, tmp_path / "out")
    assert {split: counts["examples"] for split, counts in manifest["splits"].items()} == SIZES
    expected = [(row["document"], row["summary"]) for row in rows_of("test")]
    assert [(row["document"], row["summary"]) for row in read_split(tmp_path / "out" / "test.parquet")] == expected


def test_columns_of_a_cached_dataset_are_looked_at_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_dataset(tmp_path, "some/one", lambda split: [{"text": "x", "gist": "y"}], "default")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the hub was asked"))
    check_first_examples(Corpus(train="some/one", document="text", summary="gist"))
    with pytest.raises(InputError, match="no field 'document'; its fields are 'text', 'gist'"):
        check_first_examples(Corpus(train="some/one"))
    check_first_examples(Corpus(train="some/other"))  # not in the cache: prepare will see
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_translation_needs_a_direction() -> None:
    with pytest.raises(InputError, match=r"pairs of languages.*corpus.document=translation.en"):
        sources(Corpus(train="wmt/wmt16", config="ro-en"))
    with pytest.raises(InputError, match="is no dataset's name; remove it"):
        sources(Corpus(train="docs.csv", config="ro-en"))


def test_a_dataset_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"'no/such' is no file or folder here, and .*cannot be loaded: .*save_to_disk"
    ):
        list(sources(Corpus(train="no/such"))["train"].examples())


def test_several_references(tmp_path: Path) -> None:
    for split in SIZES:
        rows = [row | {"summary": [row["summary"], "", "another one"]} for row in rows_of(split)]
        rows[0]["summary"] = ["", " "]
        rows[1]["summary"] = "only one"
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    manifest = prepare_corpus(Corpus(train=str(tmp_path)), 1, tmp_path / "out")
    counts = manifest["splits"]["train"]
    assert counts["dropped"] == {"empty summary": 1} and counts["references"] == 1 + 2 * (SIZES["train"] - 2)
    table = tmp_path / "out" / "train.parquet"
    assert [row["summary"] for row in read_split(table)] == ["only one", *(r["summary"] for r in rows_of("train")[2:])]
    assert read_references(table) == [["only one"], *([r["summary"], "another one"] for r in rows_of("train")[2:])]


def read_train(path: Path) -> None:
    list(sources(Corpus(train=str(path), validation=str(path), test=str(path)))["train"].examples())


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "a.csv": (b'document,summary\n"x,y', r"a.csv, line 2: not CSV \(unexpected end of data\)"),
    "b.csv": (b"document,summary\nx,y\nx,y,z\n", "b.csv, line 3: 3 fields, but the first line names 2"),
    "c.csv": (b"document,document\nx,y\n", "c.csv, line 1: no field 'summary'; its fields are 'document', 'document'"),
    "l.csv": (b"document,document,summary\nx,y,z\n", "the column 'document' is there twice"),
    "d.tsv": (b"text\tsummary\nx\ty\n", "no field 'document'; its fields are 'text', 'summary'"),
    "e.csv": (b"document,summary\nx\x00,y\n", "a NUL character at character 1"),
    "f.parquet": (b"PAR1 torn", "f.parquet cannot be read: .*copy it again"),
    "g.source": (b"one\n", "has no g.target beside it"),
    "h.jsonl": (b'{"document": "x", "summary": ["y", 3]}', r"'summary\[1\]' is int, expected a text"),
    "i.jsonl": (b'{"document": {"text": "x"}, "summary": "y"}', "'document' is dict, expected a text"),
    "j.jsonl": (b'[\n{"document": "x", "summary": "y"}\n]', r"line 1: not JSON.*one array of objects, name it .json"),
    "k.docx": (b"", "expected a file that ends in .jsonl"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_train(tmp_path / name)


def test_parquet_columns_of_other_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"document": ["x"], "summary": [5]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a.parquet, row 1: 'summary' is int, expected a text"):
        read_train(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"], "summary": ["y"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="no field 'document'; its fields are 'text', 'summary'"):
        read_train(tmp_path / "b.parquet")


def test_parquet_columns_with_a_dot_in_their_name(tmp_path: Path) -> None:
    table = pa.table({"translation.en": ["x"], "translation": [{"ro": "y"}], "translation.ro": ["z"]})
    pq.write_table(table, tmp_path / "a.parquet")
    for summary, text in (("translation.ro", "z"), ("translation", None)):
        path = str(tmp_path / "a.parquet")
        given = sources(Corpus(train=path, validation=path, test=path, document="translation.en", summary=summary))
        if text is None:
            with pytest.raises(InputError, match="'translation' is dict, expected a text"):
                list(given["train"].examples())
        else:
            assert list(given["train"].examples()) == [Example("1", "x", (text,))]


def test_a_large_row_group_is_not_held_whole(tmp_path: Path) -> None:
    rows = 20_000
    texts = [f"{number} " * 300 for number in range(rows)]
    pq.write_table(pa.table({"document": texts, "summary": ["s"] * rows}), tmp_path / "a.parquet", compression="none")
    size, pool = (tmp_path / "a.parquet").stat().st_size, pa.default_memory_pool()
    held = 0
    del texts
    for number, _ in enumerate(read_records(tmp_path / "a.parquet", Columns(("document", "summary")))):
        if number % 1000 == 0:
            held = max(held, pool.bytes_allocated())
    assert held < size / 3


def test_unequal_line_counts_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.source").write_text("one\ntwo\nthree\n")
    (tmp_path / "t.target").write_text("1\n2\n")
    with pytest.raises(InputError, match=r"t.source has 3 lines, t.target has 2"):
        read_train(tmp_path / "t.source")


def test_a_missing_path_is_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for given in ("data/xsm", "nothing", "data/train.jsonl"):
        with pytest.raises(InputError, match="there is no such file or folder"):
            sources(Corpus(train=given))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_line_files_of_the_original_with_stale_lengths(split: str) -> None:
    folder = FIXTURES / "wmt_en_ro"
    if not folder.exists():
        pytest.skip(f"NO REAL CORPUS: {folder} is not there")
    given = sources(Corpus(train=str(folder)))["validation" if split == "val" else split]  # type: ignore[index]
    lines = (folder / f"{split}.source").read_bytes().strip().split(b"\n")
    assert len(list(given.examples())) == len(lines) > 5


def test_xsum_samples() -> None:
    path = FIXTURES / "xsum_sample.json"
    if not path.exists():
        pytest.skip(f"NO REAL CORPUS: {path} is not there")
    assert len(list(sources(Corpus(train=str(path), validation=str(path), test=str(path)))["test"].examples())) == 10


def test_near_duplicates_and_what_stands_in_two_splits(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c")
    rows = [
        {"document": f"{number} " + " ".join(f"w{number * 100 + i}" for i in range(90)), "summary": "s"}
        for number in range(20)
    ]
    nearly = [{**row, "document": row["document"].upper().replace("W5", "w5") + "!"} for row in rows[:3]]
    other = [{"document": " ".join(reversed(row["document"].split())), "summary": "s"} for row in rows]
    for split, some in (("train", rows + nearly), ("validation", other), ("test", nearly[:2] + other)):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in some))
    splits = prepare_corpus(Corpus(train=str(folder)), 1, tmp_path / "out")["splits"]
    assert (splits["train"]["near_duplicates"], splits["train"]["duplicate_documents"]) == (3, 0)
    assert splits["validation"]["near_duplicates_in_train"] == 0
    assert splits["test"]["near_duplicates_in_train"] == 2
