"""The stages of a run: their order, what each waits for, and whether its output is complete. Files only, no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.files import read_json, sha256_file
from distill.recipe import Recipe, Teacher
from distill.run import Member, Run
from distill.shards import shards_of


@dataclass(frozen=True)
class Stage:
    """One job of the graph. `all_processes`: runs on every GPU (or CPU process) instead of one process."""

    job: str
    member: Member | None
    needs: tuple[str, ...]
    is_complete: Callable[[], bool] = field(compare=False)
    all_processes: bool = False

    @property
    def name(self) -> str:
        """Also the stem of its log file."""
        return stage_name(self.job, self.member)

    @property
    def arguments(self) -> list[str]:
        """The job's arguments after the recipe."""
        return [f"--{self.member.group.removesuffix('s')}", self.member.name] if self.member else []


def stage_name(job: str, member: Member | None) -> str:
    if member is None:
        return job
    return f"teacher-{member.name}" if job == "teacher" else f"{job}-{member.group.removesuffix('s')}-{member.name}"


def stages(run: Run) -> list[Stage]:
    """All stages in an order that respects their needs: prepare, teachers, students, benchmark, report."""
    graph = [Stage("prepare", None, (), run.corpus.exists)]
    for member in run.members():
        graph += _stages_of(run, member)
    evaluated = tuple(stage.name for stage in graph if stage.job == "evaluate")
    graph.append(Stage("benchmark", None, evaluated, lambda: benchmark_is_current(run)))
    graph.append(Stage("report", None, ("benchmark",), lambda: report_is_current(run)))
    return graph


def _stages_of(run: Run, member: Member) -> list[Stage]:
    """Initial weights -> train -> evaluate, or only evaluate for a teacher that is taken as it is."""
    evaluation = (member.evaluation("test") / "scores.json").exists
    settings = run.settings(member)
    ready = _ready(run, member)
    if isinstance(settings, Teacher):
        cache = [Stage("cache", member, (ready,), lambda: cache_is_complete(run, member), all_processes=True)]
        cache = cache if is_cached(run.recipe, member.name) else []
        evaluate = Stage("evaluate", member, (ready,), evaluation, all_processes=True)
        if settings.train is None:
            return [evaluate, *cache]
        initial = Stage("teacher", member, ("prepare",), member.initial.exists)
        train = Stage("train", member, (initial.name,), member.is_trained, all_processes=True)
        return [initial, train, evaluate, *cache]
    teacher = run.member("teachers", settings.teacher)
    initial = Stage("shrink", member, (_ready(run, teacher),), member.initial.exists)
    reads_cache = settings.objective.needs_teacher and is_cached(run.recipe, settings.teacher)
    needs = (initial.name, *([stage_name("cache", teacher)] if reads_cache else []))
    train = Stage("train", member, needs, member.is_trained, all_processes=True)
    return [initial, train, Stage("evaluate", member, (train.name,), evaluation, all_processes=True)]


def _ready(run: Run, member: Member) -> str:
    """The stage after which a member can be used."""
    return "prepare" if run.settings(member).train is None else stage_name("train", member)


def is_cached(recipe: Recipe, teacher: str) -> bool:
    """True where the recipe wants a cache of this teacher and a student reads it."""
    readers = [s for s in recipe.students.values() if s.teacher == teacher and s.objective.needs_teacher]
    return recipe.teachers[teacher].cache is not None and bool(readers)


def shards_done(run: Run, member: Member) -> tuple[int, int]:
    """(whole shards, all shards) of a teacher's cache."""
    cache = run.recipe.teachers[member.name].cache
    shards = cache.shards if cache else 0
    return sum(shard.is_complete() for shard in shards_of(member.cache, shards, ".bin")), shards


def cache_is_complete(run: Run, member: Member) -> bool:
    """True where every shard of a teacher's cache is whole."""
    done, shards = shards_done(run, member)
    return done == shards > 0


def benchmark_is_current(run: Run) -> bool:
    """True where every model was measured, all in one go, with the recipe's benchmark settings."""
    files = [member.benchmark for member in run.members()]
    if not all(file.exists() for file in files):
        return False
    measured = [read_json(file) for file in files]
    same_go = len({entry["measured_at"] for entry in measured}) == 1
    return same_go and measured[0]["settings"] == run.recipe.benchmark.model_dump(mode="json")


def report_inputs(run: Run) -> dict[str, Path]:
    """The files that decide what the report says, by their path in the run."""
    files = [run.corpus / "manifest.json"]
    for member in run.members():
        files += [member.evaluation("test") / "scores.json", member.benchmark]
    return {str(file.relative_to(run.folder)): file for file in files}


def report_is_current(run: Run) -> bool:
    """True where the report was made of exactly the files that are there now."""
    manifest = run.report / "manifest.json"
    files = report_inputs(run)
    if not manifest.exists() or not all(file.exists() for file in files.values()):
        return False
    made_of: dict[str, Any] = read_json(manifest)
    return made_of == report_manifest(run)


def report_manifest(run: Run) -> dict[str, Any]:
    """What a report is made of: its settings and the hashes of its inputs."""
    hashes = {name: sha256_file(file) for name, file in report_inputs(run).items()}
    return {"settings": run.recipe.report.model_dump(mode="json"), "inputs": hashes}
