"""What a summarizing job works on: documents as token ids, a model, its decoding; for labels and for scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from distill.attention import divide_attention_scores
from distill.batching import Tokens, hash_rows, tokenize
from distill.corpus import read_split
from distill.data import labelled_documents, limits_of
from distill.errors import InputError
from distill.files import sha256_file
from distill.generation import decoding_settings, generation_config
from distill.pretrained import DTYPES, fingerprint, load_model, load_tokenizer
from distill.reading import Row
from distill.recipe import Labels
from distill.run import LabelSet, Member, Run, Split
from distill.sections import Generation
from distill.summaries import Contents


@dataclass(frozen=True)
class Task:
    """Documents, the model that summarizes them, and how."""

    rows: list[Row]
    tokens: Tokens
    model: PreTrainedModel
    tokenizer: Any
    weights: str
    config: GenerationConfig
    contents: Contents

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows]


def evaluation_task(run: Run, member: Member, split: Split) -> Task:
    """A member summarizes a whole split."""
    settings = run.evaluate_settings(member)
    weights = run.weights(member)
    model = load_model(weights)
    config = generation_config(model, settings.generation, run.recipe.corpus.max_target_tokens)
    engine = {"name": "huggingface", "precision": "fp32"}
    return _task(run, run.split(split), model, weights, config, engine, settings.shards)


def label_task(run: Run, labels: LabelSet) -> Task:
    """A teacher summarizes the documents of a label set. InputError where its settings do not fit the model."""
    settings, teacher = labels.settings, run.recipe.teachers[labels.teacher]
    member = run.member("teachers", labels.teacher)
    weights, precision = run.weights(member), settings.precision or teacher.precision or "fp32"
    engine: dict[str, Any] = {"name": settings.engine.name, "precision": precision}
    if settings.engine.name == "ctranslate2":
        engine["precision"] = precision = "fp32"  # what is converted
        engine["compute"] = settings.engine.compute
    model = load_model(weights, DTYPES[precision])
    config = generation_config(model, _decoding(run, member, settings), run.recipe.corpus.max_target_tokens)
    if settings.best_of:
        if settings.best_of.n > (config.num_beams or 1):
            raise InputError(
                f"labels.{labels.name}.best_of.n: {settings.best_of.n} given, but the teacher searches with "
                f"{config.num_beams or 1} beams. Expected at most as many; lower n, or give num_beams."
            )
        config.num_return_sequences = settings.best_of.n
    if settings.attention_temperature:
        divide_attention_scores(model, settings.attention_temperature)
        engine["attention_temperature"] = settings.attention_temperature
    return _task(run, labelled_documents(run, labels), model, weights, config, engine, settings.shards)


def _decoding(run: Run, teacher: Member, labels: Labels) -> Generation:
    """The labels' own keys over those with which the teacher is evaluated."""
    own = {key: getattr(labels, key) for key in Generation.model_fields if getattr(labels, key) is not None}
    return run.evaluate_settings(teacher).generation.model_copy(update=own)


def _task(
    run: Run,
    documents: Path,
    model: PreTrainedModel,
    weights: str,
    config: GenerationConfig,
    engine: dict[str, Any],
    shards: int,
) -> Task:
    rows, tokenizer = read_split(documents), load_tokenizer(weights)
    tokens = tokenize(tokenizer, rows, *limits_of(run, model))
    contents = Contents(
        documents=sha256_file(documents),
        tokens=hash_rows(tokens.source),
        model=fingerprint(weights),
        decoding=decoding_settings(config),
        engine=engine,
        shards=shards,
    )
    return Task(rows, tokens, model, tokenizer, weights, config, contents)
