"""The schema of a recipe: one YAML file, the whole experiment (what, never where). `recipe_file.py` reads it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
MemberName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)
]  # no key.with.dots


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]
LayerList = Annotated[list[Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]], Field(min_length=1)]
Positive = Annotated[int, BeforeValidator(_no_bool), Field(gt=0)]
Layers = Positive | list[Annotated[int, Field(ge=0)]]


class Section(BaseModel):
    """Base of every block of the recipe: unknown keys are refused, fields are documented below their name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Corpus(Section):
    """The examples, and how they are cut."""

    train: str
    """A JSON-lines file (.jsonl, .json, also .xz or .gz), a folder of train.*, validation.* and test.* files,
    or `docstrings`, the built-in corpus."""
    validation: str | None = None
    """A file; left out where `train` is a folder or `docstrings`."""
    test: str | None = None
    """A file; left out where `train` is a folder or `docstrings`."""
    document: str = "document"
    """The field that holds the document."""
    summary: str = "summary"
    """The field that holds the summary."""
    max_source_tokens: Annotated[int, BeforeValidator(_no_bool), Field(ge=8)] | None = None
    """Documents are cut here (counted); by default at the model's positions, at most 1024."""
    max_target_tokens: Positive = 128
    """Training summaries are cut here; scores always use the whole reference."""
    max_examples: dict[Literal["train", "validation", "test"], Positive] = {}
    """A seeded sample of this many examples of a split; by default all."""

    @model_validator(mode="after")
    def _two_fields(self) -> "Corpus":
        if self.document == self.summary:
            raise ValueError(f"document and summary are both the field {self.document!r}; name two fields")
        return self


class Generation(Section):
    """Beam search settings; what is left out stays as the model's own generation config has it."""

    num_beams: Positive | None = None
    length_penalty: float | None = None
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Positive | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    early_stopping: bool | None = None


class Evaluate(Section):
    """Validation during training and the final test."""

    every_steps: Positive = 1000
    """Optimizer steps between two validations; the last step is always validated."""
    before_training: bool = True
    """Validate the untrained model too (step 0 of the curve)."""
    examples: Positive = 1000
    """Validation examples scored during training (a fixed seeded sample)."""
    num_beams: Positive = 2
    """Beams of the validation during training; `generation.num_beams` is that of the final test."""
    metric: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rouge2"
    """What decides which weights are the best."""
    batch_tokens: Positive = 8192
    """Source tokens, padding included, of one batch of beam search on one process."""
    generation: Generation = Generation()


class Train(Section):
    """One training: batches, schedule, AdamW, DeepSpeed."""

    batch_examples: Positive | None = 64
    """Examples of one optimizer step, over all processes; null with `batch_tokens`."""
    batch_tokens: Positive | None = None
    """Instead: most tokens (source and target, padding included) of one optimizer step, over all processes."""
    micro_batch_tokens: Positive = 16384
    """Most tokens (source and target, padding included) that one process holds at once; more is accumulated."""
    steps: Positive | None = None
    """Optimizer steps in all; or give `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training split; or give `steps`."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    """Linear rise to the learning rate over this many steps; then linear decay, to zero after the last step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW, on matrices only (no biases, no norms)."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """All dropout rates of the model; by default its own. With 0 the loss is the same at any world size."""
    freeze: list[Literal["encoder", "embeddings"]] = []
    """Parts that are not trained. Freezing the encoder freezes the token embeddings that it shares."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage of the student."""
    precision: Literal["fp32", "bf16"] = "fp32"
    save_every_steps: Positive = 500
    """Optimizer steps between two DeepSpeed checkpoints."""
    keep_checkpoints: Positive = 2
    """DeepSpeed checkpoints kept."""
    log_every_steps: Positive = 10

    @model_validator(mode="after")
    def _one_of_each(self) -> "Train":
        if (self.batch_examples is None) == (self.batch_tokens is None):
            raise ValueError("give one of batch_examples and batch_tokens, and null for the other")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give one of steps and epochs, and null for the other")
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "bf16 needs zero_stage 1, 2 or 3 (at 0 DeepSpeed skips bad steps in silence); use 1 or fp32"
            )
        return self


class Architecture(Section):
    """A model built from scratch."""

    family: Literal["bart", "t5"]
    width: Positive
    encoder_layers: Positive
    decoder_layers: Positive
    heads: Positive
    feed_forward: Positive
    positions: Positive = 512
    """Longest input in tokens (BART only; T5 has relative positions)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Architecture":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; change one of them")
        return self


class Tokenizer(Section):
    """A tokenizer trained on the corpus's training split."""

    kind: Literal["sentencepiece", "bpe"]
    """sentencepiece: unigram model; bpe: byte-level byte-pair encoding."""
    vocabulary: Annotated[int, Field(ge=16, le=1_000_000)]
    """Number of tokens, special tokens included; at least 300 for bpe, which holds the 256 bytes."""

    @model_validator(mode="after")
    def _bytes_fit(self) -> "Tokenizer":
        if self.kind == "bpe" and self.vocabulary < 300:
            raise ValueError(f"vocabulary {self.vocabulary} is too small for bpe; expected at least 300")
        return self


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


class Benchmark(Section):
    """Speed and memory of the teachers and students, measured in one run on one process."""

    documents: Positive = 32
    """Test documents of the latency measurement (batch 1)."""
    rounds: Positive = 3
    """Times that every model takes its turn; medians are reported."""
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = [1, 4, 16, 64]
    """Tried for the throughput; the best is reported."""


class Report(Section):
    """What the report shows."""

    examples: Positive = 10
    """Documents shown with every model's summary."""


class Recipe(Section):
    """The whole experiment."""

    name: Name
    """The run's folder is runs/NAME."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    corpus: Corpus
    teachers: dict[MemberName, Teacher] = Field(min_length=1)
    students: dict[MemberName, Student] = {}
    train: Train = Field(default_factory=lambda: Train(steps=1))
    """Required (steps or epochs) as soon as anything is trained."""
    evaluate: Evaluate = Evaluate()
    benchmark: Benchmark = Benchmark()
    report: Report = Report()
