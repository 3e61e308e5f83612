"""What a summarizing job works on: documents as token ids, a model, its decoding; for labels and for scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from distill.attention import divide_attention_scores
from distill.corpus import read_ids, read_references, read_split
from distill.data import encoder_of, labelled_documents
from distill.errors import InputError
from distill.files import sha256_file
from distill.generation import decoding_settings, generation_config
from distill.pretrained import dtype_of, fingerprint, load_pair
from distill.reading import Row
from distill.recipe import Labels
from distill.run import LabelSet, Member, Run, Split
from distill.sections import Generation
from distill.summaries import Contents
from distill.tokens import Encoder, TokenRows, hash_rows, table_tokens


@dataclass(frozen=True)
class Task:
    """Documents, the model that summarizes them, and how."""

    table: Path
    ids: list[str]
    source: TokenRows
    truncated: int
    """Documents that were cut."""
    model: PreTrainedModel
    tokenizer: Any
    weights: str
    config: GenerationConfig
    contents: Contents

    def rows(self) -> list[Row]:
        """The documents and their (first) summaries, as texts."""
        return read_split(self.table)

    def references(self) -> list[list[str]]:
        """All summaries of each document."""
        return read_references(self.table)


def evaluation_task(run: Run, member: Member, split: Split) -> Task:
    """A member summarizes a whole split."""
    settings = run.evaluate_settings(member)
    teacher, weights = run.teacher_settings(member), run.weights(member)
    model, tokenizer = load_pair(weights, teacher.languages)
    config = generation_config(model, settings.generation, run.recipe.corpus.max_target_tokens)
    engine = {"name": "huggingface", "precision": "fp32"}
    encoder = encoder_of(run, teacher, tokenizer, model.config.to_dict())
    return _task(run, run.split(split), model, encoder, weights, config, engine, settings.shards)


def label_task(run: Run, labels: LabelSet) -> Task:
    """A teacher summarizes the documents of a label set. InputError where its settings do not fit the model."""
    settings, teacher = labels.settings, run.recipe.teachers[labels.teacher]
    member = run.member("teachers", labels.teacher)
    weights, precision = run.weights(member), settings.precision or teacher.precision or "fp32"
    engine: dict[str, Any] = {"name": settings.engine.name, "precision": precision}
    if settings.engine.name == "ctranslate2":
        engine["precision"] = precision = "fp32"  # what is converted
        engine["compute"] = settings.engine.compute
    model, tokenizer = load_pair(weights, teacher.languages, dtype_of(precision))
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
    encoder = encoder_of(run, teacher, tokenizer, model.config.to_dict())
    return _task(run, labelled_documents(run, labels), model, encoder, weights, config, engine, settings.shards)


def _decoding(run: Run, teacher: Member, labels: Labels) -> Generation:
    """The labels' own keys over those with which the teacher is evaluated."""
    own = {key: getattr(labels, key) for key in Generation.model_fields if getattr(labels, key) is not None}
    return run.evaluate_settings(teacher).generation.model_copy(update=own)


def _task(
    run: Run,
    documents: Path,
    model: PreTrainedModel,
    encoder: Encoder,
    weights: str,
    config: GenerationConfig,
    engine: dict[str, Any],
    shards: int,
) -> Task:
    source, cut = table_tokens(encoder, documents, "document", run.tokens)
    contents = Contents(
        documents=sha256_file(documents),
        tokens=hash_rows(source),
        model=fingerprint(weights),
        decoding=decoding_settings(config),
        engine=engine,
        shards=shards,
    )
    ids, tokenizer = read_ids(documents), encoder.tokenizer
    return Task(documents, ids, source, int(cut.sum()), model, tokenizer, weights, config, contents)
