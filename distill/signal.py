"""What a teacher says about target tokens: the losses see a signal, never a teacher.

A signal covers the N target tokens of a micro-batch that count, in the order of the labels. It is compared with the
student's logits chunk by chunk (`distill/head.py`), so that whole logits never exist.

Shapes: N target tokens, M source tokens, C of a chunk, V vocabulary, D dimensions, K largest logits, E events.
"""

from dataclasses import dataclass, field

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class HiddenSignal:
    """The teacher's last hidden states and its projection to the vocabulary."""

    hidden_ND: torch.Tensor
    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None
    decoder_states: list[torch.Tensor] = field(default_factory=list)
    """hidden_ND of the layers that supervise the decoder."""
    encoder_states: list[torch.Tensor] = field(default_factory=list)
    """hidden_MD of the layers that supervise the encoder."""

    def log_probabilities(self, student_logits_CV: torch.Tensor, rows: slice, temperature: float) -> Pair:
        """(teacher's, student's) log-probabilities of the tokens `rows` at a temperature, over the whole
        vocabulary: log_p_CV each."""
        logits_CV = self.hidden_ND[rows] @ self.weight_VD.T
        if self.bias_V is not None:
            logits_CV += self.bias_V
        log_p_CV = logits_CV.float().div_(temperature).log_softmax(-1)
        return log_p_CV, (student_logits_CV.float() / temperature).log_softmax(-1)


@dataclass(frozen=True)
class TopKSignal:
    """The teacher's k largest logits, and for one temperature the mass of all others.

    The events are the k tokens and, as one more, all other tokens together. The divergence of the grouped events is 0
    for equal distributions and never larger than that of the whole vocabulary (data processing inequality).
    """

    ids_NK: torch.Tensor
    logits_NK: torch.Tensor
    log_tail_N: torch.Tensor
    """log of the sum over all other tokens of exp(logit / temperature)."""
    temperature: float
    decoder_states: list[torch.Tensor] = field(default_factory=list)
    encoder_states: list[torch.Tensor] = field(default_factory=list)

    def log_probabilities(self, student_logits_CV: torch.Tensor, rows: slice, temperature: float) -> Pair:
        """(teacher's, student's) log-probabilities over the k + 1 events: log_p_CE each."""
        assert temperature == self.temperature, "the cache was made for another temperature"
        ids_CK = self.ids_NK[rows]
        teacher_CE = torch.cat([self.logits_NK[rows].float() / temperature, self.log_tail_N[rows, None]], -1)
        student_CV = student_logits_CV.float() / temperature
        others_C = student_CV.scatter(-1, ids_CK, -torch.inf).logsumexp(-1)
        student_CE = torch.cat([student_CV.gather(-1, ids_CK), others_C[:, None]], -1)
        # Where k is the whole vocabulary the tail is empty: its probability is zero, and must not become nan.
        smallest = torch.finfo(torch.float32).min / 4
        return teacher_CE.clamp(min=smallest).log_softmax(-1), student_CE.clamp(min=smallest).log_softmax(-1)


Signal = HiddenSignal | TopKSignal


def top_k(logits_NV: torch.Tensor, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids_NK, logits_NK, log_tail_N): what `TopKSignal` keeps of whole logits."""
    values_NK, ids_NK = logits_NV.float().topk(k, dim=-1)
    others_NV = logits_NV.float().scatter(-1, ids_NK, -torch.inf)
    return ids_NK, values_NK, (others_NV / temperature).logsumexp(-1)
