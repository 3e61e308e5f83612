"""What a summarizing job works on: documents as token ids, a model, its decoding; for labels and for scores."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from distill.attention import divide_attention_scores
from distill.corpus import read_ids, read_references, read_split
from distill.data import encoder_of, fixed_sample, labelled_documents
from distill.errors import InputError
from distill.files import sha256_file
from distill.generation import decoding_settings, generation_config
from distill.pretrained import dtype_of, fingerprint, load_pair
from distill.reading import Row
from distill.recipe import Labels
from distill.run import LabelSet, Member, Run, Split
from distill.sections import Generation, Search
from distill.summaries import Contents
from distill.tokens import Encoder, TokenRows, hash_rows, table_tokens


@dataclass(frozen=True)
class Task:
    """Documents, the model that summarizes them, and how."""

    table: Path
    numbers: list[int]
    """Of the documents in their table, ascending."""
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
        everything = read_split(self.table)
        return [everything[number] for number in self.numbers]

    def references(self) -> list[list[str]]:
        """All summaries of each document."""
        everything = read_references(self.table)
        return [everything[number] for number in self.numbers]


def evaluation_task(run: Run, member: Member, split: Split) -> Task:
    """A member summarizes a whole split."""
    return _evaluated(run, member, split, run.generation(member))


def search_task(run: Run, member: Member, search: Search) -> Task:
    """A member summarizes the sample of the validation split on which decodings are tried; see `decoded`."""
    return _evaluated(run, member, "validation", run.evaluate_settings(member).generation, search.examples)


def decoded(task: Task, generation: Generation, max_target_tokens: int) -> Task:
    """The same task with another decoding."""
    config = generation_config(task.model, generation, max_target_tokens)
    return replace(task, config=config, contents=replace(task.contents, decoding=decoding_settings(config)))


def _evaluated(run: Run, member: Member, split: Split, generation: Generation, examples: int | None = None) -> Task:
    teacher, weights = run.teacher_settings(member), run.weights(member)
    model, tokenizer = load_pair(weights, teacher.languages, own_decoding=run.own_decoding(member))
    config = generation_config(model, generation, run.recipe.corpus.max_target_tokens)
    engine = {"name": "huggingface", "precision": "fp32"}
    shards, encoder = run.evaluate_settings(member).shards, encoder_of(run, teacher, tokenizer, model.config.to_dict())
    return _task(run, run.split(split), model, encoder, weights, config, engine, shards, examples)


def label_task(run: Run, labels: LabelSet) -> Task:
    """A teacher summarizes the documents of a label set. InputError where its settings do not fit the model."""
    settings, teacher = labels.settings, run.recipe.teachers[labels.teacher]
    member = run.member("teachers", labels.teacher)
    weights, precision = run.weights(member), settings.precision or teacher.precision or "fp32"
    engine: dict[str, Any] = {"name": settings.engine.name, "precision": precision}
    if settings.engine.name == "ctranslate2":
        engine["precision"] = precision = "fp32"  # what is converted
        engine["compute"] = settings.engine.compute
    model, tokenizer = load_pair(weights, teacher.languages, dtype_of(precision), run.own_decoding(member))
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
    """The labels' own keys over those with which the teacher is evaluated (found by its search, where it has one)."""
    own = {key: getattr(labels, key) for key in Generation.model_fields if getattr(labels, key) is not None}
    return run.generation(teacher).model_copy(update=own)


def _task(
    run: Run,
    documents: Path,
    model: PreTrainedModel,
    encoder: Encoder,
    weights: str,
    config: GenerationConfig,
    engine: dict[str, Any],
    shards: int,
    examples: int | None = None,
) -> Task:
    """`examples`: of a fixed seeded sample of the documents; by default all."""
    rows, cut = table_tokens(encoder, documents, "document", run.tokens)
    ids = read_ids(documents)
    chosen = fixed_sample(len(ids), examples or len(ids), run.recipe.seed)
    source = rows.chosen(chosen)
    contents = Contents(
        documents=sha256_file(documents),
        tokens=hash_rows(source),
        model=fingerprint(weights),
        decoding=decoding_settings(config),
        engine=engine,
        shards=shards,
    )
    return Task(
        table=documents,
        numbers=chosen,
        ids=[ids[number] for number in chosen],
        source=source,
        truncated=int(cut[chosen].sum()),
        model=model,
        tokenizer=encoder.tokenizer,
        weights=weights,
        config=config,
        contents=contents,
    )
