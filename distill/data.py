"""The prepared corpus as a model reads it: tokenised splits, cut at the model's limits."""

import random
from typing import Any

from transformers import PreTrainedModel

from distill.batching import Tokens, TrainingData, tokenize
from distill.corpus import read_split
from distill.families import shape_of
from distill.preflight import source_limit
from distill.run import Run
from distill.sections import Evaluate


def load_training_data(run: Run, tokenizer: Any, model: PreTrainedModel, evaluate: Evaluate) -> TrainingData:
    """The training split, and the fixed seeded sample of the validation split that is scored during training."""
    validation = read_split(run.split("validation"))
    chosen = random.Random(run.recipe.seed).sample(range(len(validation)), min(evaluate.examples, len(validation)))
    validation = [validation[i] for i in sorted(chosen)]
    return TrainingData(
        train=load_training_tokens(run, tokenizer, model),
        train_ids=[row["id"] for row in read_split(run.split("train"))],
        validation=tokenize(tokenizer, validation, *limits_of(run, model)),
        validation_references=[row["summary"] for row in validation],
        max_target_tokens=run.recipe.corpus.max_target_tokens,
    )


def load_training_tokens(run: Run, tokenizer: Any, model: PreTrainedModel) -> Tokens:
    """The training split as this tokenizer and the limits of this model cut it."""
    return tokenize(tokenizer, read_split(run.split("train")), *limits_of(run, model))


def limits_of(run: Run, model: PreTrainedModel) -> tuple[int, int]:
    """(longest source, longest target) in tokens."""
    corpus = run.recipe.corpus
    shape = shape_of(model.config.to_dict(), "the model")
    return source_limit(shape, corpus.max_source_tokens, "the model"), corpus.max_target_tokens
