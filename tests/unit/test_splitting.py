"""A split by the project: near-duplicates on one side, the same twice, and as many as asked."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill import duplicates
from distill.corpus import prepare_corpus, read_split
from distill.corpus_settings import Corpus
from distill.duplicates import alike_between, groups_of_alike, sketch
from distill.errors import InputError
from distill.splitting import choose_splits, fill
from tests.conftest import make_rows

COUNTS = {"validation": 60, "test": 90}


def texts_with_copies(count: int, seed: int = 1) -> list[str]:
    """Documents of random words; a third of them are copies of earlier ones, most with a few words changed."""
    generator = random.Random(seed)
    words = [f"w{number}" for number in range(2000)]
    texts: list[str] = []
    for number in range(count):
        text = generator.choices(words, k=generator.randint(40, 200))
        if number % 3 == 2:
            text = generator.choice(texts).split()
            if number % 2:
                text[generator.randrange(len(text))] = "changed"
        texts.append(" ".join(text))
    generator.shuffle(texts)
    return texts


@pytest.fixture(scope="module")
def sketches() -> duplicates.Sketches:
    return np.stack([sketch(text) for text in texts_with_copies(600)])


def leaks(sketches: duplicates.Sketches, splits: Any) -> int:
    sides = [sketches[splits == name] for name in ("train", "validation", "test")]
    return sum(alike_between(sides[i], sides[j]) for i in range(3) for j in range(3) if i != j)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_near_duplicate_stands_on_two_sides(seed: int, sketches: duplicates.Sketches) -> None:
    splits = choose_splits(sketches, COUNTS, seed)
    assert {name: int((splits == name).sum()) for name in COUNTS} == COUNTS
    assert leaks(sketches, splits) == 0
    at_random = np.random.default_rng(seed).permutation(splits)
    assert leaks(sketches, at_random) > 10, "else this test would find nothing"


def test_it_is_the_same_twice_and_another_seed_differs(sketches: duplicates.Sketches) -> None:
    splits = choose_splits(sketches, COUNTS, 3)
    assert (splits == choose_splits(sketches, COUNTS, 3)).all()
    assert (splits != choose_splits(sketches, COUNTS, 4)).sum() > 50


def test_groups_hold_all_pairs_that_are_alike(sketches: duplicates.Sketches) -> None:
    groups = groups_of_alike(sketches)
    same = (sketches[:, None] == sketches[None]).mean(axis=2) >= duplicates.ALIKE
    one, other = np.nonzero(same)
    shares_a_band = np.zeros(len(one), dtype=bool)
    for keys in duplicates._bands(sketches):
        shares_a_band |= keys[one] == keys[other]
    assert (groups[one] == groups[other])[shares_a_band].all()
    assert 1.2 * len(np.unique(groups)) < len(sketches), "there are groups"
    merged = groups[:, None] == groups[None]
    assert (merged & ~same).sum() < 0.05 * merged.sum(), "hardly any but documents that are alike"


def test_a_large_bucket_is_one_group(sketches: duplicates.Sketches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never less is kept together than by comparing all pairs."""
    exact = groups_of_alike(sketches)
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 2)
    coarse = groups_of_alike(sketches)
    for group in np.unique(exact):
        assert len(np.unique(coarse[exact == group])) == 1


@pytest.mark.parametrize(
    ("sizes", "count", "total"),
    [([1] * 9, 4, 4), ([2] * 9, 5, 4), ([3] * 9, 5, 6), ([3] * 9, 4, 3), ([50, 1, 1], 2, 2), ([5, 9], 1, 0)],
)
def test_counts_are_as_near_as_the_groups_come(sizes: list[int], count: int, total: int) -> None:
    assert sum(sizes[group] for group in fill(list(range(len(sizes))), np.array(sizes), count)) == total


def write(path: Path, texts: list[str]) -> str:
    rows = [{"id": str(n), "document": text, "summary": text[:20]} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(train: str, out: Path, seed: int = 1, **keys: Any) -> dict[str, list[dict[str, str]]]:
    prepare_corpus(Corpus(train=train, **keys), seed, out)
    return {split: read_split(out / f"{split}.parquet") for split in ("train", "validation", "test")}


def test_one_file_is_split_and_nothing_is_lost(tmp_path: Path) -> None:
    texts = texts_with_copies(300)
    path = write(tmp_path / "all.jsonl", [*texts, " ", texts[0]])
    splits = prepared(path, tmp_path / "a", split={"validation": 30, "test": 40})
    assert [len(splits[name]) for name in ("validation", "test")] == [30, 40]
    numbers = [[int(row["id"]) for row in rows] for rows in splits.values()]
    assert sorted(itertools.chain(*numbers)) == [*range(300), 301] and all(some == sorted(some) for some in numbers)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())["splits"]
    assert {name: manifest[name]["near_duplicates_in_train"] for name in COUNTS} == {"validation": 0, "test": 0}
    assert [manifest[name]["read"] for name in splits] == [232, 30, 40]
    assert [manifest[name]["dropped"] for name in splits] == [{"empty document": 1}, {}, {}]
    assert splits == prepared(path, tmp_path / "b", split={"validation": 30, "test": 40})
    other = prepared(path, tmp_path / "c", seed=2, split={"validation": 30, "test": 40})
    assert {row["id"] for row in other["test"]} != {row["id"] for row in splits["test"]}


def test_shards_are_split_as_the_whole(tmp_path: Path) -> None:
    texts = texts_with_copies(200)
    whole = prepared(write(tmp_path / "all.jsonl", texts), tmp_path / "a", split={"test": 20, "validation": 20})
    lines = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
    for number in range(2):
        name = f"part-{number:05d}-of-00002.jsonl"
        (tmp_path / name).write_text("".join(lines[100 * number : 100 * (number + 1)]))
    parts = prepared(str(tmp_path / "part-*"), tmp_path / "b", split={"test": 20, "validation": 20})
    assert parts == whole


def test_only_validation_is_taken_and_a_sample_of_train(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [row["document"] for row in make_rows(9)])
    write(tmp_path / "train.jsonl", texts_with_copies(200))
    keys: dict[str, Any] = {"split": {"validation": 20}, "max_examples": {"train": 50}}
    splits = prepared(str(tmp_path), tmp_path / "a", **keys)
    assert [len(rows) for rows in splits.values()] == [50, 20, 9]
    assert splits == prepared(str(tmp_path / "train.jsonl"), tmp_path / "b", test=test, **keys)


WRONG: dict[str, tuple[list[str], dict[str, int], str]] = {
    "too many": (
        texts_with_copies(60),
        {"validation": 30, "test": 30},
        r"\{validation: 30, test: 30\} given, but .* 60",
    ),
    "all alike": (["a b c d e f g", "A b c d e f g", "a b c d e f g."], {"test": 1}, "smallest group has 3 of the 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_split_that_cannot_be_made(name: str, tmp_path: Path) -> None:
    texts, split, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        prepared(write(tmp_path / "all.jsonl", texts), tmp_path / "a", validation=str(tmp_path / "all.jsonl")
                 if "validation" not in split else None, split=split)  # fmt: skip
    assert not (tmp_path / "a").exists()


def test_a_split_that_is_there_is_not_taken(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", texts_with_copies(9))
    with pytest.raises(InputError, match=r"corpus.split.test: given, but .* has a test split"):
        prepared(str(tmp_path), tmp_path / "a", split={"test": 2, "validation": 2})
    with pytest.raises(InputError, match=r"corpus.split: given, but 'docstrings' has"):
        prepared("docstrings", tmp_path / "a", split={"test": 2, "validation": 2})
