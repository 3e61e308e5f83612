"""One forward path for students and teachers: encoder, decoder, and the hidden states of chosen layers.

Shapes: B examples, S source tokens, T target tokens, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from distill.families import family_of
from distill.losses import IGNORED


@dataclass(frozen=True)
class States:
    """Of an encoder (B, S, D) or a decoder (B, T, D)."""

    last: torch.Tensor
    """After the final norm, where the family has one."""
    layers: list[torch.Tensor]
    """Of the layers that were asked for, in that order; the last layer's is `last`."""


def encode(
    model: PreTrainedModel, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor, layers: Sequence[int] = ()
) -> States:
    """The encoder's states; `layers` are 0-based."""
    output = model.get_encoder()(input_ids=input_ids_BS, attention_mask=mask_BS, output_hidden_states=bool(layers))
    return _states(output, layers)


def decode(
    model: PreTrainedModel,
    decoder_input_ids_BT: torch.Tensor,
    encoded_BSD: torch.Tensor,
    mask_BS: torch.Tensor,
    layers: Sequence[int] = (),
) -> States:
    """The decoder's states, each position seeing those before it; `layers` are 0-based."""
    output = model.get_decoder()(
        input_ids=decoder_input_ids_BT,
        encoder_hidden_states=encoded_BSD,
        encoder_attention_mask=mask_BS,
        use_cache=False,
        output_hidden_states=bool(layers),
    )
    return _states(output, layers)


def decoder_inputs(model: PreTrainedModel, labels_BT: torch.Tensor) -> torch.Tensor:
    """The labels shifted right behind the family's start token; what follows the last label does not matter.

    As transformers do it in `prepare_decoder_input_ids_from_labels`, which not every family has.
    """
    config = model.config
    start_B1 = torch.full_like(labels_BT[:, :1], config.decoder_start_token_id)
    if family_of(config.model_type, "the model").starts_with_last_label:
        last_B1 = (labels_BT != IGNORED).sum(1, keepdim=True).clamp(min=1) - 1
        start_B1 = labels_BT.gather(1, last_B1)
    shifted_BT = torch.cat([start_B1, labels_BT[:, :-1]], dim=1)
    return shifted_BT.masked_fill(shifted_BT == IGNORED, config.pad_token_id)


def _states(output: Any, layers: Sequence[int]) -> States:
    # hidden_states[0] is the embeddings' output: the state of layer i has the index i + 1. Here, and only here.
    return States(output.last_hidden_state, [output.hidden_states[layer + 1] for layer in layers])
