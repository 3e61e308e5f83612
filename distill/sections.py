"""The blocks of a recipe that stand for themselves: training, decoding, what is built from scratch.

`recipe.py` puts them together.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MEMBER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"  # no key.with.dots
TEXT_PATTERN = r"^[^\x00]*$"
PATTERN_WORDS = {
    NAME_PATTERN: "expected letters (a to z), digits, '.', '_' and '-', beginning with a letter or digit",
    MEMBER_PATTERN: "expected letters (a to z), digits, '_' and '-', beginning with a letter or digit",
    TEXT_PATTERN: "expected a text without NUL characters",
}
"""What the patterns of texts mean."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]
MemberName = Annotated[str, StringConstraints(pattern=MEMBER_PATTERN, max_length=100)]


def no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


Number = Annotated[float, BeforeValidator(no_bool)]
Percent = Annotated[Number, Field(ge=0, le=100)]
Whole = Annotated[int, BeforeValidator(no_bool)]
Positive = Annotated[Whole, Field(gt=0, lt=2**31)]
LayerList = Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]
Layers = Positive | list[Annotated[Whole, Field(ge=0)]]


def no_fp16(value: Any) -> Any:
    """Refused for every family: loss scaling skips steps in silence, and it cannot be tested without a GPU."""
    if value == "fp16":
        raise ValueError(
            "activations of Pegasus and T5 (mT5, LongT5, their other relatives) overflow in fp16, and for the other "
            "families its loss scaling is not supported; use bf16 (on GPUs that have it) or fp32"
        )
    return value


Precision = Annotated[Literal["fp32", "bf16"], BeforeValidator(no_fp16)]


class Section(BaseModel):
    """Base of every block of the recipe: unknown keys are refused, fields are documented below their name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Languages(Section):
    """Of a multilingual model, as its tokenizer spells them: en_XX (mBART), eng_Latn (NLLB), en (M2M100)."""

    source: str
    target: str
    """Summaries and translations begin with it, where the model wants that."""


class Generation(Section):
    """Beam search settings; what is left out stays as the model's own generation config has it."""

    num_beams: Positive | None = None
    length_penalty: Number | None = None
    min_new_tokens: Annotated[Whole, Field(ge=0)] | None = None
    max_new_tokens: Positive | None = None
    no_repeat_ngram_size: Annotated[Whole, Field(ge=0)] | None = None
    early_stopping: bool | None = None

    @model_validator(mode="after")
    def _shortest_fits(self) -> "Generation":
        if self.min_new_tokens and self.max_new_tokens and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        return self


class EarlyStopping(Section):
    """End a training whose validation metric does not get better any more; the schedule is that of all steps."""

    patience: Positive = 3
    """Validations in a row without an improvement, after which the training ends."""
    min_delta: Annotated[Number, Field(ge=0)] = 0.0
    """The least improvement that counts, in the metric's own units, over the last one that counted."""


class Search(Section):
    """A grid of decoding settings, tried on the validation split before the final test; the best one decodes there."""

    num_beams: Annotated[list[Positive], Field(min_length=1)] = [1, 2, 4, 6]
    length_penalty: Annotated[list[Number], Field(min_length=1)] = [0.5, 1.0, 2.0]
    """Each with each number of beams above one; a single beam has no length penalty."""
    examples: Positive = 500
    """Validation examples summarized at every point (a fixed seeded sample)."""


class Evaluate(Section):
    """Validation during training and the final test."""

    every_steps: Positive | None = 1000
    """Optimizer steps between two validations; the last step is always validated."""
    every_epochs: Annotated[Number, Field(gt=0)] | None = None
    """Instead: epochs between two validations, parts of one too (0.1), rounded to whole steps."""
    early_stopping: EarlyStopping | None = None
    before_training: bool = True
    """Validate the untrained model too (step 0 of the curve)."""
    examples: Positive = 1000
    """Validation examples scored during training (a fixed seeded sample)."""
    num_beams: Positive = 2
    """Beams of the validation during training; `generation.num_beams` is that of the final test."""
    metric: Literal["rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"] = "rouge2"
    """What decides which weights are the best; bleu and chrf (sacrebleu, for translation) are then what the report shows."""
    bleu_tokenize: Literal["13a", "intl", "char", "zh"] = "13a"
    """sacrebleu's tokenizer for BLEU: 13a for languages with spaces, zh for Chinese, char for others without spaces."""
    batch_tokens: Positive = 8192
    """Source tokens, padding included, of one batch of beam search on one process."""
    shards: Positive = 8
    """Parts of the final test, dealt over the processes; a killed one continues where it stopped."""
    generation: Generation = Generation()
    search: Search | None = None
    """Number of beams and length penalty are found on the validation split, by `metric`, and go over `generation`."""

    @model_validator(mode="before")
    @classmethod
    def _one_interval(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("every_epochs") is None:
            return given
        if given.get("every_steps") is not None:
            raise ValueError("give one of every_steps and every_epochs, and null for the other")
        return given | {"every_steps": None}

    @model_validator(mode="after")
    def _some_interval(self) -> "Evaluate":
        if self.every_steps is None and self.every_epochs is None:
            raise ValueError("give one of every_steps and every_epochs")
        return self


class Train(Section):
    """One training: batches, schedule, optimizer, DeepSpeed."""

    batch_examples: Positive | None = 64
    """Examples of one optimizer step, over all processes; null with `batch_tokens`."""
    batch_tokens: Positive | None = None
    """Instead: most tokens (source and target, padding included) of one optimizer step, over all processes."""
    micro_batch_tokens: Positive = 16384
    """Most tokens (source and target, padding included) that one process holds at once; more is accumulated."""
    steps: Positive | None = None
    """Optimizer steps in all; or give `epochs`."""
    epochs: Annotated[Number, Field(gt=0)] | None = None
    """Passes over the training split; or give `steps`."""
    learning_rate: Annotated[Number, Field(gt=0)] = 3e-4
    warmup_steps: Annotated[Whole, Field(ge=0)] | None = None
    """Linear rise to the learning rate over this many steps, by default 5 % of all; then the `schedule`."""
    schedule: Literal["linear", "cosine", "constant", "polynomial"] = "linear"
    """From the learning rate to zero after the last step; `constant` stays."""
    polynomial_power: Annotated[Number, Field(gt=0)] = 2.0
    """Of polynomial: the learning rate times the share of steps that are left, to this power."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor has the published settings of Pegasus (no relative step, no parameter scale) and next to no state;
    at zero_stage 0 only."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """On matrices only (no biases, no norms)."""
    clip_norm: Annotated[Number, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """All dropout rates of the model; by default its own. With 0 the loss is the same at any world size."""
    freeze: list[Literal["encoder", "embeddings"]] = []
    """Parts that are not trained. Freezing the encoder freezes the token embeddings that it shares."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(no_bool)] = 2
    """DeepSpeed ZeRO stage of the student."""
    precision: Precision = "fp32"
    offload: Literal["cpu"] | None = None
    """Keep the optimizer's states in the host's memory and update there, at zero_stage 2 and 3."""
    gradient_checkpointing: bool = False
    """Compute the layers' activations again in the backward pass: less memory, about a third more time."""
    deterministic: bool = False
    """Only deterministic algorithms: the same run twice gives the same weights on GPUs too, more slowly."""
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] | None = None
    """Of the order of the examples and of dropout; by default the recipe's."""
    save_every_steps: Positive = 500
    """Optimizer steps between two DeepSpeed checkpoints."""
    keep_checkpoints: Positive = 2
    """DeepSpeed checkpoints kept: the newest, and that of the best step where there is one."""
    keep_every_steps: Positive | None = None
    """Keep those of every so many steps too."""
    log_every_steps: Positive = 10
    """Steps between two rows of metrics.jsonl. The first and the last step always have one."""

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

    @model_validator(mode="after")
    def _stage_fits_the_optimizer(self) -> "Train":
        if self.optimizer == "adafactor" and self.zero_stage != 0:
            raise ValueError(
                "adafactor needs zero_stage 0: stages 1 to 3 cut matrices into flat pieces, which have no rows and columns "
                "to factor, and whose norms depend on the number of processes; use 0 or adamw"
            )
        if self.offload and self.zero_stage < 2:
            raise ValueError("offload needs zero_stage 2 or 3, where each process updates its own part; use 2 or 3")
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
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Architecture":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; change one of them")
        return self


class Tokenizer(Section):
    """A tokenizer trained on the corpus's training split."""

    kind: Literal["sentencepiece", "bpe"]
    """sentencepiece: unigram model; bpe: byte-level byte-pair encoding."""
    vocabulary: Annotated[Whole, Field(ge=16, le=1_000_000)]
    """Number of tokens, special tokens included; at least 300 for bpe, which holds the 256 bytes."""

    @model_validator(mode="after")
    def _bytes_fit(self) -> "Tokenizer":
        if self.kind == "bpe" and self.vocabulary < 300:
            raise ValueError(f"vocabulary {self.vocabulary} is too small for bpe; expected at least 300")
        return self


class Benchmark(Section):
    """Speed and memory of the teachers and students, measured in one run on one process."""

    documents: Positive = 32
    """Test documents of the latency measurement (batch 1)."""
    rounds: Positive = 3
    """Times that every model takes its turn. Medians are reported, with the smallest and the largest round. With one
    round there is no spread, and no speed-up is reported."""
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = [1, 4, 16, 64]
    """Tried for the throughput; the best is reported."""
    minutes: Annotated[Number, Field(gt=0)] = 10.0
    """Longest time of the whole benchmark. On a slow machine it leaves out the largest batch sizes, then documents (at
    least 4 stay), then rounds (at least 2 stay); the report says what."""


class Wandb(Section):
    """Tell Weights & Biases what metrics.jsonl is told (`pip install -e .[wandb]`); its variables WANDB_* work as usual."""

    project: Annotated[str, Field(min_length=1)]
    entity: str | None = None
    """A user or a team; by default that of the login."""


class Report(Section):
    """What the report shows."""

    examples: Positive = 10
    """Documents shown with every model's summary."""
