"""The run directory: where everything is, and what a recipe may still change. Pure paths, no torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.errors import InputError
from distill.files import check_writable, read_json, write_text
from distill.recipe import Labels, Recipe, Student, Teacher
from distill.recipe_file import dump_recipe, flatten, load_recipe
from distill.sections import Evaluate, Generation, Train

Group = Literal["teachers", "students"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

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


@dataclass(frozen=True)
class Member:
    """A teacher or a student of the run and its folder."""

    group: Group
    name: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.group.removesuffix('s')} {self.name}"

    @property
    def initial(self) -> Path:
        return self.folder / "initial"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        return self.folder / "best"

    @property
    def final(self) -> Path:
        return self.folder / "final"

    def is_trained(self) -> bool:
        return self.final.exists() and self.best.exists()

    @property
    def claim(self) -> Path:
        """Names the attempt that trains."""
        return self.folder / "claim.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """The name of this training at Weights & Biases."""
        return self.folder / "wandb.json"

    @property
    def benchmark(self) -> Path:
        return self.folder / "benchmark.json"

    @property
    def cache(self) -> Path:
        """Of a teacher: what it says about the training targets."""
        return self.folder / "cache"

    @property
    def search(self) -> Path:
        """The best decoding on the validation split, and all that were tried."""
        return self.folder / "search.json"

    @property
    def search_points(self) -> Path:
        """While they are tried; removed once all are scored."""
        return self.folder / "search"

    def has_decoded(self) -> bool:
        """True where anything was made, or begun, that depends on how it decodes."""
        return any(path.exists() for path in (self.search, self.folder / "evaluation", self.benchmark))

    def evaluation(self, split: Split) -> Path:
        return self.folder / "evaluation" / split

    def evaluation_shards(self, split: Split) -> Path:
        """While a split is summarized; removed once it is scored."""
        return self.folder / "evaluation" / f"{split}-shards"


@dataclass(frozen=True)
class LabelSet:
    """The labels of one name and their folder."""

    name: str
    folder: Path
    settings: Labels

    def __str__(self) -> str:
        return f"labels {self.name}"

    @property
    def teacher(self) -> str:
        return self.settings.teacher or self.name

    @property
    def documents(self) -> Path:
        """The documents that are labelled, where they are not those of the training split."""
        return self.folder / "documents"

    @property
    def engine(self) -> Path:
        """The converted teacher of an engine other than Hugging Face, and how it compares."""
        return self.folder / "engine"

    @property
    def parity(self) -> Path:
        """How the converted teacher compares with Hugging Face."""
        return self.engine / "parity.json"

    def has_engine(self) -> bool:
        return self.parity.exists() and (self.engine / "model" / "model.bin").exists()

    @property
    def table(self) -> Path:
        return self.folder / "labels.parquet"

    def is_merged(self) -> bool:
        """True where the table is there, with the recipe's rules."""
        if not self.manifest.exists() or not self.table.exists():
            return False
        rules: dict[str, Any] = read_json(self.manifest)
        return (rules["keep_if"], rules["best_of"]) == (self.settings.keep_if.given, self.settings.best_of_block)

    def is_begun(self) -> bool:
        """True where anything was made that depends on more than the rules of the merge."""
        return self.documents.exists() or any(self.folder.glob("shard-*"))

    @property
    def manifest(self) -> Path:
        """Says that the labels are merged, and what they are."""
        return self.folder / "manifest.json"


@dataclass(frozen=True)
class Run:
    """One recipe and its directory."""

    recipe: Recipe
    folder: Path

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def corpus_record(self) -> Path:
        """The hash of the corpus that the run's results were made from; stays where the corpus is deleted."""
        return self.folder / "corpus.json"

    @property
    def tokens(self) -> Path:
        """Token ids of tables, made once for each tokenizer; may be deleted."""
        return self.folder / "tokens"

    @property
    def report(self) -> Path:
        return self.folder / "report"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def split(self, split: Split) -> Path:
        return self.corpus / f"{split}.parquet"

    def member(self, group: Group, name: str) -> Member:
        """InputError where the recipe has no such teacher or student."""
        names = self.recipe.teachers if group == "teachers" else self.recipe.students
        if name not in names:
            raise InputError(
                f"{name!r} is not among the recipe's {group}; expected one of {', '.join(names) or '(none)'}."
            )
        return Member(group, name, self.folder / group / name)

    def label_set(self, name: str) -> LabelSet:
        """InputError where the recipe has no such labels."""
        if name not in self.recipe.labels:
            raise InputError(
                f"{name!r} is not among the recipe's labels; expected one of {', '.join(self.recipe.labels) or '(none)'}."
            )
        return LabelSet(name, self.folder / "labels" / name, self.recipe.labels[name])

    def label_sets(self) -> list[LabelSet]:
        return [self.label_set(name) for name in self.recipe.labels]

    def is_prepared(self) -> bool:
        """True where the corpus, and all other documents that are labelled, are there."""
        extra = [labels for labels in self.label_sets() if labels.settings.documents]
        return self.corpus.exists() and all(labels.documents.exists() for labels in extra)

    def members(self) -> list[Member]:
        """All teachers, then all students, in the recipe's order."""
        teachers = [self.member("teachers", name) for name in self.recipe.teachers]
        return teachers + [self.member("students", name) for name in self.recipe.students]

    def settings(self, member: Member) -> Teacher | Student:
        table: dict[str, Any] = self.recipe.teachers if member.group == "teachers" else self.recipe.students
        settings: Teacher | Student = table[member.name]
        return settings

    def teacher_settings(self, member: Member) -> Teacher:
        """A teacher's own, or those of a student's teacher, whose prefix and languages it reads and writes."""
        settings = self.settings(member)
        return settings if isinstance(settings, Teacher) else self.recipe.teachers[settings.teacher]

    def train_settings(self, member: Member) -> Train | None:
        """None for a teacher that is taken as it is."""
        return self.settings(member).train

    def seed(self, member: Member) -> int:
        """Of a member's training: its own, else the recipe's."""
        train = self.train_settings(member)
        return self.recipe.seed if train is None or train.seed is None else train.seed

    def evaluate_settings(self, member: Member) -> Evaluate:
        return self.settings(member).evaluate or self.recipe.evaluate

    def generation(self, member: Member) -> Generation:
        """How a member decodes: the recipe's keys and, over them, what its search has found.

        InputError where the search is still to be done.
        """
        settings = self.evaluate_settings(member)
        if settings.search is None:
            return settings.generation
        if not member.search.exists():
            job = f"python -m jobs.search --{member.group.removesuffix('s')} {member.name}"
            raise InputError(
                f"{member} has no {member.search}, but the recipe gives evaluate.search; run it first ({job})."
            )
        return settings.generation.model_copy(update=read_json(member.search)["best"])

    def weights(self, member: Member) -> str:
        """What to load: the best weights, or the given model of a teacher that is not trained."""
        settings = self.settings(member)
        if settings.train is None:
            assert isinstance(settings, Teacher) and settings.model is not None
            return settings.model
        if not member.is_trained():
            raise InputError(f"{member} has no {member.final}; train it first (python -m jobs.train).")
        return str(member.best)


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
    """InputError where the run began with another recipe and has its corpus already."""
    if run.recipe_file.exists() and run.corpus.exists():
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
    labelled = group == "teachers" and any(labels.teacher == name and labels.is_begun() for labels in sets)
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
