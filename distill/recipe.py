"""The schema of a recipe: one YAML file, the whole experiment (what, never where). `recipe_file.py` reads it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from distill.sections import (
    Architecture,
    Benchmark,
    Corpus,
    Evaluate,
    LayerList,
    Layers,
    MemberName,
    Name,
    Number,
    Positive,
    Report,
    Section,
    Tokenizer,
    Train,
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
    architecture: Architecture | None = None
    tokenizer: Tokenizer | None = None
    zero_stage: Literal[0, 3] = 0
    """While it teaches: 0 is a replica on every process, 3 is sharded over the processes by DeepSpeed."""
    precision: Literal["fp32", "bf16"] | None = None
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
        if (self.model is None) == (self.architecture is None):
            raise ValueError("give one of model (a folder or a hub name) and architecture (from scratch)")
        if (self.architecture is None) != (self.tokenizer is None):
            raise ValueError("architecture and tokenizer go together")
        if self.architecture and self.train is None:
            raise ValueError("a teacher from scratch needs a train block ({} for the recipe's own settings)")
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
    kl: Divergence | None = None
    hidden: Hidden | None = None
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


class Student(Section):
    """A teacher with fewer layers, fine-tuned on the gold summaries and, with `objective`, against its teacher."""

    teacher: str
    """The name of one of `teachers`."""
    model: str | None = None
    """A folder or a hub name of another model with the teacher's tokenizer, to begin with in the teacher's place."""
    encoder_layers: Layers | None = None
    """A depth or a list of layers of the model it begins with; by default all."""
    decoder_layers: Layers | None = None
    """A depth or a list of layers of the model it begins with; by default all."""
    objective: Objective = Objective()
    train: Train = Field(default_factory=lambda: Train(steps=1))
    """These keys over the recipe's `train`."""
    evaluate: Evaluate = Evaluate()
    """These keys over the recipe's `evaluate`."""


class Recipe(Section):
    """The whole experiment."""

    name: Name
    """The run's folder is runs/NAME."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    corpus: Corpus
    teachers: dict[MemberName, Teacher] = Field(min_length=1)
    students: dict[MemberName, Student] = Field(default_factory=dict)
    train: Train = Field(default_factory=lambda: Train(steps=1))
    """Required (steps or epochs) as soon as anything is trained."""
    evaluate: Evaluate = Evaluate()
    benchmark: Benchmark = Benchmark()
    report: Report = Report()
