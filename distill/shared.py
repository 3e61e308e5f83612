"""What a run reads from elsewhere: teachers and labels of other runs, and files of labels. No torch."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import InputError
from distill.files import read_json, sha256_file
from distill.recipe import Labels, Recipe, Teacher
from distill.recipe_file import load_recipe
from distill.run import LabelSet, Member, Run

Block = TypeVar("Block", Teacher, Labels)
OF_THIS_RUN = {"run", "name", "cache", "zero_stage", "precision", "offload"}
"""Keys of a teacher of another run that say how this run uses it."""


def resolve(recipe: Recipe) -> Recipe:
    """Return the recipe with the teachers and labels of other runs as those runs have them.

    Raise InputError if a run is not there, has no such teacher or labels, has not finished them, or if the recipe gives
    another value for one of their keys.
    """
    teachers = {name: _teacher(name, block) if block.run else block for name, block in recipe.teachers.items()}
    labels = {name: _labels(name, block) if block.run else block for name, block in recipe.labels.items()}
    return recipe.model_copy(update={"teachers": teachers, "labels": labels})


def _teacher(name: str, given: Teacher) -> Teacher:
    key, other = f"teachers.{name}", _other_run(f"teachers.{name}", given.run)
    there = given.name or name
    known = [known for known, block in other.recipe.teachers.items() if block.train and not block.run]
    if there not in known:
        raise InputError(
            f"{key}.run: {other.folder} trains no teacher {there!r}. Expected one of {', '.join(known) or '(none)'}; give its "
            "name, or give a teacher that is not trained by its model."
        )
    block = _merged(key, given, other.recipe.teachers[there], OF_THIS_RUN)
    member = other.member("teachers", there)
    needed = {"train": member.final, "evaluate": member.evaluation("test") / "scores.json"}
    if block.evaluate and block.evaluate.search:
        needed["search"] = member.search
    missing = [job for job, path in needed.items() if not path.exists()]
    if missing or not member.is_trained():
        _refuse_unfinished(f"{key}.run", other, f"evaluate-teacher-{there}", missing)
    return block


def _labels(name: str, given: Labels) -> Labels:
    key, other = f"labels.{name}", _other_run(f"labels.{name}", given.run)
    there = given.name or name
    known = [known for known, block in other.recipe.labels.items() if not block.run]
    if there not in known:
        raise InputError(
            f"{key}.run: {other.folder} has no labels {there!r} of its own. Expected one of {', '.join(known) or '(none)'}; "
            "give their name."
        )
    block = _merged(key, given, other.recipe.labels[there], {"run", "name"})
    if not other.label_set(there).is_merged():
        _refuse_unfinished(f"{key}.run", other, f"merge-{there}", ["merge"])
    return block


def _other_run(key: str, folder: str | None) -> Run:
    assert folder is not None
    file = Path(folder) / "recipe.yaml"
    if not file.is_file():
        raise InputError(
            f"{key}.run: {folder!r} given, but there is no {file}. Expected the folder of a run (runs/NAME)."
        )
    return Run(load_recipe(file), Path(folder))


def _merged(key: str, given: Block, there: Block, own: set[str]) -> Block:
    """Return the other run's block with this run's own keys."""
    for field in sorted(given.model_fields_set - own):
        if getattr(given, field) != getattr(there, field):
            raise InputError(
                f"{key}.{field}: given, but {key}.run says that {given.run} decides it, and it is another there. "
                "Remove it here, or change it there."
            )
    return there.model_copy(update={field: getattr(given, field) for field in own})


def _refuse_unfinished(key: str, other: Run, stage: str, missing: list[str]) -> None:
    raise InputError(
        f"{key}: {other.folder} has not finished {stage} ({', '.join(missing)} is missing). Finish it there first: "
        f"python -m launch run {other.recipe_file} --runs {other.folder.parent} --until {stage}"
    )


# ------------------------------------------------------------------------------------------------ provenance


def source_hashes(run: Run) -> dict[str, str]:
    """Return a hash of everything that the run reads from elsewhere, by a key such as `teachers.bart.run.content`.

    A file of labels that is gone has none.
    """
    shared = [member for member in run.members() if member.is_shared]
    hashes = {f"teachers.{member.name}.run.content": _hash_of_teacher(member) for member in shared}
    for labels in run.label_sets():
        file = labels.settings.file
        if labels.settings.run:
            hashes[f"labels.{labels.name}.run.content"] = read_json(labels.manifest)["sha256"]
        elif file and Path(file).is_file():
            hashes[f"labels.{labels.name}.file.content"] = sha256_file(Path(file))
    return hashes


def recorded_hashes(run: Run) -> dict[str, str]:
    """Return what `source_hashes` gave when the run last looked."""
    hashes: dict[str, str] = read_json(run.sources) if run.sources.exists() else {}
    return hashes


def _hash_of_teacher(member: Member) -> str:
    """Return one hash of its best weights, its scores and the decoding that was found for it."""
    files = sorted(path for path in member.best.iterdir() if path.is_file())
    files += [member.evaluation("test") / "scores.json", member.search]
    digest = hashlib.sha256()
    for file in files:
        if file.exists():
            size, time = file.stat().st_size, file.stat().st_mtime_ns
            digest.update(f"{file.name} {_hash_of_file(file, size, time)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _hash_of_file(file: Path, size: int, time: int) -> str:
    """Return the SHA-256 of a file; once for a process, as long as size and time stay."""
    return sha256_file(file)


def check_same_corpus(run: Run, sha256: str | None = None) -> None:
    """Raise InputError if another run that this one reads has another corpus. `sha256`: of this run's corpus, if not recorded."""
    others = list(_other_runs(run.recipe))
    if not others:
        return
    if sha256 is None and run.corpus_record.exists():
        sha256 = read_json(run.corpus_record)["sha256"]
    if sha256 is None:
        return
    for key, folder in others:
        record = Path(folder) / "corpus.json"
        theirs = read_json(record)["sha256"] if record.exists() else "not recorded"
        if theirs != sha256:
            raise InputError(
                f"{key}.run: {folder} has another corpus (hash {theirs[:12]}) than {run.folder} ({sha256[:12]}). Expected the "
                "same corpus and seed: a teacher may have been trained on what this run tests. To use a teacher of another "
                f"corpus on purpose give its folder as a model ({folder}/teachers/NAME/best)."
            )


def _other_runs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    blocks: dict[str, Any] = {f"teachers.{name}": block for name, block in recipe.teachers.items()}
    blocks |= {f"labels.{name}": block for name, block in recipe.labels.items()}
    return ((key, block.run) for key, block in blocks.items() if block.run)


def describe_sources(run: Run) -> list[str]:
    """Return a sentence for everything that the run reads from elsewhere, for the report."""
    hashes = recorded_hashes(run)
    subjects: list[Member | LabelSet] = [member for member in run.members() if member.is_shared]
    subjects += [labels for labels in run.label_sets() if not labels.settings.is_made_here]
    told = []
    for subject in subjects:
        group = "labels" if isinstance(subject, LabelSet) else "teachers"
        found = [value for key, value in hashes.items() if key.startswith(f"{group}.{subject.name}.")]
        of_file = isinstance(subject, LabelSet) and subject.settings.file
        where = f"the file {of_file}" if of_file else str(subject.folder)
        told.append(f"{subject} comes from {where}" + (f" (SHA-256 {found[0][:12]})." if found else "."))
    return told
