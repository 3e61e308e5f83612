"""A recipe that has changed since its run was begun: what is done again, and what it takes to allow that. No torch."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.changed_keys import (
    GROUPS,
    REMOVED,
    caches_without,
    changed_keys,
    differing_keys,
    flat_recipe,
    is_subject,
    line_of,
    names_in,
    refuse_fixed,
    subject_of,
)
from distill.errors import InputError
from distill.files import check_writable, read_json, write_json, write_text
from distill.recipe import Recipe
from distill.recipe_file import dump_recipe, flatten, load_recipe
from distill.redo import SHOW, depending, first_stages, joint_graph, move_aside, names_of, outputs, stages_of_key
from distill.run import Run
from distill.shared import check_same_corpus, recorded_hashes, source_hashes
from distill.stages import Stage, stages


def open_run(recipe: Recipe, runs: Path) -> Run:
    """Return the run of a recipe, and write the recipe to its directory, which is made if need be.

    Raise InputError if something would have to be done again first, see `examine`.
    """
    run = Run(recipe, runs / recipe.name)
    check_writable(run.folder)
    examine(run).check()
    _record_removed(run)
    if _teaching_changed(run):
        _forget_removed(run)  # what they learned from is another now
    recorded = recorded_hashes(run)
    hashes = recorded | source_hashes(run)
    if hashes != recorded:
        write_json(run.sources, hashes)
    text = dump_recipe(recipe)
    if not run.recipe_file.exists() or run.recipe_file.read_text(encoding="utf-8") != text:
        write_text(run.recipe_file, text)
    return run


@dataclass(frozen=True)
class Redo:
    """What a run has to do again, and why."""

    run: Run
    changed: tuple[str, ...] = ()
    """A line for each key that has changed and that something was made with."""
    stages: tuple[Stage, ...] = ()
    """Those that have made something which is not valid any more."""
    needs: tuple[str, ...] = ()
    """What must be allowed by --redo and was not."""
    removed: tuple[str, ...] = ()
    """What the recipe no longer has."""

    def check(self) -> None:
        """Raise InputError, with what would be done again, if not all of it was allowed."""
        if not self.needs:
            return
        allow = " ".join(f"--redo {name}" for name in self.needs)
        lines = [
            f"the recipe has changed since {self.run.folder} was begun:",
            *self.changed,
            "So these stages would be done again:",
            *self.shown(),
            f"To do them again give `python -m launch run` the option{'s' if len(self.needs) > 1 else ''} {allow}; what they "
            f"made is moved to {self.run.replaced}. To keep it change the keys back (a key=value of an earlier command must be "
            "given every time), or give the recipe another name (name=...).",
        ]
        raise InputError("\n".join(lines))

    def shown(self) -> list[str]:
        """Return a line for each model or label set with its stages that are done again."""
        jobs: dict[str, list[str]] = {}
        for stage in self.stages:
            jobs.setdefault(str(stage.subject), []).append(stage.job)
        lines = [f"  {subject}: {', '.join(found)}" for subject, found in jobs.items()]
        return [*lines, f"  then {' and '.join(SHOW)}"] if lines else []

    def carry_out(self) -> Path | None:
        """Move what the stages have made aside; the folder that has it now. No job of the run may be alive."""
        self.check()
        _record_removed(self.run)
        if not self.stages:
            return None
        if any(stage.subject and stage.subject.folder.parent.name != "students" for stage in self.stages):
            _forget_removed(self.run)  # they may have been made with what is now replaced
        return move_aside(self.run, self.stages)

    def record(self, asked: Sequence[str]) -> None:
        """Write the names of --redo that were moved aside, so that the same command continues and moves nothing again."""
        if self.stages and asked:
            write_json(self.run.redo, {"names": sorted({*_begun_redo(self.run), *asked})})


def _begun_redo(run: Run) -> list[str]:
    """Return the names of a --redo that was begun and has not ended: some stage of the run is not complete yet."""
    if not run.redo.exists() or all(stage.is_complete() for stage in stages(run)):
        return []
    names: list[str] = read_json(run.redo)["names"]
    return names


def refuse_removal(run: Run) -> None:
    """Raise InputError if the recipe lacks a model or a label set of the run. Only the launcher may leave them out."""
    begun = _begun(run)
    if begun is None:
        return
    gone = [f"{group}.{name}" for group in GROUPS for name in sorted(names_in(begun, group) - names_in(run, group))]
    if gone:
        raise InputError(
            f"{', '.join(gone)}: in {run.recipe_file}, absent now. A job by hand cannot leave them out, since a launcher may "
            "be working on them. Add them to the recipe, or remove them with `python -m launch run`."
        )


def examine(run: Run, asked: Sequence[str] = ()) -> Redo:
    """Compare a recipe with the one its run was begun with. `asked`: what may, or shall, be done again.

    Raise InputError if the corpus or the seed has changed, if another run that is read has another corpus, or if there is
    nothing by a name of `asked`. Until the corpus is prepared nothing depends on the recipe, and all of it may change.
    """
    check_same_corpus(run)
    begun = _begun(run)
    if begun is None:
        for name in asked:
            _asked_stages(run, joint_graph(run, run), name)
        return Redo(run)
    old = flat_recipe(begun, recorded_hashes(begun), run)
    new = flat_recipe(run, source_hashes(run))
    refuse_fixed(old, new, run.folder)
    graph = joint_graph(begun, run)
    reached = _stages_reached(old, new, begun, run)
    reached = {key: names for key, names in reached.items() if _must_be_allowed(graph, names)}
    roots = set().union(*reached.values())
    allowed = set().union(*(_allowed_by(name, run, graph, reached) for name in asked))
    redone = [stage for stage in depending(graph, roots | allowed) if outputs(stage)]
    removed = [f"{group}.{name}" for group in GROUPS for name in names_in(begun, group) - names_in(run, group)]
    return Redo(
        run,
        changed=tuple(dict.fromkeys(line_of(key, old, new) for key in reached)),
        stages=tuple(redone),
        needs=tuple(_short(run, subject) for subject in _not_covered(graph, reached, allowed)),
        removed=tuple(sorted(removed)),
    )


def _stages_reached(old: dict[str, Any], new: dict[str, Any], begun: Run, now: Run) -> dict[str, set[str]]:
    """Return the stages that each changed key reaches.

    If the folder of a new model or label set already holds outputs, its name is the key.
    """
    reached = {key: stages_of_key(key, begun.recipe, now.recipe) for key in changed_keys(old, new, now)}
    for key in (key for key in reached if key.endswith(".evaluate.shards")):  # the division matters only on the way
        reached[key] -= {one.name for one in stages(now) if one.name in reached[key] and one.is_complete()}
    reached |= {key: {f"cache-teacher-{key.split('.')[1]}"} for key in caches_without(begun.recipe, now.recipe)}
    known = {subject_of(key) for key in old}
    made = {_folder_of(stage) for stage in joint_graph(now, now) if outputs(stage)}
    for group in GROUPS:
        strangers = {name for name in names_in(now, group) if f"{group}.{name}" not in known}
        strangers = {name for name in strangers if now.folder / group / name in made}
        reached |= {f"{group}.{name}": first_stages(now, group, name) for name in sorted(strangers)}
    return reached


def _folder_of(stage: Stage) -> Path | None:
    return stage.subject.folder if stage.subject else None


def _must_be_allowed(graph: Sequence[Stage], roots: Collection[str]) -> bool:
    """True if something was made that is not valid any more. A merge sees by itself that its rules are others."""
    return any(stage.job != "merge" and outputs(stage) for stage in depending(graph, roots))


def _allowed_by(name: str, run: Run, graph: Sequence[Stage], reached: dict[str, set[str]]) -> set[str]:
    """Return the first stages that a name of --redo repeats: those that changed keys reach, or all if no key changed.

    None if no key changed and the same --redo was begun before: then the run continues.
    """
    subject = _subject_named(run, name)
    changed = [names for key, names in reached.items() if subject_of(key) == subject]
    of_changed = set().union(*changed) & names_of(graph)
    if of_changed:
        return of_changed
    return set() if name in _begun_redo(run) else _asked_stages(run, graph, name)


def _not_covered(graph: Sequence[Stage], reached: dict[str, set[str]], allowed: set[str]) -> list[str]:
    """Return the models and label sets that must be allowed beside `allowed`; what depends on one of them is allowed by it."""
    missing, covered = list[str](), names_of(depending(graph, allowed))
    subjects = sorted({subject_of(key) for key in reached}, key=lambda one: (GROUPS.index(one.split(".")[0]), one))
    for subject in subjects:
        roots = set().union(*(names for key, names in reached.items() if subject_of(key) == subject)) & names_of(graph)
        if not roots <= covered:
            missing.append(subject)
            covered |= names_of(depending(graph, roots))
    return missing


def refuse_while_queued(run: Run, asked: Sequence[str], jobs: Sequence[str]) -> None:
    """Raise InputError if anything but new models, new label sets and FREE_KEYS has changed. `jobs`: those that are queued."""
    begun = Run(load_recipe(run.recipe_file), run.folder)
    old = flat_recipe(begun, recorded_hashes(begun))
    new = flat_recipe(run, source_hashes(run))
    keys = differing_keys(old, new)
    known = [key for key in keys if key.split(".")[0] not in GROUPS or is_subject(begun, key)]
    gone = [key for key in known if is_subject(begun, key) and not is_subject(run, key)]
    lines = [line_of(key, old, new) for key in known if key not in gone]
    lines += [f"  {subject_of(key)}: in the recipe of these jobs, absent now" for key in gone]
    lines += [f"  --redo {name}" for name in asked]
    if lines:
        raise InputError(
            "\n".join(
                [
                    f"{run.folder} is being run by SLURM: job(s) {', '.join(jobs)}. While they are queued or running this "
                    "cannot be changed or done again:",
                    *dict.fromkeys(lines),
                    f"Wait for them, or cancel them: python -m launch cancel {shlex.quote(str(run.folder))}",
                ]
            )
        )


def _begun(run: Run) -> Run | None:
    """Return the run as it was begun; None if nothing depends on its recipe yet."""
    if not run.recipe_file.exists() or not (run.corpus.exists() or run.corpus_record.exists()):
        return None
    return Run(load_recipe(run.recipe_file), run.folder)


def outdated(run: Run) -> list[str]:
    """Return a line for the benchmark and the report if they are made again only because their settings are others now."""
    measured = [member.benchmark for member in run.members() if member.benchmark.exists()]
    made = {"benchmark": measured[0] if measured else None, "report": run.report / "manifest.json"}
    lines = []
    for name, file in made.items():
        if file is None or not file.exists():
            continue
        old = flatten(read_json(file)["settings"], name)
        new = flatten(getattr(run.recipe, name).model_dump(mode="json"), name)
        changed = [f"{key} was {old.get(key)}, is {new[key]} now" for key in sorted(new) if old.get(key) != new[key]]
        if changed:
            lines.append(
                f"the {name} is made again: {'; '.join(changed)} (a key=value of an earlier command is not remembered)"
            )
    return lines


# ------------------------------------------------------------------------------------------------ names of --redo


def _short(run: Run, subject: str) -> str:
    """Return the name alone if it is that of one model or label set only."""
    name = subject.split(".")[1]
    return name if len(_subjects_named(run, name)) == 1 else subject


def _subjects_named(run: Run, name: str) -> list[str]:
    return [f"{group}.{name}" for group in GROUPS if name in names_in(run, group)]


def _subject_named(run: Run, given: str) -> str | None:
    """Return `group.name` for a name of --redo; None for a stage. Raise InputError if it may be two."""
    known = [f"{group}.{name}" for group in GROUPS for name in names_in(run, group)]
    if given in known:
        return given
    found = _subjects_named(run, given)
    if len(found) > 1:
        raise InputError(f"--redo: {given!r} may be {' or '.join(found)}; give one of these.")
    return found[0] if found else None


def _asked_stages(run: Run, graph: Sequence[Stage], given: str) -> set[str]:
    """Return the stages that a name of --redo stands for: all of a model or a label set, or one stage."""
    subject = _subject_named(run, given)
    if subject:
        return first_stages(run, *subject.split("."))
    names = [stage.name for stage in graph if stage.subject]
    if given not in names:
        models = [name for group in GROUPS for name in sorted(names_in(run, group))]
        raise InputError(
            f"--redo: {given!r} given, expected a name of the recipe ({', '.join(dict.fromkeys(models))}) or a stage "
            f"({', '.join(names)})."
        )
    return {given}


# ------------------------------------------------------------------------------------------------ what left the recipe


def _record_removed(run: Run) -> None:
    """Keep the settings of what left the recipe in its folder, in case it comes back; forget those of what is back."""
    begun = _begun(run)
    if begun is None:
        return
    for group in GROUPS:
        blocks = begun.recipe.model_dump(mode="json")[group]
        for name in names_in(begun, group) - names_in(run, group):
            if (run.folder / group / name).exists():
                write_json(run.folder / group / name / REMOVED, {"settings": blocks[name]})
        for name in names_in(begun, group):
            if name in names_in(run, group):
                marker = run.folder / group / name / REMOVED
                if marker.is_file():
                    marker.unlink()


def _teaching_changed(run: Run) -> bool:
    """Return whether a key of a teacher or a label set differs, or a file or run that one of them reads."""
    begun = _begun(run)
    if begun is None:
        return False
    old = flat_recipe(begun, recorded_hashes(begun))
    new = flat_recipe(run, source_hashes(run))
    keys = [key for key in differing_keys(old, new) if key.split(".")[0] in ("teachers", "labels")]
    return any(is_subject(begun, key) for key in keys)


def _forget_removed(run: Run) -> None:
    for group in GROUPS:
        for file in (run.folder / group).glob(f"*/{REMOVED}"):
            file.unlink()
