"""A frozen teacher's forward pass, from token ids to what its signal is made of.

Shapes: B examples, S source tokens, T target tokens, N target tokens that count, M source tokens that count.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from distill.distillation import Distillation
from distill.forward import decode, decoder_inputs, encode
from distill.head import output_scale
from distill.objective import Request


class Heard(NamedTuple):
    """What a teacher's forward pass gives."""

    hidden_ND: torch.Tensor
    """What its projection to the vocabulary reads."""
    decoder_states: list[torch.Tensor]
    encoder_states: list[torch.Tensor]


class FrozenTeacher(nn.Module):
    """A teacher in eval mode without gradients, and without its encoder where the student's serves both."""

    def __init__(self, model: PreTrainedModel, pairs: Distillation) -> None:
        super().__init__()
        self.model, self.pairs = model.requires_grad_(False), pairs
        self.scale = output_scale(model.config.to_dict())
        if pairs.shares_encoder:
            model.set_encoder(None)
        super().train(False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """A teacher stays in eval mode, whoever asks for another."""
        return self

    @torch.no_grad()
    def forward(self, request: Request) -> Heard:
        encoder_layers = [theirs for _, theirs in self.pairs.encoder_pairs]
        decoder_layers = [theirs for _, theirs in self.pairs.decoder_pairs]
        encoder_states: list[torch.Tensor] = []
        if request.encoded_BSD is None:
            encoded = encode(self.model, request.input_ids_BS, request.mask_BS, encoder_layers)
            encoded_BSD, encoder_states = encoded.last, [state[request.counted_source_BS] for state in encoded.layers]
        else:
            encoded_BSD = request.encoded_BSD.to(self.model.dtype)
        decoder_input_ids_BT = decoder_inputs(self.model, request.labels_BT)  # its own start token
        decoded = decode(self.model, decoder_input_ids_BT, encoded_BSD, request.mask_BS, decoder_layers)
        hidden_ND = decoded.last[request.counted_BT] * self.scale
        return Heard(hidden_ND, [state[request.counted_BT] for state in decoded.layers], encoder_states)
