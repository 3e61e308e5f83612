"""Documents -> summaries by beam search, sorted by length, dealt over the ranks, without collectives.

Shapes: B documents, S source tokens.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel

from distill.distributed import World
from distill.sections import Generation

log = logging.getLogger(__name__)

HF_DEFAULT_MAX_LENGTH = 20  # what transformers takes where a model says nothing: would cut every summary


def generation_config(model: PreTrainedModel, overrides: Generation, max_target_tokens: int) -> GenerationConfig:
    """The model's own settings with the recipe's over them; `max_target_tokens` where neither gives a length."""
    assert model.generation_config is not None
    config = copy.deepcopy(model.generation_config)
    given = overrides.model_dump(exclude_none=True)
    if "max_new_tokens" in given:
        config.max_length = None
    if "min_new_tokens" in given:
        config.min_length = 0
    config.update(**given)
    if config.max_new_tokens is None and config.max_length in (None, HF_DEFAULT_MAX_LENGTH):
        config.max_length, config.max_new_tokens = None, max_target_tokens
    if config.num_beams in (None, 1):  # settings of beam search that greedy search would warn about
        config.num_beams, config.early_stopping, config.length_penalty = 1, False, 1.0
    return config


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of like lengths, longest first, each of at most `batch_tokens` padded source tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    source: Sequence[list[int]],
    config: GenerationConfig,
    batches: list[list[int]],
    device: torch.device,
) -> Iterator[tuple[list[int], list[str]]]:
    """(indices, summaries) of each batch, in the order of `batches`. The model is a plain replica in eval mode."""
    pad = tokenizer.pad_token_id
    for indices in batches:
        longest = max(len(source[i]) for i in indices)
        input_ids_BS = torch.tensor([source[i] + [pad] * (longest - len(source[i])) for i in indices])
        mask_BS = torch.tensor([[1] * len(source[i]) + [0] * (longest - len(source[i])) for i in indices])
        with torch.no_grad():
            output = model.generate(
                input_ids=input_ids_BS.to(device),
                attention_mask=mask_BS.to(device),
                generation_config=config,
                # Made here, since transformers sizes its own by the encoder's depth: too few for a T5 whose decoder
                # is the deeper one.
                past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
                synced_gpus=False,  # replicas stop apart from each other
            )
        texts = tokenizer.batch_decode(output, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        yield indices, [text.strip() for text in texts]


def summarize(
    model: PreTrainedModel,
    tokenizer: Any,
    source: Sequence[list[int]],
    config: GenerationConfig,
    batch_tokens: int,
    world: World,
) -> list[str] | None:
    """The summaries of all documents in their order, on rank 0; None on the others. Every rank must call it."""
    batches = plan_batches([len(row) for row in source], batch_tokens)
    mine = batches[world.rank :: world.size]
    done = dict[int, str]()
    for number, (indices, texts) in enumerate(generate(model, tokenizer, source, config, mine, world.device), 1):
        done.update(zip(indices, texts, strict=True))
        log.debug("generated batch %d of %d", number, len(mine))
    gathered = world.gather(done)
    if gathered is None:
        return None
    everything = {index: text for part in gathered for index, text in part.items()}
    assert len(everything) == len(source), "a document was lost on its way"
    return [everything[i] for i in range(len(source))]
