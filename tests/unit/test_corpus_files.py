"""A corpus is the same in every layout of files; what is missing of it is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.corpus_settings import Corpus
from distill.errors import InputError
from distill.reading import Example, check_first_examples, sources
from tests.conftest import make_rows

SIZES = {"train": 30, "validation": 6, "test": 7}


def rows_of(split: str) -> list[dict[str, str]]:
    return make_rows(SIZES[split], seed=len(split))


def expected(split: str) -> list[Example]:
    return [Example(row["id"], row["document"], (row["summary"],)) for row in rows_of(split)]


def read(corpus: Corpus) -> dict[str, list[Example]]:
    check_first_examples(corpus)
    return {split: list(source.examples()) for split, source in sources(corpus).items()}


def write_shards(folder: Path, split: str, shards: int = 3, name: str = "{split}-{number:05d}-of-{count:05d}") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(split)
    size = -(-len(rows) // shards)
    for number in range(shards):
        part = rows[number * size : (number + 1) * size]
        file = name.format(split=split, number=number, count=shards) + ".parquet"
        pq.write_table(pa.Table.from_pylist(part), folder / file)


def write_jsonl(path: Path, split: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(split)))


def shards(folder: Path) -> Corpus:
    for split in SIZES:
        write_shards(folder, split)
    return Corpus(train=str(folder))


def shards_of_the_hub(folder: Path) -> Corpus:
    for split in SIZES:
        write_shards(folder / "data", split, 1, "{split}-{number:05d}-of-{count:05d}-0123456789abcdef")
    (folder / "README.md").write_text("a dataset card")
    return Corpus(train=str(folder))


def folders(folder: Path) -> Corpus:
    """Spark writes a folder of parts for each table."""
    for split in SIZES:
        write_shards(folder / f"{split}.parquet", split, 2, "part-{number:05d}-8c1f.snappy")
        (folder / f"{split}.parquet" / "_SUCCESS").touch()
    return Corpus(train=str(folder))


def one_folder_for_each_split(folder: Path) -> Corpus:
    for split in SIZES:
        write_shards(folder / f"my_{split}", split, 3, "part-{number:05d}-of-{count:05d}")
    return Corpus(**{split: str(folder / f"my_{split}") for split in SIZES})  # type: ignore[arg-type]


def patterns(folder: Path) -> Corpus:
    for split in SIZES:
        write_shards(folder, split)
    return Corpus(**{split: str(folder / f"{split[:3]}*") for split in SIZES})  # type: ignore[arg-type]


def lists(folder: Path) -> Corpus:
    shards(folder)
    paths = {split: [str(path) for path in sorted(folder.glob(f"{split}-*"))] for split in SIZES}
    return Corpus(**paths)  # type: ignore[arg-type]


def a_list_of_kinds_and_patterns(folder: Path) -> Corpus:
    rows = rows_of("train")
    pq.write_table(pa.Table.from_pylist(rows[:10]), folder / "a.parquet")
    (folder / "b0.json").write_text(json.dumps(rows[10:20]))
    (folder / "b1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[20:]))
    for split in ("validation", "test"):
        write_jsonl(folder / f"{split}.jsonl", split)
    train = [str(folder / "a.parquet"), str(folder / "b[01].*")]
    return Corpus(train=train, validation=str(folder / "validation.jsonl"), test=str(folder / "test.jsonl"))


def saved_dataset_dict(folder: Path) -> Corpus:
    saved = datasets.DatasetDict({split: datasets.Dataset.from_list(rows_of(split)) for split in SIZES})
    saved.save_to_disk(str(folder / "saved"), num_shards={"train": 3, "validation": 1, "test": 2})
    return Corpus(train=str(folder / "saved"))


def saved_datasets(folder: Path) -> Corpus:
    """Chosen rows are written as they were chosen."""
    for split in SIZES:
        rows = datasets.Dataset.from_list([*rows_of(split)[::-1], {"id": "x", "document": "y", "summary": "z"}])
        rows.select(range(SIZES[split] - 1, -1, -1)).save_to_disk(str(folder / f"{split}_rows"))
    return Corpus(**{split: str(folder / f"{split}_rows") for split in SIZES})  # type: ignore[arg-type]


def arrays(folder: Path) -> Corpus:
    for split in SIZES:
        (folder / f"{split}.json").write_text(json.dumps(rows_of(split), indent=2))
    return Corpus(train=str(folder))


LAYOUTS: list[Callable[[Path], Corpus]] = [
    shards,
    shards_of_the_hub,
    folders,
    one_folder_for_each_split,
    patterns,
    lists,
    a_list_of_kinds_and_patterns,
    saved_dataset_dict,
    saved_datasets,
    arrays,
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_examples(layout: Callable[[Path], Corpus], tmp_path: Path) -> None:
    assert read(layout(tmp_path)) == {split: expected(split) for split in SIZES}


def lose(pattern: str) -> Callable[[Path], object]:
    return lambda folder: next(folder.rglob(pattern)).unlink()


def add(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text('{"document": "x", "summary": "y"}')


BROKEN: dict[str, tuple[Callable[[Path], Corpus], Callable[[Path], object], str]] = {
    "a shard": (shards, lose("train-00001-*"), r"train-\*-of-00003: 1 of 3 shards are missing \(00001\)"),
    "the first shard": (shards, lose("train-00000-*"), r"1 of 3 shards are missing \(00000\)"),
    "the last shard of a pattern": (patterns, lose("train-00002-*"), r"1 of 3 shards are missing \(00002\)"),
    "a shard of a folder": (one_folder_for_each_split, lose("part-00001-*"), r"1 of 3 shards are missing \(00001\)"),
    "a file that save_to_disk wrote": (saved_dataset_dict, lose("data-00002-of-00003.arrow"), "1 of 3 files are missing"),
    "shards and a whole": (shards, add("train.jsonl"), "has several train splits: train.jsonl, train-00000-of-00003.parquet"),
    "a pattern that matches too much": (patterns, add("tests.txt"), r"matches .*tests.txt, which is no file of a known kind"),
    "two kinds in a folder": (one_folder_for_each_split, add("my_train/x.csv"), r"several kinds \(.csv, .parquet\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    layout, damage, message = BROKEN[name]
    corpus = layout(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        read(corpus)


def test_shards_may_be_numbered_from_one_and_some_may_be_listed(tmp_path: Path) -> None:
    shards(tmp_path)
    some = [str(tmp_path / "train-00000-of-00003.parquet"), str(tmp_path / "train-00002-of-00003.parquet")]
    other = str(tmp_path / "test-*.parquet")
    chosen = read(Corpus(train=some, validation=other, test=other))["train"]
    assert chosen == expected("train")[:10] + expected("train")[20:]
    (tmp_path / "train-00000-of-00003.parquet").rename(tmp_path / "train-00003-of-00003.parquet")
    renamed = read(Corpus(train=str(tmp_path)))["train"]
    assert renamed == expected("train")[10:] + expected("train")[:10]


def test_a_missing_split_is_told_with_both_ways_out(tmp_path: Path) -> None:
    shards(tmp_path)
    for path in tmp_path.glob("test-*"):
        path.unlink()
    with pytest.raises(InputError, match=r"has no test split; .*give its path in corpus.test, or take it from train"):
        read(Corpus(train=str(tmp_path)))
    with pytest.raises(InputError, match=r"corpus.test is missing.*corpus.split: \{test: 1500\}"):
        read(Corpus(train=str(tmp_path / "train-*"), validation=str(tmp_path / "validation-*")))
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match="no file matches"):
        read(Corpus(train=str(tmp_path / "*.jsonl")))


def test_a_file_is_read_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", "train")
    with pytest.raises(InputError, match="a.jsonl is named twice"):
        read(Corpus(train=[str(tmp_path / "a.jsonl"), str(tmp_path / "*.jsonl")]))


def test_a_saved_dataset_is_not_read_whole(tmp_path: Path) -> None:
    text = "word " * 20_000
    datasets.Dataset.from_dict({"document": [text] * 400, "summary": ["s"] * 400}).save_to_disk(str(tmp_path / "d"))
    path = str(tmp_path / "d")
    before = pa.default_memory_pool().bytes_allocated()
    examples = sources(Corpus(train=path, validation=path, test=path))["train"].examples()
    assert next(examples).document == text
    assert pa.default_memory_pool().bytes_allocated() - before < 400 * len(text) / 3
