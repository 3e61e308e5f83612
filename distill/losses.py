"""Losses as sums over the tokens that count; whoever calls divides by the step's global count of tokens.

Everything is computed in fp32. Where no token counts a sum is a zero that still has a gradient (zero), so that
backward runs on every rank.

Shapes: N tokens, V vocabulary, E events (the vocabulary, or some of its tokens and all others together), D dimensions.
"""

from typing import Literal

import torch
import torch.nn.functional as F

IGNORED = -100  # a label that does not count

Direction = Literal["forward", "reverse", "jensen_shannon"]
Distance = Literal["squared", "cosine"]


def cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Sum of the token losses in nats; labels of IGNORED do not count.

    With label smoothing e a token costs (1 - e) * nll + e * mean over the vocabulary of -log p (Szegedy et al. 2016).
    """
    return F.cross_entropy(
        logits_NV.float(), labels_N, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )


def divergence(
    teacher_log_p_NE: torch.Tensor, student_log_p_NE: torch.Tensor, direction: Direction = "forward", beta: float = 0.5
) -> torch.Tensor:
    """Sum over the tokens, in nats, of how far the student's distribution q is from the teacher's p; 0 where equal.

    forward: KL(p || q). reverse: KL(q || p). jensen_shannon: beta KL(p || m) + (1 - beta) KL(q || m) with the mixture
    m = beta p + (1 - beta) q (Agarwal et al. 2024, "On-Policy Distillation of Language Models", equation 1).
    """
    p, q = teacher_log_p_NE.float(), student_log_p_NE.float()
    if direction == "forward":
        return _kl(p, q)
    if direction == "reverse":
        return _kl(q, p)
    mixture = torch.logaddexp(p + torch.tensor(beta).log(), q + torch.tensor(1 - beta).log())
    return beta * _kl(p, mixture) + (1 - beta) * _kl(q, mixture)


def hidden_distance(
    student_ND: torch.Tensor, teacher_ND: torch.Tensor, normalize: bool = False, distance: Distance = "squared"
) -> torch.Tensor:
    """Sum over the tokens of the distance of two hidden states.

    squared: mean over the dimensions of (s - t)^2. cosine: 1 - cosine of the angle. `normalize` first brings each
    token's vector to mean 0 and variance 1 by itself, whatever its neighbours or the padding are.
    """
    student, teacher = student_ND.float(), teacher_ND.float()
    if normalize:
        student, teacher = (F.layer_norm(x, x.shape[-1:]) for x in (student, teacher))
    if distance == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).sum()
    return (student - teacher).square().mean(-1).sum()


def _kl(p_NE: torch.Tensor, q_NE: torch.Tensor) -> torch.Tensor:
    """Sum of KL(p || q), both given as logarithms."""
    return F.kl_div(q_NE, p_NE, reduction="sum", log_target=True)
