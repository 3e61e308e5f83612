"""Opening a run: what its recipe may still change since it was begun. No torch."""

import re
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.files import check_writable, write_text
from distill.recipe import Recipe
from distill.recipe_file import dump_recipe, flatten, load_recipe
from distill.run import LabelSet, Member, Run

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

SEARCH = re.compile(r"((teachers|students)\.[^.]+\.)?evaluate\.search(\..+)?")


def open_run(recipe: Recipe, runs: Path) -> Run:
    """The run of a recipe: its directory is made, or the recipe is compared with the one the run began with.

    Until the corpus is prepared nothing depends on the recipe yet, and it may still change.
    """
    run = Run(recipe, runs / recipe.name)
    check_writable(run.folder)
    check_unchanged(run)
    text = dump_recipe(recipe)
    if not run.recipe_file.exists() or run.recipe_file.read_text(encoding="utf-8") != text:
        write_text(run.recipe_file, text)
    return run


def check_unchanged(run: Run) -> None:
    """InputError where the run began with another recipe and has, or had, its corpus already."""
    if run.recipe_file.exists() and (run.corpus.exists() or run.corpus_record.exists()):
        refuse_changes(load_recipe(run.recipe_file), run.recipe, run.folder)


def refuse_changes(begun: Recipe, now: Recipe, folder: Path) -> None:
    """InputError that names every key that differs; new teachers, new students and FREE_KEYS may change."""
    old, new = (flatten(recipe.model_dump(mode="json")) for recipe in (begun, now))
    changed = [
        f"  {key}: {_shown(old, key)} when the run began, {_shown(new, key)} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _may_change(key, begun, folder) and not _echoes(key, old, new)
    ]
    if changed:
        raise InputError(
            "\n".join(
                [
                    f"the recipe has changed since {folder} was begun:",
                    *changed,
                    "Expected the same recipe. Change these keys back, give the recipe another name "
                    f"(name=...), or delete {folder}.",
                ]
            )
        )


def _may_change(key: str, begun: Recipe, folder: Path) -> bool:
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    known: dict[str, Any] = {"students": begun.students, "teachers": begun.teachers, "labels": begun.labels}
    is_new = group in known and name not in known[group]
    if group == "labels" and name in begun.labels and _labels_may_change(rest, name, begun, folder):
        return True
    if SEARCH.fullmatch(key) and _search_may_change(key, begun, folder):
        return True
    batches = re.fullmatch(r"labels\.[^.]+\.batch_tokens", key) is not None
    return is_new or batches or key.endswith(FREE_KEYS) or group in ("benchmark", "report", "wandb")


def _labels_may_change(rest: str, name: str, begun: Recipe, folder: Path) -> bool:
    """As long as nothing was made of a label set; the rules of its merge as long as no student has read them."""
    labels = LabelSet(name, folder / "labels" / name, begun.labels[name])
    if not labels.is_begun():
        return True
    readers = [student for student, settings in begun.students.items() if name in settings.train_on]
    is_read = any((folder / "students" / student / "metrics.jsonl").exists() for student in readers)
    return rest.startswith((f"{name}.keep_if", f"{name}.best_of.by")) and not is_read


def _search_may_change(key: str, begun: Recipe, folder: Path) -> bool:
    """A member's, as long as nothing was decoded by it; the recipe's own acts only through those of the members."""
    if key.startswith("evaluate."):
        return True
    group, name = key.split(".")[:2]
    sets = [LabelSet(each, folder / "labels" / each, settings) for each, settings in begun.labels.items()]
    labelled = group == "teachers" and any(labels.teacher == name and labels.is_decoded() for labels in sets)
    return not labelled and not Member("teachers", name, folder / group / name).has_decoded()


def _echoes(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """True for students.NAME.train.KEY where train.KEY itself changed in the same way: it is reported once."""
    if SEARCH.fullmatch(key):
        return False  # only the members' own are looked at
    for block in (".train.", ".evaluate."):
        if block in key:
            shared = block.strip(".") + "." + key.partition(block)[2]
            return (old.get(shared), new.get(shared)) == (old.get(key), new.get(key))
    return False


def _shown(flat: dict[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "absent"
