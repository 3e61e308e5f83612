import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.errors import InputError
from distill.recipe import Recipe
from distill.recipe_file import dump_recipe, flatten, load_recipe, parse_recipe
from distill.validation import parse_yaml

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes").rglob("*.yaml"))


def recipe(**changes: Any) -> dict[str, Any]:
    base = {
        "name": "x",
        "corpus": {"train": "docstrings"},
        "teachers": {"t": {"model": "some/model"}},
        "students": {"s": {"teacher": "t", "decoder_layers": 2}},
        "train": {"steps": 10},
    }
    return base | changes


def write(path: Path, raw: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", recipe(train={"steps": 10, "warmup_steps": 7}))
    loaded = load_recipe(path, ["train.learning_rate=3e-4", "train.steps=20", "students.s.decoder_layers=[0, 2]"])
    assert (loaded.train.learning_rate, loaded.train.steps, loaded.train.warmup_steps) == (3e-4, 20, 7)
    assert loaded.train.clip_norm == 1.0 and loaded.students["s"].decoder_layers == [0, 2]


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "+3e-4", ".3e-3"])
def test_scientific_notation_is_a_number(text: str) -> None:
    assert parse_yaml(text) == pytest.approx(3e-4) and isinstance(parse_yaml(text), float)


def test_members_inherit_and_override() -> None:
    raw = recipe(
        train={"steps": 10, "freeze": ["encoder"]},
        evaluate={"num_beams": 3},
        students={"a": {"teacher": "t"}, "b": {"teacher": "t", "train": {"epochs": 2, "freeze": []}}},
    )
    loaded = parse_recipe(raw)
    a, b = loaded.students["a"], loaded.students["b"]
    assert a.train == loaded.train and a.evaluate.num_beams == 3
    assert (b.train.steps, b.train.epochs, b.train.freeze) == (None, 2, [])


def test_of_two_keys_that_exclude_each_other_the_members_own_wins() -> None:
    raw = recipe(
        evaluate={"every_steps": 5},
        students={
            "a": {"teacher": "t", "evaluate": {"every_epochs": 0.5}},
            "b": {"teacher": "t", "evaluate": {"every_steps": 7}},
        },
    )
    for loaded in (parse_recipe(raw), parse_recipe(parse_yaml(dump_recipe(parse_recipe(raw))))):
        intervals = [(s.evaluate.every_steps, s.evaluate.every_epochs) for s in loaded.students.values()]
        assert intervals == [(None, 0.5), (7, None)]
    again = parse_recipe(recipe(evaluate={"every_epochs": 0.5}, students=raw["students"]))
    assert again.evaluate.every_steps is None and again.students["b"].evaluate.every_epochs is None


def test_the_resolved_recipe_is_a_recipe() -> None:
    raw = recipe(students={"a": {"teacher": "t"}, "b": {"teacher": "t", "train": {"epochs": 2, "batch_tokens": 900}}})
    loaded = parse_recipe(raw)
    assert parse_recipe(parse_yaml(dump_recipe(loaded))) == loaded
    # An override of the resolved recipe still reaches those who inherit.
    again = parse_yaml(dump_recipe(loaded))
    again["train"]["learning_rate"] = 1.0
    assert parse_recipe(again).students["a"].train.learning_rate == 1.0


def test_every_error_at_once_with_its_path() -> None:
    raw = recipe(
        nam="y",
        train={"steps": -1, "zero_stage": 7, "warmup": 3},
        students={"s": {"teacher": "t", "learning_rate": 1, "train": {"freeze": ["decoder"]}}},
    )
    with pytest.raises(InputError) as error:
        parse_recipe(raw)
    message = str(error.value)
    for part in (
        "nam: unknown key; did you mean 'name'?",
        "train.steps: -1 given",
        "train.zero_stage: 7 given; input should be 0, 1, 2 or 3",
        "train.warmup: unknown key; did you mean 'warmup_steps'?",
        "students.s.learning_rate: unknown key; did you mean 'train.learning_rate'?",
        "students.s.train.freeze.0: 'decoder' given; input should be 'encoder' or 'embeddings'",
    ):
        assert part in message
    assert message.count("-1 given") == 1, "an inherited error is reported once"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": {"s": {"teacher": "q"}}}, "students.s.teacher: 'q' is not among the teachers; expected one of t"),
        ({"teachers": {"t": {}}}, "teachers.t: give one of model"),
        ({"teachers": {"t": {"model": "a", "tokenizer": {"kind": "bpe", "vocabulary": 400}}}}, "go together"),
        ({"train": {}}, "train: give one of steps and epochs"),
        ({"train": {"steps": 1, "epochs": 1}}, "give one of steps and epochs"),
        ({"train": {"steps": 1, "batch_tokens": 5}}, "give one of batch_examples and batch_tokens"),
        ({"train": {"steps": 1, "precision": "bf16", "zero_stage": 0}}, "bf16 needs zero_stage 1, 2 or 3"),
        (
            {"train": {"steps": 1, "precision": "fp16"}},
            "of Pegasus and T5 (mT5, LongT5, their other relatives) overflow in fp16",
        ),
        (
            {"teachers": {"t": {"model": "a", "precision": "fp16"}}},
            "teachers.t.precision: 'fp16' given; activations of Pegasus",
        ),
        ({"train": {"steps": 1, "optimizer": "adafactor"}}, "adafactor needs zero_stage 0"),
        ({"train": {"steps": 1, "offload": "cpu", "zero_stage": 1}}, "offload needs zero_stage 2 or 3"),
        ({"train": {"steps": 1, "schedule": "step"}}, "train.schedule: 'step' given"),
        ({"train": {"steps": 1, "seed": -1}}, "train.seed: -1 given"),
        ({"evaluate": {"every_steps": 5, "every_epochs": 0.5}}, "give one of every_steps and every_epochs"),
        ({"evaluate": {"every_steps": None}}, "give one of every_steps and every_epochs"),
        ({"evaluate": {"early_stopping": {"patience": 0}}}, "evaluate.early_stopping.patience: 0 given"),
        ({"benchmark": {"batch_sizes": []}}, "benchmark.batch_sizes"),
        ({"train": {"epochs": float("inf")}}, "train.epochs"),
        ({"train": {"steps": True}}, "not true or false"),
        ({"corpus": {"train": "docstrings", "document": "summary"}}, "both the field 'summary'"),
        ({"train": 5}, "train: 5 given"),
        ({"name": "../x"}, "name: '../x' given"),
        ({"students": {"a b": {"teacher": "t"}}}, "students.a b"),
        ({"teachers": {}}, "teachers"),
        ({"corpus": None}, "corpus"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_recipe(recipe(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "holds list"), ("name: a\nname: b", "'name' stands twice"), ("", "NoneType")],
)
def test_a_file_that_is_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_recipe(path)


def test_a_missing_file_and_wrong_overrides(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")
    path = write(tmp_path / "r.yaml", recipe())
    for override, message in (
        ("steps", "expected key=value"),
        ("name.x=1", "holds a value"),
        ("a=[", "no YAML|not a YAML"),
    ):
        with pytest.raises(InputError, match=message):
            load_recipe(path, [override])


def test_generation_settings_are_inherited_one_by_one() -> None:
    raw = recipe(
        evaluate={"generation": {"num_beams": 4, "length_penalty": 0.5}},
        students={"s": {"teacher": "t", "evaluate": {"generation": {"num_beams": 8}}}},
    )
    loaded = parse_recipe(raw)
    generation = loaded.students["s"].evaluate.generation
    assert (generation.num_beams, generation.length_penalty) == (8, 0.5)
    assert parse_recipe(parse_yaml(dump_recipe(loaded))) == loaded


def test_names() -> None:
    assert list(parse_recipe(recipe(students={12: {"teacher": "t"}})).students) == ["12"]
    with pytest.raises(InputError, match=r"students\.v1\.0"):
        parse_recipe(recipe(students={"v1.0": {"teacher": "t"}}))


def test_one_message_for_a_value_of_several_kinds() -> None:
    with pytest.raises(InputError) as error:
        parse_recipe(recipe(students={"s": {"teacher": "t", "decoder_layers": 0}}))
    assert str(error.value).count("students.s.decoder_layers") == 1 and "constrained" not in str(error.value)


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_loads(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_the_json_schema_is_current() -> None:
    schema = ROOT / "jobs" / "recipes" / "recipe.schema.json"
    assert json.loads(schema.read_text(encoding="utf-8")) == Recipe.model_json_schema(), "run `make schema`"
