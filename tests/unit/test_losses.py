import pytest
import torch

from distill.losses import IGNORED, cross_entropy


def reference(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    """Token by token in float64, from the definition."""
    total = 0.0
    for row, targets in zip(logits.double(), labels, strict=True):
        for token_logits, target in zip(row, targets.tolist(), strict=True):
            if target != IGNORED:
                log_p = token_logits - torch.logsumexp(token_logits, 0)
                total -= (1 - smoothing) * float(log_p[target]) + smoothing * float(log_p.mean())
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_the_definition(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11) * 3, torch.randint(0, 11, (3, 5))
    labels[0, 2:] = IGNORED
    total, count = cross_entropy(logits, labels, smoothing)
    assert float(total) == pytest.approx(reference(logits, labels, smoothing), rel=1e-6)
    assert int(count) == 12


def test_the_pad_token_is_a_label_like_any_other() -> None:
    logits = torch.randn(1, 3, 7)
    with_zero, _ = cross_entropy(logits, torch.tensor([[0, 1, 2]]))
    without, _ = cross_entropy(logits[:, 1:], torch.tensor([[1, 2]]))
    assert float(with_zero) > float(without)


def test_nothing_to_learn_is_a_zero_with_a_gradient() -> None:
    logits = torch.randn(2, 3, 7, requires_grad=True)
    total, count = cross_entropy(logits, torch.full((2, 3), IGNORED), 0.1)
    total.backward()
    assert float(total.detach()) == 0 and int(count) == 0
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_is_summed_in_fp32() -> None:
    logits = torch.randn(1, 4, 9).bfloat16()
    assert cross_entropy(logits, torch.tensor([[1, 2, 3, 4]]))[0].dtype == torch.float32
