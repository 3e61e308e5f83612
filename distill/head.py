"""The projection to the vocabulary and the token losses together, over chunks of tokens: whole logits never exist.

The gradient of a chunk's logits is computed as soon as its losses are, and only its products with the hidden states and
the weights are kept (as Hsu et al. 2024, "Liger Kernel", do for the cross-entropy). So memory is that of one chunk.
No chunk holds a collective: under ZeRO 3 the weight is gathered for the head as a whole, once forward and once backward,
and ranks may have different numbers of chunks.

Shapes: N target tokens that count, C of a chunk, V vocabulary, D dimensions, L terms of the loss.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from distill.plan import CHUNK_LOGITS

TokenLosses = Callable[[torch.Tensor, slice], torch.Tensor]
"""(fp32 logits_CV, the chunk's rows among the N tokens) -> terms_L, each a sum over the chunk's tokens."""


def chunked_losses(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    token_losses: TokenLosses,
    factors_L: torch.Tensor,
    most_tokens: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the sum over the terms of factor times term, with its gradient; terms_L without) of all N tokens, fp32.

    Gradients go to the hidden states, the weight and the bias where they ask for them, and equal those of whole logits.
    With no tokens both are zero, and the gradients too. A chunk has at most `most_tokens`, by default what fits
    CHUNK_LOGITS.
    """
    chunk = most_tokens or chunk_tokens(weight_VD.shape[0])
    total, terms_L = _ChunkedLosses.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, token_losses, factors_L, chunk
    )
    return total, terms_L


def chunks(tokens: int, most: int) -> Iterator[slice]:
    """Consecutive slices of `tokens`, as few as are needed and alike in size, each of at most `most`."""
    count = -(-tokens // most)
    for number in range(count):
        yield slice(number * tokens // count, (number + 1) * tokens // count)


def chunk_tokens(vocabulary: int) -> int:
    """Tokens of a chunk."""
    return max(1, CHUNK_LOGITS // vocabulary)


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        token_losses: TokenLosses,
        factors_L: torch.Tensor,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_gradient = torch.zeros_like(hidden_ND) if hidden_ND.requires_grad else None
        weight_gradient = _zeros(weight_VD)
        bias_gradient = _zeros(bias_V)
        terms_L = torch.zeros_like(factors_L)
        for rows in chunks(hidden_ND.shape[0], chunk):
            logits_CV = hidden_ND[rows] @ weight_VD.T
            if bias_V is not None:
                logits_CV += bias_V
            logits_CV = logits_CV.float().requires_grad_()
            with torch.enable_grad():
                chunk_terms_L = token_losses(logits_CV, rows)
                (gradient_CV,) = torch.autograd.grad((chunk_terms_L * factors_L).sum(), logits_CV)
            terms_L += chunk_terms_L.detach()
            if bias_gradient is not None:
                bias_gradient += gradient_CV.sum(0)
            gradient_CV = gradient_CV.to(weight_VD.dtype)
            if hidden_gradient is not None:
                hidden_gradient[rows] = gradient_CV @ weight_VD
            if weight_gradient is not None:
                _add_product(weight_gradient, gradient_CV.T, hidden_ND[rows])
        ctx.gradients = (hidden_gradient, _like(weight_gradient, weight_VD), _like(bias_gradient, bias_V))
        ctx.mark_non_differentiable(terms_L)
        return (terms_L * factors_L).sum(), terms_L

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, _terms: torch.Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None  # large: scaled in place, and used once
        gradients = [g if g is None else g.mul_(total.to(g.dtype)) for g in gradients]
        return (*gradients, None, None, None)


def _zeros(parameter: torch.Tensor | None) -> torch.Tensor | None:
    """An fp32 sum for the gradient of what is trained."""
    if parameter is None or not parameter.requires_grad:
        return None
    return torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _like(gradient: torch.Tensor | None, parameter: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)


class VocabularyHead(nn.Module):
    """The student's own projection (shared with its embeddings where they are tied), as DeepSpeed sees it.

    A module whose own parameter the weight is, so that ZeRO 3 gathers it for the forward and the backward pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.weight = model.get_output_embeddings().weight

    def forward(
        self, hidden_ND: torch.Tensor, bias_V: torch.Tensor | None, token_losses: TokenLosses, factors_L: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return chunked_losses(hidden_ND, self.weight, bias_V, token_losses, factors_L)


def logits_bias(model: PreTrainedModel) -> torch.Tensor | None:
    """final_logits_bias_V of BART, mBART, Pegasus and Marian; None for the others."""
    bias = getattr(model, "final_logits_bias", None)
    return None if bias is None else bias.flatten()


def output_scale(config: Mapping[str, Any]) -> float:
    """What the last hidden states are multiplied with before the projection: T5 with tied embeddings, else 1."""
    return float(config["d_model"] ** -0.5) if config.get("scale_decoder_outputs") else 1.0
