"""Keys whose default has changed: a run that was begun before keeps the old value. No torch."""

from pathlib import Path
from typing import Any

from distill.recipe import Recipe, Teacher
from distill.recipe_file import load_recipe
from distill.run import Run
from distill.sections import Train

OLD_WARMUP_STEPS = 500
"""The default of `train.warmup_steps` before it became a share of the steps."""


def with_begun_defaults(recipe: Recipe, runs: Path) -> Recipe:
    """Return the recipe, with the old defaults if its run was begun with them."""
    run = Run(recipe, runs / recipe.name)
    if not run.recipe_file.exists() or not (run.corpus.exists() or run.corpus_record.exists()):
        return recipe
    begun = load_recipe(run.recipe_file)
    update: dict[str, Any] = {"train": _with_old_warmup(recipe.train, begun.train)}
    for group in ("teachers", "students"):
        before = getattr(begun, group)
        members = {}
        for name, member in getattr(recipe, group).items():
            if isinstance(member, Teacher) and member.run:  # another run decides its keys
                members[name] = member
                continue
            old = before[name].train if name in before else begun.train
            train = _with_old_warmup(member.train, old or begun.train)
            members[name] = member.model_copy(update={"train": train})
        update[group] = members
    return recipe.model_copy(update=update)


def _with_old_warmup(train: Train | None, begun: Train) -> Train | None:
    if train is None or train.warmup_steps is not None or begun.warmup_steps != OLD_WARMUP_STEPS:
        return train
    return train.model_copy(update={"warmup_steps": OLD_WARMUP_STEPS})
