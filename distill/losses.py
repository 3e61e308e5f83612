"""Losses as (sum, count) over the target tokens that count; whoever calls divides by the step's global count.

Shapes: B examples, T target tokens, V vocabulary. One mask convention: True counts.
"""

import torch
import torch.nn.functional as F

IGNORED = -100  # a label that does not count


def cross_entropy(
    logits_BTV: torch.Tensor, labels_BT: torch.Tensor, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the token losses in nats, number of tokens), in fp32; labels of IGNORED do not count.

    With label smoothing e a token costs (1 - e) * nll + e * mean over the vocabulary of -log p (Szegedy et al. 2016).
    Where nothing counts the sum is a zero that still has a gradient (zero), so that backward runs on every rank.
    """
    loss = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return loss, (labels_BT != IGNORED).sum()
