"""The losses against their definitions, token by token in float64, and their limits."""

import math

import pytest
import torch

from distill.losses import IGNORED, Direction, cross_entropy, divergence, hidden_distance

DIRECTIONS: list[Direction] = ["forward", "reverse", "jensen_shannon"]


def by_definition(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    total = 0.0
    for token_logits, target in zip(logits.double(), labels.tolist(), strict=True):
        if target != IGNORED:
            log_p = token_logits - torch.logsumexp(token_logits, 0)
            total -= (1 - smoothing) * float(log_p[target]) + smoothing * float(log_p.mean())
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_definition(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(15, 11) * 3, torch.randint(0, 11, (15,))
    labels[2:5] = IGNORED
    assert float(cross_entropy(logits, labels, smoothing)) == pytest.approx(
        by_definition(logits, labels, smoothing), rel=1e-6
    )


def test_the_pad_token_is_a_label_like_any_other() -> None:
    logits = torch.randn(3, 7)
    assert float(cross_entropy(logits, torch.tensor([0, 1, 2]))) > float(
        cross_entropy(logits[1:], torch.tensor([1, 2]))
    )


def test_nothing_to_learn_is_a_zero_with_a_gradient() -> None:
    logits = torch.randn(6, 7, requires_grad=True)
    total = cross_entropy(logits, torch.full((6,), IGNORED), 0.1)
    total.backward()
    assert float(total.detach()) == 0
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_is_summed_in_fp32() -> None:
    logits, states = torch.randn(4, 9).bfloat16(), torch.randn(4, 9).bfloat16()
    assert cross_entropy(logits, torch.tensor([1, 2, 3, 4])).dtype == torch.float32
    assert divergence(logits, logits).dtype == torch.float32
    assert hidden_distance(states, states).dtype == torch.float32


def log_p(seed: int, spread: float = 3.0) -> torch.Tensor:
    return (torch.randn(6, 13, generator=torch.Generator().manual_seed(seed)) * spread).log_softmax(-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """Sum over tokens and vocabulary of p log(p/q), in Python's floats."""
    return sum(math.exp(a) * (a - b) for a, b in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_divergence_equals_the_definition(direction: Direction, beta: float) -> None:
    p, q = log_p(0), log_p(1)
    mixture = (beta * p.double().exp() + (1 - beta) * q.double().exp()).log()
    expected = {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jensen_shannon": beta * kl(p, mixture) + (1 - beta) * kl(q, mixture),
    }[direction]
    assert float(divergence(p, q, direction, beta)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_divergence_is_zero_where_equal_and_positive_elsewhere(direction: Direction) -> None:
    p, q = log_p(0), log_p(1).requires_grad_()
    assert float(divergence(p, p, direction)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(p, q.detach(), direction)) > 0.1
    (gradient,) = torch.autograd.grad(divergence(q.detach(), q.log_softmax(-1), direction), q)
    assert float(gradient.abs().max()) < 1e-6, "equal distributions are a minimum"


def test_jensen_shannon_is_symmetric_at_one_half_and_bounded() -> None:
    p, q = log_p(0), log_p(1)
    assert float(divergence(p, q, "jensen_shannon")) == pytest.approx(float(divergence(q, p, "jensen_shannon")))
    far = torch.tensor([[0.0, -80.0]]), torch.tensor([[-80.0, 0.0]])
    assert float(divergence(*far, "jensen_shannon")) == pytest.approx(math.log(2), rel=1e-6)


def test_jensen_shannon_tends_to_the_two_divergences() -> None:
    """JSD/beta -> KL(p || q) for beta -> 0, and JSD/(1 - beta) -> KL(q || p) for beta -> 1 (GKD, section 2)."""
    p, q = log_p(0, 0.5), log_p(1, 0.5)
    assert float(divergence(p, q, "jensen_shannon", 1e-3)) / 1e-3 == pytest.approx(kl(p, q), rel=1e-2)
    assert float(divergence(p, q, "jensen_shannon", 1 - 1e-3)) / 1e-3 == pytest.approx(kl(q, p), rel=1e-2)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_squared_temperature_keeps_the_gradient_and_tends_to_half_the_squared_logits(direction: Direction) -> None:
    """For T -> infinity T^2 KL is the variance of the difference of the logits, halved (Hinton et al. 2015, 2.1)."""
    teacher, student = (torch.randn(4, 13, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    difference = teacher - student
    expected = float((difference - difference.mean(-1, keepdim=True)).square().mean(-1).sum()) / 2
    t = 100.0
    found = t**2 * divergence(
        (teacher.double() / t).log_softmax(-1).float(), (student.double() / t).log_softmax(-1).float(), direction
    )
    assert float(found) == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("distance", ["squared", "cosine"])
@pytest.mark.parametrize("normalize", [False, True])
def test_hidden_distance_equals_the_definition(distance: str, normalize: bool) -> None:
    student, teacher = torch.randn(5, 8) + 1, torch.randn(5, 8) * 2
    expected = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        if normalize:
            s, t = ((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() for x in (s, t))
        cosine = float(s @ t / (s.norm() * t.norm()))
        expected += 1 - cosine if distance == "cosine" else float(((s - t) ** 2).mean())
    assert float(hidden_distance(student, teacher, normalize, distance)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_tokens_distance_does_not_depend_on_its_neighbours(normalize: bool) -> None:
    """The original normalised over batch, time and dimension, padding included."""
    student, teacher = torch.randn(5, 8), torch.randn(5, 8)
    one_by_one = sum(float(hidden_distance(student[[i]], teacher[[i]], normalize)) for i in range(5))
    assert float(hidden_distance(student, teacher, normalize)) == pytest.approx(one_by_one, rel=1e-6)


@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_no_tokens_are_a_zero_with_a_gradient(distance: str) -> None:
    student = torch.randn(0, 8, requires_grad=True)
    total = hidden_distance(student * 1, torch.randn(0, 8), True, distance)
    total.backward()
    assert float(total.detach()) == 0 and student.grad is not None
