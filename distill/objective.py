"""The recipe's objective as one module: the single forward path through which DeepSpeed drives the student.

Shapes: B examples, S source tokens, T target tokens, N target tokens that count, M source tokens that count,
V vocabulary, D dimensions, L terms of the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from distill.distillation import Distillation
from distill.forward import States, decode, decoder_inputs, encode
from distill.head import VocabularyHead, logits_bias, output_scale
from distill.losses import IGNORED, cross_entropy, divergence, hidden_distance
from distill.recipe import Hidden, Objective
from distill.signal import Signal


class Counts(NamedTuple):
    """Tokens of a whole optimizer step, over all ranks and micro-batches: what sums are divided by."""

    target_tokens: int
    source_tokens: int


@dataclass(frozen=True)
class Request:
    """What a teacher is asked about a micro-batch."""

    examples: list[int]
    """The examples' numbers in the training split."""
    input_ids_BS: torch.Tensor
    mask_BS: torch.Tensor
    labels_BT: torch.Tensor
    encoded_BSD: torch.Tensor | None
    """The output of the shared encoder; None where the teacher runs its own."""

    @property
    def counted_BT(self) -> torch.Tensor:  # noqa: N802
        """True for the target tokens that count: those that the signal covers."""
        return self.labels_BT != IGNORED

    @property
    def counted_source_BS(self) -> torch.Tensor:  # noqa: N802
        """True for the source tokens that count: no padding, and none of an example without labels."""
        return self.mask_BS.bool() & self.counted_BT.any(dim=1, keepdim=True)


class TeacherSource(Protocol):
    """A live teacher (`distill/engine.py`), or one whose words were kept (`distill/teacher_cache.py`)."""

    def signal(self, request: Request) -> Signal:
        """What the teacher says; a collective where it is sharded."""


class ScoredStudent(nn.Module):
    """The student and what it is scored against; `forward` returns the loss and its terms."""

    def __init__(
        self,
        student: PreTrainedModel,
        objective: Objective,
        label_smoothing: float,
        pairs: Distillation = Distillation(),  # noqa: B008 - frozen
        teacher_width: int | None = None,
    ) -> None:
        """`teacher_width` is the dimension of the teacher's hidden states, by default the student's own."""
        super().__init__()
        self.student, self.objective, self.label_smoothing, self.pairs = student, objective, label_smoothing, pairs
        self.head, self.scale = VocabularyHead(student), output_scale(student.config.to_dict())
        width = student.config.d_model
        self.decoder_projections = _projections(len(pairs.decoder_pairs), width, teacher_width or width, student.dtype)
        self.encoder_projections = _projections(len(pairs.encoder_pairs), width, teacher_width or width, student.dtype)
        self.weights = _weights(objective, pairs)

    @property
    def terms(self) -> list[str]:
        """The names of the terms, in the order in which `forward` returns them."""
        return list(self.weights)

    def train(self, mode: bool = True) -> "ScoredStudent":
        """As usual; but an encoder that the teacher reads too keeps quiet: no dropout."""
        super().train(mode)
        if self.pairs.shares_encoder:
            self.student.get_encoder().eval()
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        examples: list[int],
        counts: Counts,
        teacher: TeacherSource | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids_BS, attention_mask_BS, labels_BT -> (the loss, its terms_L without weights and gradient), fp32.

        Both are this micro-batch's part of a mean over the step's tokens: they add up over micro-batches and ranks.
        """
        assert (teacher is not None) == self.objective.needs_teacher
        encoded = encode(self.student, input_ids, attention_mask, [own for own, _ in self.pairs.encoder_pairs])
        shared = encoded.last if self.pairs.shares_encoder else None
        request = Request(examples, input_ids, attention_mask, labels, shared)
        signal = teacher.signal(request) if teacher is not None else None
        decoder_layers = [own for own, _ in self.pairs.decoder_pairs]
        decoder_input_ids_BT = decoder_inputs(self.student, labels)
        decoded = decode(self.student, decoder_input_ids_BT, encoded.last, attention_mask, decoder_layers)
        counted_BT = request.counted_BT
        loss, terms_L = self._score_tokens(decoded.last[counted_BT], labels[counted_BT], signal, counts)
        if signal and self.objective.hidden:
            hidden = self._score_states(decoded, encoded, request, signal, counts)
            loss = loss + self.objective.hidden.weight * torch.stack(hidden).sum()
            terms_L = torch.cat([terms_L, torch.stack(hidden).detach()])
        return loss, terms_L

    def _score_tokens(
        self, hidden_ND: torch.Tensor, labels_N: torch.Tensor, signal: Signal | None, counts: Counts
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy and divergence: the terms of the vocabulary."""
        kl = self.objective.kl

        def token_losses(logits_CV: torch.Tensor, rows: slice) -> torch.Tensor:
            losses = [cross_entropy(logits_CV, labels_N[rows], self.label_smoothing)]
            if kl and signal:
                p, q = signal.log_probabilities(logits_CV, rows, kl.temperature)
                losses.append(kl.temperature**2 * divergence(p, q, kl.direction, kl.beta))
            return torch.stack(losses) / counts.target_tokens

        names = [name for name in ("cross_entropy", "kl") if name in self.weights]
        factors_L = torch.tensor([self.weights[name] for name in names], device=hidden_ND.device)
        hidden_ND = hidden_ND * self.scale
        loss, terms_L = self.head(hidden_ND, logits_bias(self.student), token_losses, factors_L)
        return loss, terms_L

    def _score_states(
        self, decoded: States, encoded: States, request: Request, signal: Signal, counts: Counts
    ) -> list[torch.Tensor]:
        """Distances of the hidden states, summed over the layers, each a mean over the tokens of its side."""
        assert self.objective.hidden is not None
        sides = []
        if self.pairs.decoder_pairs:
            own = [state[request.counted_BT] for state in decoded.layers]
            total = _distance(own, signal.decoder_states, self.decoder_projections, self.objective.hidden)
            sides.append(total / counts.target_tokens)
        if self.pairs.encoder_pairs:
            own = [state[request.counted_source_BS] for state in encoded.layers]
            total = _distance(own, signal.encoder_states, self.encoder_projections, self.objective.hidden)
            sides.append(total / counts.source_tokens)
        return sides


def _weights(objective: Objective, pairs: Distillation) -> dict[str, float]:
    weights = {"cross_entropy": objective.cross_entropy}
    if objective.kl:
        weights["kl"] = objective.kl.weight
    if objective.hidden and pairs.decoder_pairs:
        weights["hidden_decoder"] = objective.hidden.weight
    if objective.hidden and pairs.encoder_pairs:
        weights["hidden_encoder"] = objective.hidden.weight
    return weights


def _projections(layers: int, width: int, teacher_width: int, dtype: torch.dtype) -> nn.ModuleList | None:
    """A trained linear map for each pair of layers where the widths differ; not a part of the exported student."""
    if width == teacher_width:
        return None
    return nn.ModuleList(nn.Linear(width, teacher_width, bias=False, dtype=dtype) for _ in range(layers))


def _distance(
    own: Sequence[torch.Tensor], taught: Sequence[torch.Tensor], maps: nn.ModuleList | None, settings: Hidden
) -> torch.Tensor:
    """Sum over layers and tokens."""
    if maps is not None:
        own = [project(state) for project, state in zip(maps, own, strict=True)]
    distances = [
        hidden_distance(mine, theirs, settings.normalize, settings.distance)
        for mine, theirs in zip(own, taught, strict=True)
    ]
    return torch.stack(distances).sum()
