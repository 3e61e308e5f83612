"""The stages of a run: their order, what each waits for, and whether its output is complete. Files only, no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from distill.errors import InputError
from distill.files import read_json, sha256_file
from distill.recipe import GOLD, Recipe
from distill.run import LabelSet, Member, Run
from distill.search import points
from distill.sections import Search
from distill.shards import Shard, count_done, shards_of

BENCHMARK_FORMAT = 2
"""Of benchmark.json. A benchmark of an older format is measured again."""

Kind = Literal["one process", "process group", "workers"]
Shards = Callable[[], tuple[int, int]]


@dataclass(frozen=True)
class Stage:
    """One job of the graph.

    A process group is one process for every GPU (or CPU process), which work together; workers are as many, which know
    nothing of each other: one or several for each of `shards`. `shards_done` counts (whole shards, all shards) where there
    are any.
    """

    job: str
    subject: Member | LabelSet | None
    needs: tuple[str, ...]
    is_complete: Callable[[], bool] = field(compare=False)
    kind: Kind = "one process"
    shards_done: Shards | None = field(default=None, compare=False)
    shards: tuple[Shard, ...] = field(default=(), compare=False)
    progress_file: Path | None = field(default=None, compare=False)
    """Where the job writes how far it is, if it does."""

    @property
    def name(self) -> str:
        """Also the stem of its log file."""
        return stage_name(self.job, self.subject)

    @property
    def member(self) -> Member | None:
        return self.subject if isinstance(self.subject, Member) else None

    @property
    def arguments(self) -> list[str]:
        """The job's arguments after the recipe."""
        if self.subject is None:
            return []
        group = f"--{self.subject.group.removesuffix('s')}" if isinstance(self.subject, Member) else "--labels"
        return [group, self.subject.name]


def stage_name(job: str, subject: Member | LabelSet | None) -> str:
    if subject is None:
        return job
    if isinstance(subject, LabelSet):
        return f"{job}-{subject.name}"
    return f"teacher-{subject.name}" if job == "teacher" else f"{job}-{subject.group.removesuffix('s')}-{subject.name}"


def shard_name(stage: str, shard: int) -> str:
    """Of one shard of a stage, where it is made by a job of its own."""
    return f"{stage}.shard-{shard:05d}"


def stages_until(graph: Sequence[Stage], given: str) -> list[Stage]:
    """Return the stages that `given` names, and all that they need.

    `given` is the name of a stage or the beginning of several: `train`, `train-student`. Raise InputError if there are none.
    """
    last = [stage for stage in graph if stage.name == given]
    last = last or [stage for stage in graph if stage.name.startswith(f"{given}-")]
    if not last:
        jobs = dict.fromkeys(stage.job for stage in graph)
        names = ", ".join(stage.name for stage in graph)
        raise InputError(
            f"--until: {given!r} given, expected a stage ({names}) or a kind of stage ({', '.join(jobs)})."
        )
    wanted = {stage.name for stage in last}
    for stage in reversed(graph):  # what a stage needs stands before it
        if stage.name in wanted:
            wanted |= set(stage.needs)
    return [stage for stage in graph if stage.name in wanted]


def stages(run: Run) -> list[Stage]:
    """All stages in an order that respects their needs: prepare, teachers, labels, students, benchmark, report."""
    graph = [Stage("prepare", None, (), run.is_prepared)]
    members = run.members()
    for member in (member for member in members if member.group == "teachers"):
        graph += _stages_of_teacher(run, member)
    for labels in run.label_sets():
        graph += _stages_of_labels(run, labels)
    for member in (member for member in members if member.group == "students"):
        graph += _stages_of_student(run, member)
    done = tuple(stage.name for stage in graph if stage.job in ("evaluate", "merge"))
    evaluated = tuple(stage.name for stage in graph if stage.job == "evaluate")
    measured = Stage("benchmark", None, evaluated, lambda: benchmark_is_current(run))
    graph.append(replace(measured, progress_file=run.benchmark_progress))
    graph.append(Stage("report", None, ("benchmark", *(set(done) - set(evaluated))), lambda: report_is_current(run)))
    return graph


def _stages_of_teacher(run: Run, member: Member) -> list[Stage]:
    """Initial weights -> train -> search -> evaluate, or only the last two for a teacher that is taken as it is; its cache.

    Of a teacher of another run only the cache.
    """
    ready = _ready(run, member)
    then = [] if member.is_shared else _evaluation(run, member, ready)
    if is_cached(run.recipe, member.name):
        whole, done = (lambda: cache_is_complete(run, member)), (lambda: cache_shards_done(run, member))
        then.append(Stage("cache", member, (ready,), whole, "workers", done, tuple(_cache_shards(run, member))))
    if run.train_settings(member) is None or member.is_shared:
        return then
    initial = Stage("teacher", member, ("prepare",), member.initial.exists)
    return [initial, Stage("train", member, (initial.name,), member.is_trained, "process group"), *then]


def _stages_of_labels(run: Run, labels: LabelSet) -> list[Stage]:
    """Conversion (of an engine other than Hugging Face) -> label -> merge; only the last for labels of a file."""
    if labels.settings.run:
        return []
    if labels.settings.file:
        return [Stage("merge", labels, ("prepare",), labels.is_merged)]
    graph = []
    shards = tuple(shards_of(labels.folder, labels.settings.shards, ".jsonl"))
    needs = _decodes(run, run.member("teachers", labels.teacher))
    if labels.settings.engine.name != "huggingface":
        graph.append(Stage("convert", labels, (needs,), labels.has_engine))
        needs = graph[-1].name

    def done() -> tuple[int, int]:
        return count_done(shards)

    graph.append(Stage("label", labels, (needs,), lambda: done()[0] == done()[1], "workers", done, shards))
    return [*graph, Stage("merge", labels, (graph[-1].name,), labels.is_merged)]


def _stages_of_student(run: Run, member: Member) -> list[Stage]:
    """Shrink -> train -> search -> evaluate."""
    settings = run.recipe.students[member.name]
    teacher = run.member("teachers", settings.teacher)
    initial = Stage("shrink", member, (_ready(run, teacher),), member.initial.exists)
    needs = [initial.name]
    if settings.objective.needs_teacher and is_cached(run.recipe, settings.teacher):
        needs.append(stage_name("cache", teacher))
    read = [run.label_set(name) for name in settings.train_on if name != GOLD]
    needs += [stage_name("merge", labels) for labels in read if not labels.settings.run]
    train = Stage("train", member, tuple(needs), member.is_trained, "process group")
    return [initial, train, *_evaluation(run, member, train.name)]


def _evaluation(run: Run, member: Member, after: str) -> list[Stage]:
    """The final test, after the search for how to decode where the recipe wants one."""
    search = run.evaluate_settings(member).search
    before = [_search(run, member, search, after)] if search else []
    shards = shards_of(member.evaluation_shards("test"), run.evaluate_settings(member).shards, ".jsonl")
    complete = (member.evaluation("test") / "scores.json").exists

    def done() -> tuple[int, int]:
        return (len(shards), len(shards)) if complete() else count_done(shards)

    needs = (before[-1].name if before else after,)
    return [*before, Stage("evaluate", member, needs, complete, "process group", done)]


def _search(run: Run, member: Member, search: Search, after: str) -> Stage:
    shards = run.evaluate_settings(member).shards
    grid = points(search, member)

    def done() -> tuple[int, int]:
        whole = [
            shards if point.result.exists() else count_done(shards_of(point.folder, shards, ".jsonl"))[0]
            for point in grid
        ]
        everything = shards * len(grid)
        return (everything if member.search.exists() else sum(whole)), everything

    return Stage("search", member, (after,), member.search.exists, "process group", done)


def _ready(run: Run, member: Member) -> str:
    """The stage after which a member can be used."""
    return "prepare" if run.settings(member).train is None or member.is_shared else stage_name("train", member)


def _decodes(run: Run, member: Member) -> str:
    """The stage after which it is known how a member decodes."""
    searches = run.evaluate_settings(member).search and not member.is_shared
    return stage_name("search", member) if searches else _ready(run, member)


def is_cached(recipe: Recipe, teacher: str) -> bool:
    """True where the recipe wants a cache of this teacher and a student reads it."""
    readers = [s for s in recipe.students.values() if s.teacher == teacher and s.objective.needs_teacher]
    return recipe.teachers[teacher].cache is not None and bool(readers)


def cache_shards_done(run: Run, member: Member) -> tuple[int, int]:
    """(whole shards, all shards) of a teacher's cache."""
    return count_done(_cache_shards(run, member))


def _cache_shards(run: Run, member: Member) -> list[Shard]:
    cache = run.recipe.teachers[member.name].cache
    return shards_of(member.cache, cache.shards if cache else 0, ".bin")


def cache_is_complete(run: Run, member: Member) -> bool:
    """True where every shard of a teacher's cache is whole."""
    done, shards = cache_shards_done(run, member)
    return done == shards > 0


def benchmark_is_current(run: Run) -> bool:
    """Return True if all models were measured in one go, with the recipe's settings, by this version."""
    files = [member.benchmark for member in run.members()]
    if not all(file.exists() for file in files):
        return False
    measured = [read_json(file) for file in files]
    same_go = len({entry["measured_at"] for entry in measured}) == 1
    same_format = all(entry.get("format") == BENCHMARK_FORMAT for entry in measured)
    same_settings = measured[0]["settings"] == run.recipe.benchmark.model_dump(mode="json")
    return same_go and same_format and same_settings


def report_inputs(run: Run) -> dict[str, Path]:
    """The files that decide what the report says, by their path in the run."""
    files = [run.corpus / "manifest.json"]
    files += [run.sources] if run.sources.exists() else []
    for member in run.members():
        files += [member.evaluation("test") / "scores.json", member.benchmark]
        files += [member.search] if run.evaluate_settings(member).search else []
    files += [labels.manifest for labels in run.label_sets()]
    return {str(file.relative_to(run.folder) if file.is_relative_to(run.folder) else file): file for file in files}


def report_is_current(run: Run) -> bool:
    """Return True if the report was made of exactly the files that are there now, and none of them will change."""
    if not benchmark_is_current(run):
        return False
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
