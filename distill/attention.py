"""The attention temperature of a model (PLATE, Zhang et al. 2022, "Attention Temperature Matters")."""

import torch
from transformers import PreTrainedModel

# What every attention score is linear in: the queries, and in T5 also the bias of the relative positions.
SCORE_WEIGHTS = ("q_proj.weight", "q_proj.bias", ".q.weight", "relative_attention_bias.weight")


@torch.no_grad()
def divide_attention_scores(model: PreTrainedModel, temperature: float) -> None:
    """Every attention of the model becomes softmax(scores / temperature), in place and for any engine."""
    for name, parameter in model.named_parameters():
        if name.endswith(SCORE_WEIGHTS):
            parameter.div_(temperature)
