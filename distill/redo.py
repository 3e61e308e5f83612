"""What is done again: which stages a changed key reaches, what depends on them, what they have made. No torch."""

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from distill.recipe import Labels, Recipe
from distill.run import LabelSet, Member, Run
from distill.stages import Stage, stage_name, stages

SHOW = ("benchmark", "report")
"""Stages that see by themselves that they are out of date."""

EVALUATION = {
    "generation": ("search", "evaluate"),
    "search": ("search", "evaluate"),
    "metric": ("train", "search"),
    "bleu_tokenize": ("train", "search", "evaluate"),
    "shards": ("search", "evaluate"),
}
"""The jobs of a model that read a key of `evaluate`; the other keys are those of the validation during training.

`generation` decodes the validation too, but it changes no step's weights: the training stands.
"""


# ------------------------------------------------------------------------------------------------ from keys to stages


def stages_of_key(key: str, begun: Recipe, now: Recipe) -> set[str]:
    """Return the names of the stages that read a key, which differs between two recipes of a run.

    They need not be stages of the run. What depends on them is found by `depending`.
    """
    group, name, *rest = key.split(".")
    if group == "students":
        return {f"{job}-student-{name}" for job in _jobs_of_student(rest)}
    if group == "labels":
        is_shared = any(recipe.labels[name].run for recipe in (begun, now) if name in recipe.labels)
        return {f"{job}-{name}" for job in _jobs_of_labels(rest)} | (
            readers_of_labels(name, now) if is_shared else set()
        )
    if rest[0] == "train" and len(rest) > 1:
        return {f"train-teacher-{name}"}
    if rest[0] == "evaluate":
        jobs = EVALUATION.get(rest[1], ("train",))
        reached = {f"{job}-teacher-{name}" for job in jobs}
        return reached | (_labels_decoded_by(name, rest[2:], now) if rest[1] == "generation" else set())
    if rest[0] == "cache":
        return {f"cache-teacher-{name}"}
    if rest[0] == "precision":
        return {f"cache-teacher-{name}"} | _readers_of_precision(name, now)
    return users_of_teacher(name, begun) | users_of_teacher(name, now)


def _jobs_of_student(rest: Sequence[str]) -> tuple[str, ...]:
    if rest[0] == "evaluate":
        return EVALUATION.get(rest[1], ("train",))
    return ("train",) if rest[0] in ("train", "train_on", "objective") else ("shrink",)


def _jobs_of_labels(rest: Sequence[str]) -> tuple[str, ...]:
    if rest[0] == "keep_if" or list(rest) == ["best_of", "by"] or rest[0] == "file":
        return ("merge",)
    if rest[0] in ("documents", "max_documents"):
        return ("documents", "convert", "label", "merge")
    return ("convert", "label", "merge")


def _labels_decoded_by(teacher: str, key: Sequence[str], recipe: Recipe) -> set[str]:
    """Return the first stages of the labels that take a decoding key from their teacher."""
    taken = [
        name
        for name, labels in recipe.labels.items()
        if _teacher_of(name, labels) == teacher and not (key and getattr(labels, key[0], None) is not None)
    ]
    return {f"{job}-{name}" for name in taken for job in ("convert", "label")}


def _readers_of_precision(teacher: str, recipe: Recipe) -> set[str]:
    """Return the stages in which a teacher computes in its own precision, its cache left out."""
    labels = [name for name, one in recipe.labels.items() if _teacher_of(name, one) == teacher and not one.precision]
    taught = [name for name, one in recipe.students.items() if one.teacher == teacher and one.objective.needs_teacher]
    return {f"label-{name}" for name in labels} | {f"train-student-{name}" for name in taught}


def users_of_teacher(teacher: str, recipe: Recipe) -> set[str]:
    """Return all stages of a teacher, and the first ones of its labels and students."""
    own = {f"{job}-teacher-{teacher}" for job in ("train", "search", "evaluate", "cache")}
    labels = [name for name, one in recipe.labels.items() if _teacher_of(name, one) == teacher]
    students = [name for name, one in recipe.students.items() if one.teacher == teacher]
    return {
        f"teacher-{teacher}",
        *own,
        *(f"{job}-{name}" for name in labels for job in ("convert", "label")),
        *(f"shrink-student-{name}" for name in students),
    }


def _teacher_of(name: str, labels: Labels) -> str | None:
    return (labels.teacher or name) if labels.is_made_here else None


def readers_of_labels(name: str, recipe: Recipe) -> set[str]:
    """Return the trainings that read a label set."""
    return {f"train-student-{student}" for student, one in recipe.students.items() if name in one.train_on}


# ------------------------------------------------------------------------------------------------ what depends on them


def joint_graph(begun: Run, now: Run) -> list[Stage]:
    """Return the stages of two recipes of one run, each with the needs that it has in either.

    A stage that the new recipe no longer has is there too, if its model or label set still is.
    """
    joint: dict[str, Stage] = {}
    subjects = {_path_of(stage.subject) for stage in stages(now)}
    for stage in [*_with_documents(begun), *_with_documents(now)]:
        before = joint.get(stage.name)
        needs = dict.fromkeys((*before.needs, *stage.needs)) if before else stage.needs
        if _path_of(stage.subject) in subjects:
            joint[stage.name] = dataclasses.replace(stage, needs=tuple(needs))
    return list(joint.values())


def _path_of(subject: Member | LabelSet | None) -> Path | None:
    return subject.folder if subject else None


def _with_documents(run: Run) -> Iterator[Stage]:
    """The stages of a run, and before the labels of other documents one that stands for these documents."""
    for stage in stages(run):
        labels = stage.subject
        if isinstance(labels, LabelSet) and labels.settings.documents and stage.job in ("convert", "label"):
            documents = Stage("documents", labels, ("prepare",), labels.documents.exists)
            yield documents
            stage = dataclasses.replace(stage, needs=(*stage.needs, documents.name))
        yield stage


def depending(graph: Sequence[Stage], roots: Collection[str]) -> list[Stage]:
    """Return the stages named by `roots` and all that need them, directly or not, in the order of the graph."""
    reached = {stage.name for stage in graph if stage.name in roots}
    while True:
        more = {stage.name for stage in graph if reached & set(stage.needs)} - reached
        if not more:
            return [stage for stage in graph if stage.name in reached]
        reached |= more


def names_of(graph: Collection[Stage]) -> set[str]:
    return {stage.name for stage in graph}


# ------------------------------------------------------------------------------------------------ what they have made


def outputs(stage: Stage) -> list[Path]:
    """Return the files and folders that a stage has made, whole or not. The benchmark counts as a part of an evaluation."""
    if isinstance(stage.subject, Member):
        paths = _outputs_of_member(stage.job, stage.subject)
    elif isinstance(stage.subject, LabelSet):
        paths = _outputs_of_labels(stage.job, stage.subject)
    else:
        paths = []
    made = [path for path in paths if path.exists()]
    only_begun = isinstance(stage.subject, Member) and made == [stage.subject.claim]  # refused before its first step
    return [] if only_begun else made


def _outputs_of_member(job: str, member: Member) -> list[Path]:
    if job == "cache":
        return [member.cache]
    if member.is_shared:
        return []
    made = {
        "search": [member.search, member.search_points],
        "evaluate": [member.folder / "evaluation", member.benchmark],
        "train": [
            member.final,
            member.best,
            member.checkpoints,
            member.claim,
            member.metrics,
            member.tensorboard,
            member.wandb_id,
            member.folder / "wandb",
        ],
    }
    return made.get(job, [member.initial])


def _outputs_of_labels(job: str, labels: LabelSet) -> list[Path]:
    if labels.settings.run:
        return []
    if job == "label":
        return sorted(labels.folder.glob("shard-*"))
    made = {
        "documents": [labels.documents],
        "convert": [labels.engine],
        "merge": [labels.manifest, labels.table],
    }
    return made[job]


def move_aside(run: Run, redone: Sequence[Stage]) -> Path:
    """Move what stages have made to a new folder below `run.replaced`, and return that folder.

    What depends on others is moved first: if this is interrupted, nothing is left that rests on what is gone.
    """
    place = run.replaced / time.strftime("%Y-%m-%d-%H%M%S")
    for stage in reversed(redone):
        for path in outputs(stage):
            target = place / path.relative_to(run.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    return place


def first_stages(run: Run, group: str, name: str) -> set[str]:
    """Return the names of all stages of a model or a label set; of a teacher of another run those that use it."""
    if group == "labels":
        subject = run.label_set(name)
        own = {stage_name(job, subject) for job in ("documents", "convert", "label", "merge")}
        return own | (readers_of_labels(name, run.recipe) if subject.settings.run else set())
    if group == "teachers":
        return users_of_teacher(name, run.recipe)
    return {f"{job}-student-{name}" for job in ("shrink", "train", "search", "evaluate")}
