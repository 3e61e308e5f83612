"""Recipes from files: defaults < file < `key=value`; all errors at once, each with its dotted path and a hint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distill.errors import InputError
from distill.recipe import GOLD, Recipe
from distill.validation import explain, parse_yaml, read_yaml, shown_value

Pairs = tuple[tuple[str, str], ...]
EXCLUSIVE: dict[str, Pairs] = {
    "train": (("steps", "epochs"), ("batch_tokens", "batch_examples")),
    "evaluate": (("every_steps", "every_epochs"),),
}
"""Keys of a block of which one may be given."""


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override, validate. InputError lists every error with its dotted path."""
    raw = read_yaml(Path(path), "recipe", "name, corpus, teachers")
    for override in overrides or []:
        _apply_override(raw, override)
    return parse_recipe(raw, str(path))


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a recipe given as nested dictionaries."""
    for group in ("teachers", "labels", "students"):
        if isinstance(raw.get(group), dict):  # YAML reads the name 12 as a number
            raw = raw | {group: {str(name): member for name, member in raw[group].items()}}
    merged = _with_inherited(raw)
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        heading = f"{where} is not a valid recipe:"
        raise InputError(explain(error, Recipe, heading, lambda path: _is_inherited(raw, path))) from None
    wrong = [*_unknown_names(recipe), *_contradictions(recipe)]
    if wrong:
        raise InputError("\n".join([f"{where} is not a valid recipe:", *wrong]))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, itself a valid recipe: what teachers and students inherit is left to inherit."""
    data = recipe.model_dump(mode="json")
    shared = [teacher for teacher in data["teachers"].values() if teacher["run"]]  # they inherit nothing here
    inherits = [member for member in (*data["teachers"].values(), *data["students"].values()) if member not in shared]
    for member in inherits:
        for block in ("train", "evaluate"):
            if member[block] is not None:
                member[block] = {k: v for k, v in member[block].items() if v != data[block][k]}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as {dotted key: value}."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, child in value.items() for k, v in flatten(child, f"{prefix}.{key}".strip(".")).items()}


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"{override!r} given, expected key=value, for example train.learning_rate=3e-4.")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise InputError(f"{override!r}: {text!r} is not a YAML value. Quote it for your shell.") from None
    *parents, last = key.split(".")
    block = raw
    for depth, parent in enumerate(parents):
        if block.get(parent) is None:
            block[parent] = {}
        block = block[parent]
        if not isinstance(block, dict):
            path = ".".join(parents[: depth + 1])
            raise InputError(f"{override!r}: {path} holds a value, not a block of keys. Change the key.")
    block[last] = value


def _with_inherited(raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` with the `train` and `evaluate` blocks of every teacher and student laid over the recipe's."""
    merged = dict(raw)
    for group in ("teachers", "students"):
        members = raw.get(group)
        if isinstance(members, dict):
            merged[group] = {name: _inherit(raw, member, group) for name, member in members.items()}
    if not _trains(raw) and "train" not in raw:
        merged["train"] = {"steps": 1}  # nothing is trained: the block is never read
    return merged


def _trains(raw: dict[str, Any]) -> bool:
    teachers = raw.get("teachers")
    members = teachers.values() if isinstance(teachers, dict) else ()
    return bool(raw.get("students")) or any(isinstance(m, dict) and m.get("train") is not None for m in members)


def _inherit(raw: dict[str, Any], member: Any, group: str) -> Any:
    if not isinstance(member, dict) or (group == "teachers" and member.get("run")):
        return member
    inherited = dict(member)
    for block in ("train", "evaluate"):
        own = member.get(block)
        if group == "teachers" and block == "train" and own is None:
            continue  # a teacher without a train block is not trained
        if own is None or isinstance(own, dict):
            shared = raw.get(block)
            inherited[block] = _lay_over(shared if isinstance(shared, dict) else {}, own or {}, EXCLUSIVE[block])
    return inherited


def _lay_over(shared: dict[str, Any], own: dict[str, Any], exclusive: Pairs) -> dict[str, Any]:
    """`own` over `shared`; of two keys that exclude each other the own one wins."""
    merged = shared | own
    for block in ("generation", "search"):
        if isinstance(shared.get(block), dict) and isinstance(own.get(block), dict):
            merged[block] = shared[block] | own[block]
    for pair in exclusive:
        for one, other in (pair, pair[::-1]):
            if own.get(one) is not None and own.get(other) is None:
                merged[other] = None
    return merged


def _unknown_names(recipe: Recipe) -> Iterator[str]:
    teachers, sources = list(recipe.teachers), [GOLD, *recipe.labels]
    for name, student in recipe.students.items():
        if student.teacher not in teachers:
            yield _not_among(f"students.{name}.teacher", student.teacher, "the teachers", teachers)
        for source in student.train_on:
            if source not in sources:
                yield _not_among(f"students.{name}.train_on", source, "gold and the labels", sources)
    for name, labels in recipe.labels.items():
        if labels.is_made_here and (labels.teacher or name) not in teachers:
            if labels.teacher:
                yield _not_among(f"labels.{name}.teacher", labels.teacher, "the teachers", teachers)
            else:
                yield (
                    f"  labels.{name}: {name!r} is not among the teachers; set labels.{name}.teacher to one of "
                    f"{', '.join(teachers)}"
                )


def _contradictions(recipe: Recipe) -> Iterator[str]:
    if GOLD in recipe.labels:
        yield f"  labels.{GOLD}: this is the name of the gold summaries; give the labels another"
    for name, student in recipe.students.items():
        teacher = recipe.teachers.get(student.teacher)
        if teacher and teacher.cache and student.objective.needs_teacher and student.train_on != {GOLD: 1.0}:
            yield (
                f"  students.{name}.train_on: {', '.join(student.train_on)} given, but the cache of teacher "
                f"{student.teacher} holds what it says about the gold summaries; remove its cache, or train_on"
            )


def _not_among(key: str, given: str, what: str, valid: list[str]) -> str:
    return f"  {key}: {shown_value(given)} is not among {what}; expected one of {', '.join(valid)}"


def _is_inherited(raw: dict[str, Any], path: list[str]) -> bool:
    """Return whether an error at a member's train.KEY or evaluate.KEY was written in the recipe's own block."""
    if len(path) < 3 or path[0] not in ("teachers", "students") or path[2] not in ("train", "evaluate"):
        return False
    own = raw[path[0]][path[1]].get(path[2])
    shared = raw.get(path[2])
    if len(path) == 3:  # of the whole block: the member gives nothing of its own, or the recipe's is no block
        return path[2] in raw and (own is None or own == {} or not isinstance(shared, dict))
    own_keys = own if isinstance(own, dict) else {}
    return path[3] not in own_keys and isinstance(shared, dict) and path[3] in shared
