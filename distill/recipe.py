"""The schema of a recipe: one YAML file, the whole experiment (what, never where). `recipe_file.py` reads it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from distill.corpus_settings import Corpus, Paths
from distill.sections import (
    TEXT_PATTERN,
    Architecture,
    Benchmark,
    Evaluate,
    Generation,
    Languages,
    LayerList,
    Layers,
    MemberName,
    Name,
    Number,
    Percent,
    Positive,
    Precision,
    Report,
    Section,
    Tokenizer,
    Train,
    Wandb,
    Whole,
    no_bool,
)


class Cache(Section):
    """What a teacher says about the training targets, computed once for all students and epochs."""

    keep: Literal["hidden", "top_k"]
    """hidden: its last decoder hidden states (the same loss as with the live teacher);
    top_k: its k largest logits and the mass of the others (smaller; the KL counts the others as one event)."""
    k: Positive = 64
    """Of top_k."""
    shards: Positive = 1
    """Parts that may be computed apart from each other (`python -m jobs.cache ... --shard 3`)."""


def _cache_block(value: Any) -> Any:
    return {"keep": value} if isinstance(value, str) else value


class Teacher(Section):
    """A model to learn from: taken as it is, or trained first."""

    model: str | None = None
    """A folder or a hub name; or give `architecture` and `tokenizer`."""
    run: str | None = None
    """Or the folder of another run on the same corpus (runs/NAME): the teacher that it has trained is read there, with its
    decoding and its scores. Only `cache`, `zero_stage`, `precision` and `offload` may be given beside it."""
    name: MemberName | None = None
    """The name of the teacher in `run`; by default its name here."""
    architecture: Architecture | None = None
    tokenizer: Tokenizer | None = None
    prefix: Annotated[str, StringConstraints(pattern=TEXT_PATTERN)] = ""
    """Stands before every document, also for its students: `summarize: ` (T5), `>>ron<< ` (Marian of several languages)."""
    languages: Languages | None = None
    """Of a multilingual model, also for its students."""
    zero_stage: Annotated[Literal[0, 3], BeforeValidator(no_bool)] = 0
    """While it teaches: 0 is a replica on every process, 3 is sharded over the processes by DeepSpeed."""
    precision: Precision | None = None
    """While it teaches; by default that of the student (fp32 where it fills a cache)."""
    offload: Literal["cpu"] | None = None
    """Keep the shards of zero_stage 3 in the host's memory."""
    cache: Annotated[
        Cache | None, BeforeValidator(_cache_block, json_schema_input_type=Cache | Literal["hidden", "top_k"] | None)
    ] = None
    """`hidden`, `top_k` or a block: students learn from what is computed once, not from the live teacher."""
    train: Train | None = None
    """Train the teacher first: these keys over the recipe's `train`. Required with `architecture`."""
    evaluate: Evaluate | None = None
    """These keys over the recipe's `evaluate`."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Teacher":
        if self.name and not self.run:
            raise ValueError("name is the name of a teacher in another run; give run, or remove it")
        if self.run:  # its keys are those of the other run, see shared.py
            return self
        if (self.model is None) == (self.architecture is None):
            raise ValueError("give one of model (a folder or a hub name) and architecture (from scratch)")
        if (self.architecture is None) != (self.tokenizer is None):
            raise ValueError("architecture and tokenizer go together")
        if self.architecture and self.languages:
            raise ValueError("languages are those of a pretrained model; one from scratch knows none: remove them")
        if self.architecture and self.train is None:
            raise ValueError("a teacher from scratch needs a train block ({} for the recipe's own settings)")
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> "Teacher":
        if self.offload and self.zero_stage != 3:
            raise ValueError("offload needs zero_stage 3; at 0 every process holds the whole teacher")
        if self.cache and self.zero_stage == 3:
            raise ValueError(
                "a teacher fills its cache as a replica and never teaches live; remove zero_stage or cache"
            )
        return self


class Divergence(Section):
    """How far the student's distribution over the vocabulary is from the teacher's."""

    weight: Annotated[Number, Field(gt=0)]
    temperature: Annotated[Number, Field(gt=0)] = 2.0
    """Both models' logits are divided by it; the term is multiplied by its square (Hinton et al. 2015)."""
    direction: Literal["forward", "reverse", "jensen_shannon"] = "forward"
    """forward: KL(teacher || student), reverse: KL(student || teacher); jensen_shannon lies between, see `beta`."""
    beta: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """The teacher's share in the mixture of jensen_shannon (Agarwal et al. 2024)."""


class Supervision(Section):
    """Which teacher layer supervises each student layer: as many numbers as the student has layers."""

    decoder: LayerList | None = None
    encoder: LayerList | None = None

    @model_validator(mode="after")
    def _some(self) -> "Supervision":
        if self.decoder is None and self.encoder is None:
            raise ValueError("no layers; give decoder or encoder a list of teacher layers")
        return self


class Hidden(Section):
    """How far the student's hidden states are from those of matched teacher layers."""

    weight: Annotated[Number, Field(gt=0)]
    normalize: bool = False
    """Bring each token's vector to mean 0 and variance 1 first (Pegasus needs it, Marian gains)."""
    distance: Literal["squared", "cosine"] = "squared"
    """squared: mean over the dimensions of the squared difference; cosine: 1 - cosine. Summed over the layers."""
    supervise: Literal["copied", "spread"] | Supervision = "copied"
    """copied: each layer by the one it was copied from; spread: the published tables, the last layer by the
    last; or lists. The encoder takes part where its depth differs from the teacher's, or where it is listed."""


class Objective(Section):
    """What a student is scored against: the weights of the terms of its loss, each a mean over the step's tokens."""

    cross_entropy: Annotated[Number, Field(ge=0)] = 1.0
    """On the target texts, with `train.label_smoothing`."""
    kl: Divergence | None = Field(None, examples=[{"weight": 0.8}])
    hidden: Hidden | None = Field(None, examples=[{"weight": 1.0}])
    share_encoder: bool | None = None
    """Run one encoder for student and teacher: possible where it is frozen, the teacher's own and of its precision.
    By default where possible; true refuses the recipe where it is not."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Objective":
        if not (self.cross_entropy or self.kl or self.hidden):
            raise ValueError("every term is zero; give cross_entropy, kl or hidden a weight")
        return self

    @property
    def needs_teacher(self) -> bool:
        return self.kl is not None or self.hidden is not None


class KeepIf(Section):
    """Which labels students read: those that keep every rule that is given. Shares and ROUGE are 0 to 100."""

    rouge1_at_least: Percent | None = None
    """ROUGE-1 of the label against the gold summary."""
    rouge2_at_least: Percent | None = None
    rougeL_at_least: Percent | None = None
    length_ratio_at_least: Annotated[Number, Field(gt=0)] | None = None
    """Words of the label over words of the gold summary."""
    length_ratio_at_most: Annotated[Number, Field(gt=0)] | None = None
    repeated_ngrams_at_most: Percent | None = None
    """Share of the label's trigrams that stood in it before."""
    copied_share_at_most: Percent | None = None
    """Share of the label's different bigrams that its document has."""
    log_probability_at_least: Annotated[Number, Field(le=0)] | None = None
    """Of the teacher, per token (natural logarithm, mean over the label's tokens)."""
    finished: Literal[True] | None = None
    """The teacher ended the label itself, before the longest length."""

    @model_validator(mode="after")
    def _something_passes(self) -> "KeepIf":
        least, most = self.length_ratio_at_least, self.length_ratio_at_most
        if least is not None and most is not None and least > most:
            raise ValueError(f"length_ratio_at_least {least:g} is above length_ratio_at_most {most:g}: no label passes")
        return self

    @property
    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)

    @property
    def needs_gold(self) -> bool:
        return any(rule.startswith(("rouge", "length_ratio")) for rule in self.given)


class BestOf(Section):
    """Keep one of the n best summaries of the beam."""

    n: Annotated[Positive, Field(ge=2)]
    """At most `num_beams`."""
    by: Literal["rouge1", "rouge2", "rougeL", "log_probability"]
    """ROUGE to the gold summary, or the teacher's mean log-probability per token."""


class LabelEngine(Section):
    """What generates."""

    name: Literal["huggingface", "ctranslate2"] = "huggingface"
    compute: Literal["fp32", "fp16", "int8"] = "fp32"
    """Of ctranslate2."""
    agreement_at_least: Percent = 90.0
    """Mean ROUGE-L between its summaries and those of huggingface, below which it must not label."""
    documents: Positive = 200
    """On which the two are compared."""

    @model_validator(mode="after")
    def _only_of_ctranslate2(self) -> "LabelEngine":
        given = self.model_fields_set - {"name"}
        if self.name == "huggingface" and given and self != LabelEngine():
            raise ValueError(f"{', '.join(sorted(given))}: of ctranslate2 only; give name: ctranslate2, or remove it")
        return self


def _engine_block(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Labels(Generation):
    """Pseudo-labels: a teacher's summaries of the training documents, or of others. Decoding keys that are left out are
    as the teacher's search found or its `evaluate.generation` says, else as in the model's own generation config."""

    file: str | None = None
    """Labels made elsewhere, in place of a teacher's: a file of `{"id": ..., "label": ...}` lines (.jsonl, also .csv, .tsv,
    .parquet, .gz, .xz). The id is that of a training document; without an id the line needs the `document` itself. `summary`
    is read if there is no `label`. Only `keep_if` may be given beside it."""
    run: str | None = None
    """Or the folder of another run on the same corpus (runs/NAME): the labels that it has merged are read there."""
    name: MemberName | None = None
    """The name of the labels in `run`; by default their name here."""
    teacher: str | None = None
    """One of `teachers`; by default that of the labels' own name."""
    documents: Paths | None = None
    """Files of other documents to label (as `corpus.train`), in place of the training split; it needs no
    summaries."""
    max_documents: Positive | None = None
    """A seeded sample of `documents`; by default all."""
    shards: Positive = 8
    """Parts that are labelled apart from each other (`python -m jobs.label ... --shard 3`)."""
    batch_tokens: Positive = 8192
    """Source tokens, padding included, of one batch of beam search; one that does not fit the memory is halved."""
    precision: Precision | None = None
    """By default the teacher's, else fp32."""
    engine: Annotated[
        LabelEngine,
        BeforeValidator(_engine_block, json_schema_input_type=LabelEngine | Literal["huggingface", "ctranslate2"]),
    ] = LabelEngine()
    best_of: BestOf | None = None
    attention_temperature: Annotated[Number, Field(gt=0)] | None = None
    """Divides the scores of every attention of the teacher while it labels (PLATE, Zhang et al. 2022: 1.5 or 2.0 gives
    shorter, more abstractive labels)."""
    keep_if: KeepIf = KeepIf()

    @property
    def best_of_block(self) -> dict[str, Any] | None:
        return self.best_of.model_dump() if self.best_of else None

    @property
    def is_made_here(self) -> bool:
        """True if a teacher of this run makes them."""
        return self.run is None and self.file is None

    @model_validator(mode="after")
    def _of_a_file(self) -> "Labels":
        if self.run and self.file:
            raise ValueError("give one of run and file")
        if self.name and not self.run:
            raise ValueError("name is the name of labels in another run; give run, or remove it")
        if not self.file:
            return self
        fields = type(self).model_fields
        others = [key for key in fields if key not in ("file", "keep_if") and getattr(self, key) != fields[key].default]
        if others:
            raise ValueError(
                f"{', '.join(others)}: says how a teacher labels, but these labels are read from a file; remove it, or file"
            )
        return self

    @model_validator(mode="after")
    def _rules_of_a_file(self) -> "Labels":
        unknown = [rule for rule in ("log_probability_at_least", "finished") if rule in self.keep_if.given]
        if self.file and unknown:
            raise ValueError(
                f"keep_if.{unknown[0]}: only the teacher that made a label knows this, and a file does not say it; remove it"
            )
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> "Labels":
        if self.max_documents and not self.documents:
            raise ValueError("max_documents needs documents; corpus.max_examples samples the training split")
        if self.best_of and self.num_beams and self.best_of.n > self.num_beams:
            raise ValueError(f"best_of.n is {self.best_of.n}, more than num_beams {self.num_beams}; raise num_beams")
        if self.engine.name == "ctranslate2" and self.precision:
            raise ValueError("precision is that of huggingface; give engine.compute for ctranslate2")
        return self


GOLD = "gold"


def _sources(value: Any) -> Any:
    if isinstance(value, list):
        twice = {str(name) for name in value if value.count(name) > 1}
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))} stands twice; to read it twice give {{NAME: 2}}")
        return dict.fromkeys(map(str, value), 1.0)
    if not isinstance(value, dict):
        raise ValueError("expected a list of names such as [gold, bart], or a block such as {gold: 1, bart: 0.5}")
    return {str(name): times for name, times in value.items()}


def sources(train_on: Mapping[str, float]) -> str:
    """What a student reads, in words: `gold + bart x 0.5`."""
    return " + ".join(name if times == 1 else f"{name} x {times:g}" for name, times in train_on.items())


TrainOn = Annotated[
    dict[str, Annotated[Number, Field(gt=0, le=100)]],
    Field(min_length=1),
    BeforeValidator(_sources, json_schema_input_type=dict[str, float] | list[str]),
]


class Student(Section):
    """A teacher with fewer layers, fine-tuned on gold summaries or labels and, with `objective`, against its teacher."""

    teacher: str
    """The name of one of `teachers`."""
    model: str | None = None
    """A folder or a hub name of another model with the teacher's tokenizer, to begin with in the teacher's place."""
    encoder_layers: Layers | None = None
    """A depth or a list of layers of the model it begins with; by default all."""
    decoder_layers: Layers | None = None
    """A depth or a list of layers of the model it begins with; by default all."""
    train_on: TrainOn = {GOLD: 1.0}  # noqa: RUF012 - frozen
    """`gold`, or names of `labels`, as a list; or as a block with how often an epoch reads each: {gold: 1, bart: 0.5}."""
    objective: Objective = Objective()
    train: Train = Field(default_factory=lambda: Train(steps=1))
    """These keys over the recipe's `train`."""
    evaluate: Evaluate = Evaluate()
    """These keys over the recipe's `evaluate`."""


class Recipe(Section):
    """The whole experiment."""

    name: Name
    """The run's folder is runs/NAME."""
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 42
    corpus: Corpus
    teachers: dict[MemberName, Teacher] = Field(
        min_length=1, examples=[{"bart": {"model": "facebook/bart-large-xsum"}}]
    )
    labels: dict[MemberName, Labels] = Field(default_factory=dict, examples=[{"bart": {"num_beams": 4}}])
    students: dict[MemberName, Student] = Field(
        default_factory=dict, examples=[{"small": {"teacher": "bart", "decoder_layers": 3}}]
    )
    train: Train = Field(default_factory=lambda: Train(steps=1))
    """Required (steps or epochs) as soon as anything is trained."""
    evaluate: Evaluate = Evaluate()
    benchmark: Benchmark = Benchmark()
    report: Report = Report()
    wandb: Wandb | None = None
