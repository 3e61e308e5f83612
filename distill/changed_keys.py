"""Which keys of a recipe differ from those that its run was begun with, and how to say so. No torch."""

import re
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.files import read_json
from distill.recipe import Recipe
from distill.recipe_file import flatten
from distill.run import Run

# Keys that change how fast or how safely something is computed, but not what comes out (with dropout, the size of the
# micro-batches decides which random masks are drawn, as the number of processes does).
FREE_KEYS = (
    "micro_batch_tokens",
    "save_every_steps",
    "keep_checkpoints",
    "keep_every_steps",
    "zero_stage",
    "offload",
    "gradient_checkpointing",
    "log_every_steps",
    "evaluate.batch_tokens",
)
FREE_BLOCKS = ("benchmark", "report", "wandb")
"""Only the benchmark and the report read them, and see by themselves what has changed."""
INHERITED = ("train", "evaluate")
"""Blocks of the recipe that matter only as its teachers and students inherit them."""
GROUPS = ("teachers", "labels", "students")
CONTENT = ".content"
"""Ends the key of the hash of what a recipe reads from elsewhere."""
TEMPERATURES = ".cache.temperatures"
REMOVED = "removed.json"
"""In the folder of what left the recipe: the settings with which it was made."""


def flat_recipe(run: Run, hashes: dict[str, str], now: Run | None = None) -> dict[str, Any]:
    """Return a recipe by dotted keys, the hashes of what it reads from elsewhere among them.

    With `now`, models and label sets that left the recipe and are back there are among them, as they were made.
    """
    blocks = run.recipe.model_dump(mode="json")
    for group in GROUPS if now else ():
        assert now is not None
        for name in names_in(now, group) - names_in(run, group):
            file = run.folder / group / name / REMOVED
            if file.exists():
                blocks[group][name] = read_json(file)["settings"]
    given = {name: block for name, block in blocks.items() if block or name not in GROUPS}  # an empty group has no keys
    return flatten(given) | hashes


def changed_keys(old: dict[str, Any], new: dict[str, Any], now: Run) -> list[str]:
    """Return the keys of teachers, labels and students of both recipes that differ and decide what comes out."""
    known = {subject_of(key) for key in old if key.split(".")[0] in GROUPS}
    keys = [key for key in differing_keys(old, new) if subject_of(key) in known and is_subject(now, key)]
    gone = {key for key in keys if key.endswith(CONTENT) and not (key in old and key in new)}
    return [key for key in keys if key not in gone]


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return all keys that differ, those left out that decide nothing."""
    return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and not _is_free(key)]


def _is_free(key: str) -> bool:
    batches = re.fullmatch(r"labels\.[^.]+\.batch_tokens", key) is not None
    return batches or key.endswith(FREE_KEYS) or key.split(".")[0] in (*FREE_BLOCKS, *INHERITED)


def refuse_fixed(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raise InputError if a key has changed on which everything depends."""
    changed = [line_of(key, old, new) for key in differing_keys(old, new) if key.split(".")[0] not in GROUPS]
    if changed:
        raise InputError(
            "\n".join(
                [
                    f"the recipe has changed since {folder} was begun:",
                    *changed,
                    "Everything in the run was made with these keys. Change them back, give the recipe another name "
                    f"(name=...), or delete {folder}.",
                ]
            )
        )


def caches_without(begun: Recipe, now: Recipe) -> list[str]:
    """Return the key of each top_k cache that was not made for the temperatures of now."""
    lacking = []
    for name, teacher in now.teachers.items():
        needed = _temperatures(now, name)
        taught = [student for student, one in now.students.items() if one.teacher == name]
        known = [student for student in taught if student in begun.students]
        same = all(_temperature(begun, student) == _temperature(now, student) for student in known)
        was_made = name in begun.teachers and teacher.cache is not None and teacher.cache.keep == "top_k"
        if was_made and not (same and needed <= _temperatures(begun, name)):
            lacking.append(f"teachers.{name}{TEMPERATURES}")
    return lacking


def _temperatures(recipe: Recipe, teacher: str) -> set[float]:
    mine = [student for student, settings in recipe.students.items() if settings.teacher == teacher]
    return {found for student in mine if (found := _temperature(recipe, student)) is not None}


def _temperature(recipe: Recipe, student: str) -> float | None:
    kl = recipe.students[student].objective.kl
    return kl.temperature if kl else None


def line_of(key: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return `key: old when the run began, new now`; of what is inherited the recipe's own key."""
    key = _as_written(key, old, new)
    if key.endswith(CONTENT):
        return f"  {key.removesuffix(CONTENT)}: what it names has changed since it was read"
    if key.endswith(TEMPERATURES):
        return f"  {key.removesuffix('.temperatures')}: top_k was computed for other temperatures of the students' kl"
    if key.split(".")[0] in GROUPS and key == subject_of(key):
        return f"  {key}: its folder holds what was made with other settings"
    return f"  {key}: {_shown(old, key)} when the run began, {_shown(new, key)} now"


def _as_written(key: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the recipe's own key if a model inherits the change from it."""
    for block in INHERITED:
        model, _, rest = key.partition(f".{block}.")
        shared = f"{block}.{rest}"
        changed = (old.get(key), new.get(key))
        if rest and model.count(".") == 1 and (old.get(shared), new.get(shared)) == changed:
            return shared
    return key


def _shown(flat: dict[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "absent"


def subject_of(key: str) -> str:
    """Return the `group.name` of a key."""
    return ".".join(key.split(".")[:2])


def names_in(run: Run, group: str) -> set[str]:
    """Return the names of the recipe's teachers, labels or students."""
    return set(getattr(run.recipe, group))


def is_subject(run: Run, key: str) -> bool:
    """True if the key is that of a model or a label set of the recipe."""
    group, name = key.split(".")[:2]
    return group in GROUPS and name in names_in(run, group)
