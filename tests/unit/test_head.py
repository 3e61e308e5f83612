"""The chunked head equals whole logits: losses and gradients; a signal of k logits is a bound of the whole one."""

import pytest
import torch

from distill.head import chunked_losses
from distill.losses import Direction, cross_entropy, divergence
from distill.signal import HiddenSignal, TopKSignal, top_k

N, V, D, TEACHER_D, T = 23, 37, 8, 12, 2.0
FACTORS = [0.7, 1.3]


def parts(dtype: torch.dtype = torch.float32, tokens: int = N) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    sizes = {
        "hidden": (tokens, D),
        "weight": (V, D),
        "bias": (V,),
        "taught": (tokens, TEACHER_D),
        "head": (V, TEACHER_D),
    }
    made = {name: torch.randn(size, generator=make).to(dtype) for name, size in sizes.items()}
    for name in ("hidden", "weight", "bias"):
        made[name].requires_grad_()
    return made | {"labels": torch.randint(0, V, (tokens,), generator=make)}


def chunked(p: dict[str, torch.Tensor], chunk: int | None, direction: Direction = "forward") -> list[torch.Tensor]:
    """[loss, cross-entropy, divergence] and the gradients of hidden states, weight and bias."""
    signal = HiddenSignal(p["taught"], p["head"], None)

    def token_losses(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        pair = signal.log_probabilities(logits, rows, T)
        return torch.stack([cross_entropy(logits, p["labels"][rows], 0.1), T**2 * divergence(*pair, direction)])

    leaves = [p[name] for name in ("hidden", "weight", "bias") if p[name].requires_grad]
    loss, terms = chunked_losses(p["hidden"], p["weight"], p["bias"], token_losses, torch.tensor(FACTORS), chunk)
    assert not terms.requires_grad
    return [loss.detach(), *terms, *torch.autograd.grad(2 * loss, leaves)]


def whole(p: dict[str, torch.Tensor], direction: Direction = "forward") -> list[torch.Tensor]:
    """The same in float64 with whole logits, by the formulas."""
    hidden, weight, bias, taught, head = (
        p[name].detach().double().requires_grad_(p[name].requires_grad)
        for name in ("hidden", "weight", "bias", "taught", "head")
    )
    logits, teacher = hidden @ weight.T + bias, taught @ head.T
    log_q = logits.log_softmax(-1)
    nll = -log_q.gather(1, p["labels"][:, None]).sum()
    ce = 0.9 * nll - 0.1 * log_q.mean(-1).sum()
    log_p, log_q = (teacher / T).log_softmax(-1), (logits / T).log_softmax(-1)
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()
    kls = {"forward": (log_p, log_q), "reverse": (log_q, log_p)}
    if direction == "jensen_shannon":
        kl = ((log_p.exp() * (log_p - log_m)).sum() + (log_q.exp() * (log_q - log_m)).sum()) / 2
    else:
        a, b = kls[direction]
        kl = (a.exp() * (a - b)).sum()
    loss = FACTORS[0] * ce + FACTORS[1] * T**2 * kl
    leaves = [tensor for tensor in (hidden, weight, bias) if tensor.requires_grad]
    return [loss.detach(), ce.detach(), T**2 * kl.detach(), *torch.autograd.grad(2 * loss, leaves)]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], rel: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < rel


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
@pytest.mark.parametrize("chunk", [1, 5, N, None])
def test_equals_whole_logits_in_float64(chunk: int | None, direction: Direction) -> None:
    assert_close(chunked(parts(), chunk, direction), whole(parts(), direction))


@pytest.mark.parametrize("frozen", [("weight",), ("weight", "bias"), ("bias",)])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: tuple[str, ...]) -> None:
    p = parts()
    for name in frozen:
        p[name].requires_grad_(False)
    assert_close(chunked(p, 5), whole(p))


def test_a_weight_used_twice_gets_both_gradients() -> None:
    """Tied embeddings: the head's gradient is added to that of the embedding."""
    p = parts()
    ids = torch.tensor([3, 5, 5])

    def token_losses(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        return cross_entropy(logits, p["labels"][rows])[None]

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss + p["weight"][ids].square().sum(), p["weight"])[0]

    loss, _ = chunked_losses(p["hidden"], p["weight"], None, token_losses, torch.ones(1), 4)
    plain = torch.nn.functional.cross_entropy(p["hidden"] @ p["weight"].T, p["labels"], reduction="sum")
    torch.testing.assert_close(gradient(loss), gradient(plain))


def test_no_tokens_give_zeros_and_gradients_of_zero() -> None:
    loss, *rest = chunked(parts(tokens=0), 4)
    assert float(loss) == 0 and all(torch.equal(value, torch.zeros_like(value)) for value in rest)


def test_half_precision_sums_gradients_of_the_weight_in_fp32() -> None:
    """With one chunk a token, a sum in bf16 stands still at 256 where each token adds one."""
    tokens = 600
    hidden = torch.ones(tokens, D, dtype=torch.bfloat16)
    weight, bias = (torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((V, D), (V,)))
    loss, _ = chunked_losses(hidden, weight, bias, lambda logits, _: logits[:, 0].sum()[None], torch.ones(1), 1)
    loss.backward()
    assert loss.dtype == torch.float32 and weight.grad is not None and bias.grad is not None
    assert weight.grad.dtype == torch.bfloat16 and weight.grad[0, 0] == tokens and bias.grad[0] == tokens
    assert_close(chunked(parts(torch.bfloat16), 1), whole(parts(torch.bfloat16)), rel=1e-2)


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
def test_top_k_is_exact_for_the_whole_vocabulary_and_else_a_lower_bound(direction: Direction) -> None:
    p = parts()
    logits, teacher = (p["hidden"] @ p["weight"].T).detach(), p["taught"] @ p["head"].T
    rows = slice(3, 20)
    pair = HiddenSignal(p["taught"], p["head"], None).log_probabilities(logits[rows], rows, T)
    exact, last = float(divergence(*pair, direction)), 0.0
    for k in (1, 4, 16, V):
        signal = TopKSignal(*top_k(teacher, k, T), temperature=T)
        found = float(divergence(*signal.log_probabilities(logits[rows], rows, T), direction))
        assert last < found <= exact * (1 + 1e-6)
        last = found
    assert last == pytest.approx(exact, rel=1e-6)


def test_top_k_is_zero_for_equal_models_and_finite_for_a_sure_teacher() -> None:
    logits = parts()["taught"] @ parts()["head"].T
    same = TopKSignal(*top_k(logits, 4, T), temperature=T).log_probabilities(logits, slice(0, N), T)
    for direction in ("forward", "reverse", "jensen_shannon"):
        assert float(divergence(*same, direction)) == pytest.approx(0, abs=1e-5)
    sure = torch.zeros(1, V)
    sure[0, 3] = 200.0
    student = torch.zeros(1, V, requires_grad=True)
    signal = TopKSignal(*top_k(sure, 2, T), temperature=T)
    reverse = divergence(*signal.log_probabilities(student, slice(0, 1), T), "reverse")
    exact = HiddenSignal(sure, torch.eye(V), None).log_probabilities(student, slice(0, 1), T)
    assert float(reverse.detach()) == pytest.approx(float(divergence(*exact, "reverse").detach()), rel=0.05)
    assert bool(torch.autograd.grad(reverse, student)[0].isfinite().all())
