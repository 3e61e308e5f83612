"""Token ids: made once, read from one file, the same as the tokenizer's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from distill.corpus import prepare_corpus
from distill.corpus_settings import Corpus
from distill.data import tokenize_corpus, training_tokens
from distill.errors import InputError
from distill.recipe_file import parse_recipe
from distill.run import Run
from distill.tokens import SCHEMA, Encoder, TokenRows, hash_rows, table_tokens, tokenize
from tests.conftest import make_rows, write_corpus


@pytest.fixture
def table(tmp_path: Path) -> Path:
    prepare_corpus(Corpus(train=str(write_corpus(tmp_path / "c"))), 1, tmp_path / "corpus")
    return tmp_path / "corpus" / "train.parquet"


def test_a_file_has_what_the_tokenizer_says(tokenizer: Any, table: Path, tmp_path: Path) -> None:
    encoder = Encoder(tokenizer, 20, 5, prefix="say: ")
    source, cut = table_tokens(encoder, table, "document", tmp_path / "tokens")
    expected = [
        tokenizer("say: " + row["document"], truncation=True, max_length=20)["input_ids"] for row in make_rows(64)
    ]
    assert list(source) == expected and source.lengths() == [len(row) for row in expected]
    whole = [len(tokenizer("say: " + row["document"])["input_ids"]) for row in make_rows(64)]
    assert cut.tolist() == [length > 20 for length in whole] and 0 < cut.sum() < 64
    target, _ = table_tokens(encoder, table, "summary", tmp_path / "tokens")
    assert target[3] == tokenizer(text_target=make_rows(64)[3]["summary"], truncation=True, max_length=5)["input_ids"]
    assert tokenize(encoder, make_rows(64)).source == list(source)


def test_made_once_and_found_again_by_a_saved_tokenizer(tokenizer: Any, table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    table_tokens(Encoder(tokenizer, 20, 5), table, "document", folder)
    [made] = folder.iterdir()
    before = made.stat()
    tokenizer.save_pretrained(tmp_path / "t")
    again = AutoTokenizer.from_pretrained(tmp_path / "t")
    again("x" * 99, truncation=True, max_length=3)  # leaves its mark in the tokenizer
    for other in (again, tokenizer):
        table_tokens(Encoder(other, 20, 9), table, "document", folder)
    assert [path.name for path in folder.iterdir()] == [made.name]
    assert made.stat().st_ino == before.st_ino and made.stat().st_mtime_ns == before.st_mtime_ns


def test_another_text_limit_prefix_or_tokenizer_is_another_file(tokenizer: Any, table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    tokenizer.save_pretrained(tmp_path / "t")
    other = AutoTokenizer.from_pretrained(tmp_path / "t")
    other.add_tokens(["zebra"])
    left = AutoTokenizer.from_pretrained(tmp_path / "t", truncation_side="left")
    encoders = [
        Encoder(tokenizer, 20, 5), Encoder(tokenizer, 21, 5), Encoder(tokenizer, 20, 5, "p: "), Encoder(other, 20, 5),
        Encoder(left, 20, 5),
    ]  # fmt: skip
    for encoder in encoders:
        table_tokens(encoder, table, "document", folder)
    table_tokens(encoders[0], table, "summary", folder)
    table_tokens(encoders[0], table.with_name("test.parquet"), "document", folder)
    assert len(list(folder.iterdir())) == 7


def test_a_tokenizer_that_cuts_the_beginning(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    left, text = AutoTokenizer.from_pretrained(tmp_path, truncation_side="left"), "lazy dog " * 5000 + "old stone"
    assert Encoder(left, 20, 5)([text], "source")[0] == left([text], truncation=True, max_length=20)["input_ids"]


def test_a_torn_file_is_named(tokenizer: Any, table: Path, tmp_path: Path) -> None:
    table_tokens(Encoder(tokenizer, 20, 5), table, "document", tmp_path / "tokens")
    [made] = (tmp_path / "tokens").iterdir()
    made.write_bytes(made.read_bytes()[:100])
    with pytest.raises(InputError, match=r"is torn .*Delete it"):
        table_tokens(Encoder(tokenizer, 20, 5), table, "document", tmp_path / "tokens")


def test_rows_that_are_chosen_and_joined() -> None:
    one, other = TokenRows.of([[1, 2], [], [3]]), TokenRows.of([[4], [5, 6, 7]])
    both = one.chosen([2, 0, 0]) + other
    assert list(both) == [[3], [1, 2], [1, 2], [4], [5, 6, 7]]
    assert both.lengths() == [1, 2, 2, 1, 3] and both[-1] == [5, 6, 7] and both[1:3] == [[1, 2], [1, 2]]
    assert list(both.chosen([4, 1]).chosen([1])) == [[1, 2]]
    with pytest.raises(IndexError):
        both[5]
    assert hash_rows(both) == hash_rows([[3], [1, 2], [1, 2], [4], [5, 6, 7]]) != hash_rows(one)


def test_files_are_mapped_not_read(tokenizer: Any, table: Path, tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    rows, _ = table_tokens(Encoder(tokenizer, 20, 5), table, "document", tmp_path / "tokens")
    assert pa.total_allocated_bytes() - before < 1000 < rows._chunks.nbytes
    assert rows._chunks.type == SCHEMA.field("ids").type


def test_what_jobs_read_is_there_after_preparing(tokenizer: Any, tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            "name": "r",
            "corpus": {"train": str(write_corpus(tmp_path / "c"))},
            "teachers": {"t": {"model": str(tmp_path)}},
            "train": {"steps": 1},
        }
    )
    run, encoder = Run(recipe, tmp_path / "run"), Encoder(tokenizer, 20, 5)
    prepare_corpus(recipe.corpus, 1, run.corpus)
    tokenize_corpus(run, encoder, "t")
    made = sorted(run.tokens.iterdir())
    tokens, ids = training_tokens(run, encoder, {"gold": 1.5})
    assert sorted(run.tokens.iterdir()) == made, "nothing new was made"
    assert len(tokens) == len(ids) == 96 and ids[:64] == [row["id"] for row in make_rows(64)]
    numbers = np.array([int(name[1:]) for name in ids[64:]])
    assert [tokens.source[64 + i] for i in range(32)] == [tokens.source[int(n)] for n in numbers]
    assert tokens.truncated["documents"] > 0 and json.dumps(tokens.truncated)
