"""Documents -> summaries by beam search, in batches of like lengths.

Shapes: B documents or their candidates, S source tokens, T output tokens, N output tokens that count, C of a chunk,
V vocabulary, D dimensions.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from distill.distributed import World
from distill.forward import decode, encode
from distill.head import chunk_tokens, chunks, logits_bias, output_scale
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
    # Beam search, whatever the model's own settings: what is generated follows from the document alone.
    config.update(do_sample=False, temperature=1.0, top_k=50, top_p=1.0)
    if config.max_new_tokens is None and config.max_length in (None, HF_DEFAULT_MAX_LENGTH):
        config.max_length, config.max_new_tokens = None, max_target_tokens
    if config.num_beams in (None, 1):  # settings of beam search that greedy search would warn about
        config.num_beams, config.early_stopping, config.length_penalty = 1, False, 1.0
    return config


def longest_output(config: GenerationConfig) -> int:
    """Most tokens of a summary, after the start token."""
    longest: int = config.max_new_tokens or (config.max_length or HF_DEFAULT_MAX_LENGTH) - 1
    return longest


def shortest_output(config: GenerationConfig) -> int:
    """Return the fewest tokens of a summary, after the start token and before its end token."""
    if config.min_new_tokens is None:
        return max(0, (config.min_length or 0) - 1)
    shortest: int = config.min_new_tokens
    return shortest


def decoding_settings(config: GenerationConfig) -> dict[str, Any]:
    """What of a generation config decides the summaries, for manifests."""
    return {k: v for k, v in config.to_diff_dict().items() if k != "transformers_version"}


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of like lengths, longest first, each of at most `batch_tokens` padded source tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@dataclass(frozen=True)
class Candidate:
    """One summary of a document, and what its model says of it."""

    text: str
    log_probability: float
    """Mean natural logarithm of the probability of its tokens, the end token included."""
    tokens: int
    finished: bool
    """False where it was cut at the longest length, before an end token of its own."""


Engine = Callable[[Sequence[list[int]]], list[list[Candidate]]]
"""Token ids of a batch of documents -> the candidates of each, best first."""


@dataclass(frozen=True)
class HuggingFace:
    """The engine of transformers: beam search by `generate`, and one more pass of the decoder that scores its output.

    The model is a plain replica in eval mode; `config.num_return_sequences` is the number of candidates.
    """

    model: PreTrainedModel
    tokenizer: Any
    config: GenerationConfig
    device: torch.device

    @torch.no_grad()
    def __call__(self, source: Sequence[list[int]]) -> list[list[Candidate]]:
        input_ids_BS, mask_BS = _padded(source, self.tokenizer.pad_token_id, self.device)
        encoded_BSD = encode(self.model, input_ids_BS, mask_BS).last
        output_BT = _beam_search(self.model, input_ids_BS, mask_BS, self.config, encoded_BSD)
        count = self.config.num_return_sequences or 1
        counted_BT = tokens_that_count(output_BT[:, 1:], _end_tokens(self.config))
        means = self._mean_log_probabilities(
            output_BT, counted_BT, encoded_BSD.repeat_interleave(count, 0), mask_BS.repeat_interleave(count, 0)
        )
        texts = decode_texts(self.tokenizer, output_BT)
        lengths, finished = counted_BT.sum(1).tolist(), self._finished(output_BT[:, 1:], counted_BT)
        each = [Candidate(*values) for values in zip(texts, means, lengths, finished, strict=True)]
        return [each[i : i + count] for i in range(0, len(each), count)]

    def _mean_log_probabilities(
        self, output_BT: torch.Tensor, counted_BT: torch.Tensor, encoded_BSD: torch.Tensor, mask_BS: torch.Tensor
    ) -> list[float]:
        """The output begins with the start token; `counted_BT` is one column shorter."""
        decoded_BTD = decode(self.model, output_BT[:, :-1], encoded_BSD, mask_BS).last
        hidden_ND = decoded_BTD[counted_BT] * output_scale(self.model.config.to_dict())
        labels_N = output_BT[:, 1:][counted_BT]
        weight_VD, bias_V = self.model.get_output_embeddings().weight, logits_bias(self.model)
        parts = []
        for rows in chunks(len(labels_N), chunk_tokens(weight_VD.shape[0])):
            logits_CV = hidden_ND[rows] @ weight_VD.T
            logits_CV = (logits_CV if bias_V is None else logits_CV + bias_V).float()
            parts.append(-F.cross_entropy(logits_CV, labels_N[rows], reduction="none"))
        sums_B = torch.zeros(len(output_BT), device=self.device)
        row_N = counted_BT.nonzero()[:, 0]
        sums_B.index_add_(0, row_N, torch.cat(parts))
        means: list[float] = (sums_B / counted_BT.sum(1)).tolist()
        return means

    def _finished(self, tokens_BT: torch.Tensor, counted_BT: torch.Tensor) -> list[bool]:
        """An end token that was forced at the longest length does not end a summary."""
        ends_B = (torch.isin(tokens_BT, _end_tokens(self.config).to(tokens_BT.device)) & counted_BT).any(1)
        if self.config.forced_eos_token_id is not None:
            ends_B &= counted_BT.sum(1) < longest_output(self.config)
        finished: list[bool] = ends_B.tolist()
        return finished


def tokens_that_count(tokens_BT: torch.Tensor, end_tokens: torch.Tensor) -> torch.Tensor:
    """True up to the first end token, itself included; everywhere in a row without one."""
    ends_BT = torch.isin(tokens_BT, end_tokens.to(tokens_BT.device)).long()
    return ends_BT.cumsum(1) - ends_BT == 0


def decode_texts(tokenizer: Any, output_BT: Any) -> list[str]:
    texts = tokenizer.batch_decode(output_BT, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    source: Sequence[list[int]],
    config: GenerationConfig,
    batches: list[list[int]],
    device: torch.device,
) -> Iterator[tuple[list[int], list[str]]]:
    """(indices, summaries) of each batch, in the order of `batches`. The model is a plain replica in eval mode."""
    for indices in batches:
        output_BT = generate_tokens(model, tokenizer, [source[i] for i in indices], config, device)
        yield indices, decode_texts(tokenizer, output_BT)


def generate_tokens(
    model: PreTrainedModel,
    tokenizer: Any,
    source: Sequence[list[int]],
    config: GenerationConfig,
    device: torch.device,
) -> torch.Tensor:
    """Return output_BT of one batch: start token, summary, padding."""
    input_ids_BS, mask_BS = _padded(source, tokenizer.pad_token_id, device)
    return _beam_search(model, input_ids_BS, mask_BS, config)


def count_tokens(output_BT: torch.Tensor, config: GenerationConfig) -> int:
    """Return how many tokens were generated, end tokens included and start tokens not."""
    return int(tokens_that_count(output_BT[:, 1:], _end_tokens(config)).sum())


def summarize(
    model: PreTrainedModel,
    tokenizer: Any,
    source: Sequence[list[int]],
    config: GenerationConfig,
    batch_tokens: int,
    world: World,
    before_batch: Callable[[], None] = lambda: None,
) -> list[str] | None:
    """The summaries of all documents in their order, on rank 0; None on the others. Every rank must call it.

    `before_batch` may be a collective: it is called equally often on every rank.
    """
    batches = plan_batches([len(row) for row in source], batch_tokens)
    done = dict[int, str]()
    for start in range(0, len(batches), world.size):
        before_batch()
        for indices, texts in generate(
            model, tokenizer, source, config, batches[start + world.rank : start + world.size][:1], world.device
        ):
            done.update(zip(indices, texts, strict=True))
        log.debug("generated up to batch %d of %d", start + world.size, len(batches))
    gathered = world.gather(done)
    if gathered is None:
        return None
    everything = {index: text for part in gathered for index, text in part.items()}
    assert len(everything) == len(source), "a document was lost on its way"
    return [everything[i] for i in range(len(source))]


@torch.no_grad()
def _beam_search(
    model: PreTrainedModel,
    input_ids_BS: torch.Tensor,
    mask_BS: torch.Tensor,
    config: GenerationConfig,
    encoded_BSD: torch.Tensor | None = None,
) -> torch.Tensor:
    """output_BT: start token, summary, padding. The encoder's output may be given, where it was computed before."""
    encoder_outputs = {} if encoded_BSD is None else {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded_BSD)}
    output_BT: torch.Tensor = model.generate(
        input_ids=input_ids_BS,
        attention_mask=mask_BS,
        generation_config=config,
        # Made here, since transformers sizes its own by the encoder's depth: too few for a T5 whose decoder is the
        # deeper one.
        past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
        synced_gpus=False,  # replicas stop apart from each other
        **encoder_outputs,
    )
    return output_BT


def _padded(source: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids_BS, mask_BS)"""
    longest = max(map(len, source))
    input_ids = [row + [pad] * (longest - len(row)) for row in source]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in source]
    return torch.tensor(input_ids).to(device), torch.tensor(mask).to(device)


def _end_tokens(config: GenerationConfig) -> torch.Tensor:
    return torch.tensor(config.eos_token_id).flatten()
