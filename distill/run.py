"""The run directory: where everything is. Pure paths, no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.errors import InputError
from distill.files import read_json, sha256_file
from distill.recipe import Labels, Recipe, Student, Teacher
from distill.sections import Evaluate, Generation, Train

Group = Literal["teachers", "students"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


WEIGHT_FOLDERS = ("initial", "best", "final")


def public_name(model: str) -> str:
    """Return how others may know a model: its hub name, or a path without the folders above the project.

    >>> public_name("/home/me/models/bart-base"), public_name("/home/me/runs/news/teachers/t/best")
    ('bart-base', 'news/teachers/t/best')
    """
    path = Path(model)
    if not path.is_absolute() and ".." not in path.parts:
        return model
    parts = path.parts[-4:] if path.name in WEIGHT_FOLDERS else path.parts[-1:]
    return "/".join(parts)


@dataclass(frozen=True)
class Member:
    """A teacher or a student of the run and its folder."""

    group: Group
    name: str
    folder: Path
    own_folder: Path | None = None
    """Of a teacher that another run has made: the folder of what this run makes of it. `folder` is that of the other run."""

    def __str__(self) -> str:
        return f"{self.group.removesuffix('s')} {self.name}"

    @property
    def is_shared(self) -> bool:
        """True if it belongs to another run."""
        return self.own_folder is not None

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
        return (self.own_folder or self.folder) / "benchmark.json"

    @property
    def cache(self) -> Path:
        """Of a teacher: what it says about the training targets."""
        return (self.own_folder or self.folder) / "cache"

    @property
    def cuts(self) -> Path:
        """How many texts of the corpus are cut as this member's tokenizer reads them."""
        return (self.own_folder or self.folder) / "cuts.json"

    @property
    def search(self) -> Path:
        """The best decoding on the validation split, and all that were tried."""
        return self.folder / "search.json"

    @property
    def search_points(self) -> Path:
        """While they are tried; removed once all are scored."""
        return self.folder / "search"

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
        return self.settings.teacher or self.settings.name or self.name

    @property
    def origin(self) -> str:
        """Who made the labels, for people."""
        if self.settings.file:
            return self.settings.file
        return f"{self.teacher} ({self.settings.run})" if self.settings.run else self.teacher

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
        """True if the table is there, was made by the recipe's rules, and of the file as it is now if it has one.

        A file that is gone is not missed: the table has all of it.
        """
        if not self.manifest.exists() or not self.table.exists():
            return False
        merged: dict[str, Any] = read_json(self.manifest)
        if (merged["keep_if"], merged["best_of"]) != (self.settings.keep_if.given, self.settings.best_of_block):
            return False
        file = self.settings.file
        of_file = merged.get("file")
        if file is None or of_file is None:
            return file is None and of_file is None
        return not Path(file).exists() or bool(of_file["sha256"] == sha256_file(Path(file)))

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
    def corpus_warnings(self) -> Path:
        """A list of sentences that a user should read; empty if all is well. The last file that prepare writes."""
        return self.corpus / "warnings.json"

    @property
    def corpus_record(self) -> Path:
        """The hash of the corpus that the run's results were made from; stays where the corpus is deleted."""
        return self.folder / "corpus.json"

    @property
    def first_sentence(self) -> Path:
        """The scores of the first sentence as the summary, on the test split."""
        return self.folder / "first_sentence.json"

    @property
    def sources(self) -> Path:
        """The hashes of what the run reads from other runs and from files of labels."""
        return self.folder / "sources.json"

    @property
    def redo(self) -> Path:
        """The names of a --redo that has moved outputs aside and is not complete yet."""
        return self.logs / "redo.json"

    @property
    def replaced(self) -> Path:
        """What was made before it was done again; may be deleted."""
        return self.folder / "replaced"

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

    @property
    def benchmark_progress(self) -> Path:
        """Where the benchmark is, while it runs."""
        return self.logs / "benchmark.progress.json"

    def split(self, split: Split) -> Path:
        return self.corpus / f"{split}.parquet"

    def member(self, group: Group, name: str) -> Member:
        """InputError where the recipe has no such teacher or student."""
        names = self.recipe.teachers if group == "teachers" else self.recipe.students
        if name not in names:
            raise InputError(
                f"{name!r} is not among the recipe's {group}; expected one of {', '.join(names) or '(none)'}."
            )
        folder = self.folder / group / name
        shared = self.recipe.teachers[name] if group == "teachers" else None
        if shared and shared.run:
            return Member(group, name, Path(shared.run) / group / (shared.name or name), own_folder=folder)
        return Member(group, name, folder)

    def label_set(self, name: str) -> LabelSet:
        """InputError where the recipe has no such labels."""
        if name not in self.recipe.labels:
            raise InputError(
                f"{name!r} is not among the recipe's labels; expected one of {', '.join(self.recipe.labels) or '(none)'}."
            )
        settings = self.recipe.labels[name]
        folder = (
            Path(settings.run) / "labels" / (settings.name or name) if settings.run else self.folder / "labels" / name
        )
        return LabelSet(name, folder, settings)

    def label_sets(self) -> list[LabelSet]:
        return [self.label_set(name) for name in self.recipe.labels]

    def is_prepared(self) -> bool:
        """True where the corpus with its warnings, and all other documents that are labelled, are there."""
        extra = [one for one in self.label_sets() if one.settings.documents and one.settings.is_made_here]
        return self.corpus_warnings.exists() and all(labels.documents.exists() for labels in extra)

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

    def origin(self, student: Student) -> dict[str, Any]:
        """Return what a student's config.json tells about its teacher."""
        teacher = self.recipe.teachers[student.teacher]
        return {
            "run": self.recipe.name,
            "teacher": student.teacher,
            "teacher_model": public_name(teacher.model) if teacher.model else "from scratch",
            "teacher_trained_in_run": teacher.train is not None,
            "layers_of": public_name(student.model) if student.model else student.teacher,
        }

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

    def own_decoding(self, member: Member) -> str:
        """Return the folder or hub name of the generation config that the recipe's keys go over.

        Not that of best/: the recipe's keys and what the search found are in it already.
        """
        return self.weights(member) if self.train_settings(member) is None else str(member.initial)

    def weights(self, member: Member) -> str:
        """What to load: the best weights, or the given model of a teacher that is not trained."""
        settings = self.settings(member)
        if settings.train is None:
            assert isinstance(settings, Teacher) and settings.model is not None
            return settings.model
        if not member.is_trained():
            raise InputError(f"{member} has no {member.final}; train it first (python -m jobs.train).")
        return str(member.best)
