"""The corpus block of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from distill.sections import Positive, Section, Whole


def one_or_several_paths(value: Any) -> Any:
    paths = value if isinstance(value, list) and value else [value]
    if not all(isinstance(path, str) and path for path in paths):
        raise ValueError("input should be a valid string (a path) or a list of them")
    return value


def counts_of_splits(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError(f"expected the splits and their numbers, such as {{train: {value}}}")
    return value


def one_character(value: Any) -> Any:
    if not isinstance(value, str) or len(value) != 1 or value in '"\r\n':
        raise ValueError('expected one character between the fields, such as ";" or "\\t" (a tab)')
    return value


def shown_paths(paths: str | list[str]) -> str:
    """Return paths as a message or the report names them."""
    several = [paths] if isinstance(paths, str) else paths
    more = f" and {len(several) - 3} more" if len(several) > 3 else ""
    return ", ".join(several[:3]) + more


Paths = Annotated[str | list[str], BeforeValidator(one_or_several_paths)]
Counts = Annotated[dict[Literal["train", "validation", "test"], Positive], BeforeValidator(counts_of_splits)]
Delimiter = Annotated[str, BeforeValidator(one_character)]


class HeldOut(Section):
    """Examples that are taken out of the training files, seeded, with all documents that are nearly the same together."""

    validation: Positive | None = None
    """Number of validation examples."""
    test: Positive | None = None
    """Number of test examples."""


class Corpus(Section):
    """The examples, and how they are cut."""

    train: Paths
    """A file (JSON lines .jsonl, JSON .json: lines or one array, .csv, .tsv; all also .xz or .gz; .parquet; .source with a
    .target beside it), a pattern such as `"data/train-*.parquet"`, a list of files and patterns, a folder of one split or
    of all (files, shards or folders named train, validation and test; also what `save_to_disk` writes), the name of a
    Hugging Face dataset, or `docstrings`, the built-in corpus."""
    validation: Paths | None = None
    """Files, as `train`; left out if `train` has a validation split of its own, or if `split` takes one from it."""
    test: Paths | None = None
    """Files, as `train`; left out if `train` has a test split of its own, or if `split` takes one from it."""
    split: HeldOut | None = None
    """Take the validation split, the test split, or both from the training examples: `{validation: 1500, test: 1500}`."""
    config: str | None = None
    """The configuration of a Hugging Face dataset, such as `ro-en` of wmt/wmt16."""
    document: str | None = None
    """The field that holds the document; a field of a field is `translation.en`. By default `document`, or that of a known
    dataset."""
    summary: str | None = None
    """The field that holds the summary, or a list of them: students learn the first, scores take the best. By default
    `summary`, or that of a known dataset."""
    delimiter: Delimiter | None = None
    """The character between the fields of CSV files, such as `";"`; by default a comma, in .tsv files a tab."""
    max_source_tokens: Annotated[Whole, Field(ge=8)] | None = None
    """Documents are cut here (counted); by default at the model's positions, at most 1024."""
    max_target_tokens: Positive = 128
    """Training summaries are cut here; scores always use the whole reference."""
    max_examples: Counts = Field(default_factory=dict)
    """A seeded sample of this many examples of a split; by default all."""

    @property
    def taken_from_train(self) -> dict[str, int]:
        """The numbers of examples that `split` takes from the training files, by their split."""
        counts = {"validation": self.split.validation, "test": self.split.test} if self.split else {}
        return {split: count for split, count in counts.items() if count is not None}

    @model_validator(mode="after")
    def _two_fields(self) -> "Corpus":
        if (self.document or "document") == (self.summary or "summary"):
            raise ValueError(
                f"document and summary are both the field {self.document or self.summary!r}; name two fields"
            )
        return self

    @model_validator(mode="after")
    def _one_place_for_each_split(self) -> "Corpus":
        if self.split and not self.taken_from_train:
            raise ValueError("split is empty; expected validation, test, or both, each with a number of examples")
        for split in self.taken_from_train:
            if getattr(self, split):
                raise ValueError(f"{split} is given, and split.{split} too; remove one of them")
        return self
