"""What is said of a wrong value: for every key of the schema the key and a reason, for common mistakes what to write."""

import copy
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from distill.errors import InputError
from distill.recipe import Recipe
from distill.recipe_file import load_recipe, parse_recipe
from distill.validation import _sections

GOOD: dict[str, Any] = {
    "name": "good",
    "corpus": {"train": "corpus", "max_target_tokens": 12},
    "teachers": {"t": {"model": "./model", "train": {}, "evaluate": {}}},
    "labels": {"t": {"num_beams": 2}},
    "students": {"s": {"teacher": "t", "decoder_layers": 2, "train": {"seed": 1}, "evaluate": {"examples": 3}}},
    "train": {"steps": 4},
    "evaluate": {"every_steps": 2},
}
NAMES = {"teachers": "t", "labels": "t", "students": "s"}
WRONG: dict[str, Any] = {
    "0": 0,
    "-1": -1,
    "an empty text": "",
    "null": None,
    "an empty list": [],
    "an empty block": {},
    "nan": math.nan,
    "true": True,
    "a long text": "x" * 5000,
    "a list of blocks": [{"a": 1}],
    "a block with a number": {"a": 1},
}


def keys_of(block: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key that a recipe may have, with the names of `NAMES` in its tables."""
    for name, field in block.model_fields.items():
        path = (*above, name)
        yield path
        annotation = field.annotation
        if typing.get_origin(annotation) is dict:
            of_table = _sections(typing.get_args(annotation)[1])
            path = (*path, NAMES.get(name, "train"))
            yield path
        else:
            of_table = _sections(annotation)
        for section in of_table:
            yield from keys_of(section, path)


KEYS = list(keys_of(Recipe))


def with_value(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(GOOD)
    block = raw
    for part in path[:-1]:
        block = block.setdefault(part, {})
    block[path[-1]] = value
    return raw


def test_the_recipe_of_these_tests_is_good_and_its_keys_are_found() -> None:
    parse_recipe(GOOD)
    assert len(KEYS) > 250
    for key in ("corpus.max_examples.train", "students.s.objective.kl.beta", "teachers.t.evaluate.search.examples"):
        assert tuple(key.split(".")) in KEYS


@pytest.mark.parametrize("kind", WRONG)
def test_every_refusal_names_the_key_and_a_reason(kind: str) -> None:
    refused = 0
    for path in KEYS:
        try:
            parse_recipe(with_value(path, WRONG[kind]), "r.yaml")
        except InputError as error:
            heading, *lines = str(error).splitlines()
            refused += 1
            assert heading == "r.yaml is not a valid recipe:" and lines, f"{path}: {error}"
            for line in lines:
                reason = line.strip().partition(": ")[2]
                assert len(reason) > 5, f"{path}: {line!r}"
                assert len(line) < 1500, f"{path}: {line[:100]}..."
            named = [line.strip().partition(":")[0] for line in lines]
            assert any(_concerns(key, path) for key in named), f"{path}: {error}"
    assert refused > len(KEYS) / 4


def _concerns(key: str, path: tuple[str, ...]) -> bool:
    """Whether a line is about a key, a key beside or inside it, or a block around it."""
    parts = tuple(key.split("."))
    common = min(len(parts), len(path) - 1)
    return parts[:common] == path[:common] and (len(path) > 1 or parts[0] == path[0])


MISTAKES: dict[str, str] = {
    "evaluate.metric=rouge-1": "evaluate.metric: 'rouge-1' given; input should be 'rouge1', 'rouge2', 'rougeL', "
    "'rougeLsum', 'bleu' or 'chrf'; did you mean 'rouge1'?",
    "evaluate.metric=rougel": "did you mean 'rougeL'?",
    "train.precision=fp-32": "did you mean 'fp32'?",
    "corpus.max_examples=1000": "corpus.max_examples: 1000 given; expected the splits and their numbers, such as {train: 1000}",
    "corpus.max_examples.train=0": "corpus.max_examples.train: 0 given; input should be greater than 0",
    "students.s.objective.kl=0.8": "for example kl: {weight: 0.8}",
    "students.s.train=0": "students.s.train: 0 given; expected a block with the keys batch_examples",
    "students=s": "for example students: {small: {decoder_layers: 3, teacher: bart}}",
    "train.freeze=encoder": "train.freeze: 'encoder' given; input should be a valid list; for example freeze: [encoder]",
    "benchmark.batch_sizes=8": "for example batch_sizes: [8]",
    "labels.pl={}": "labels.pl: 'pl' is not among the teachers; set labels.pl.teacher to one of t",
    "name=my run": "name: 'my run' given; expected letters (a to z), digits, '.', '_' and '-', beginning with a letter",
    "students.a b.teacher=t": "students.a b: 'a b' given; expected letters (a to z), digits, '_' and '-', beginning",
}  # fmt: skip


@pytest.mark.parametrize("override", MISTAKES)
def test_a_common_mistake_is_told_what_to_write(override: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        load_recipe(file, [override])
    assert MISTAKES[override] in str(refused.value)


@pytest.mark.parametrize("content", ["name: x\n\tcorpus: y", "a: 1\na: 2", "name,corpus\nx: [y", "\x00"])
def test_a_file_that_is_no_yaml_is_named(content: str, tmp_path: Path) -> None:
    file = tmp_path / "my recipe.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        load_recipe(file)
    assert str(refused.value).startswith(f"{file} is not valid YAML") and "string>" not in str(refused.value)
    assert ("Indent with spaces" in str(refused.value)) == ("\t" in content)
