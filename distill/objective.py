"""The recipe's objective as one module: the single forward path through which DeepSpeed drives the student.

Shapes: B examples, S source tokens, T target tokens, V vocabulary.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from distill.losses import cross_entropy


class Objective(nn.Module):
    """The student and what it is scored against; `forward` returns the sum of the loss over the target tokens."""

    def __init__(self, student: PreTrainedModel, label_smoothing: float) -> None:
        super().__init__()
        self.student = student
        self.label_smoothing = label_smoothing

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """input_ids_BS, attention_mask_BS, labels_BT -> summed loss (fp32 scalar)."""
        decoder_input_ids_BT = self.student.prepare_decoder_input_ids_from_labels(labels=labels)
        logits_BTV = self.student(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids_BT,
            use_cache=False,
        ).logits
        return cross_entropy(logits_BTV, labels, self.label_smoothing)[0]
