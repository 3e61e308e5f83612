"""The loss of a student beside its teacher, for every family, against an independent reference in float64."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.distillation import Distillation
from distill.distributed import World
from distill.engine import LiveTeacher
from distill.export import save_model
from distill.losses import IGNORED
from distill.objective import Counts, Request, ScoredStudent
from distill.pretrained import load_model
from distill.recipe import Objective
from distill.recipe import Teacher as TeacherSettings
from distill.signal import HiddenSignal
from distill.student import freeze, shrink
from distill.teacher import FrozenTeacher
from tests.conftest import STARTS, make_model

FAMILIES = sorted(STARTS)
ALL = {
    "cross_entropy": 0.7,
    "kl": {"weight": 0.8, "temperature": 2.0},
    "hidden": {"weight": 3.0, "normalize": True},
}
PAIRS = Distillation(decoder_pairs=((0, 1), (1, 3)), encoder_pairs=((0, 0), (1, 2)))
COUNTS = Counts(target_tokens=10, source_tokens=17)


class Teacher(LiveTeacher):
    """A replica that keeps what it was asked."""

    def __init__(self, model: Any, pairs: Distillation) -> None:
        self.model = model
        super().__init__(model, TeacherSettings(model="here"), pairs, World(0, 1, 0, torch.device("cpu")))
        self.asked: list[Request] = []

    def signal(self, request: Request) -> HiddenSignal:
        self.asked.append(request)
        return super().signal(request)


def make_batch(seed: int = 0) -> dict[str, Any]:
    """Two examples, the second shorter on both sides."""
    make = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(5, 300, (2, 9), generator=make), torch.randint(5, 300, (2, 6), generator=make)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels[1, 4:] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "examples": [0, 1]}


def make_pair(family: str, tokenizer: Any, **changes: Any) -> tuple[Any, Any]:
    """(student of 2-2 layers, teacher of 3-4), far enough apart that no term is small."""
    teacher = make_model(family, tokenizer, noise=0.15, **changes)
    if getattr(teacher, "final_logits_bias", None) is not None:
        teacher.final_logits_bias.normal_(generator=torch.Generator().manual_seed(3))
    student = shrink(teacher, [0, 2], [1, 3])
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    return student, teacher


def reference(student: Any, teacher: Any, batch: dict[str, Any], objective: Objective) -> tuple[Any, dict[str, float]]:
    """(loss, terms) by the models' own forward with whole logits, token by token, all in float64."""
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    arguments = {"input_ids": ids, "attention_mask": mask, "labels": labels, "output_hidden_states": True}
    own, taught = student(**arguments), teacher(**arguments)
    ce = kl = hidden_decoder = hidden_encoder = torch.zeros((), dtype=torch.float64)
    t = 2.0
    for b in range(labels.shape[0]):
        for position in range(labels.shape[1]):
            if labels[b, position] == IGNORED:
                continue
            z, y = own.logits[b, position], taught.logits[b, position].detach()
            log_q = z.log_softmax(-1)
            ce = ce - 0.9 * log_q[labels[b, position]] - 0.1 * log_q.mean()
            p, q = (y / t).softmax(-1), (z / t).softmax(-1)
            kl = kl + t * t * (p * (p.log() - q.log())).sum()
            for mine, theirs in PAIRS.decoder_pairs:
                hidden_decoder = hidden_decoder + state_distance(
                    own.decoder_hidden_states[mine + 1][b, position],
                    taught.decoder_hidden_states[theirs + 1][b, position],
                )
        for position in range(ids.shape[1]):
            if mask[b, position]:
                for mine, theirs in PAIRS.encoder_pairs:
                    hidden_encoder = hidden_encoder + state_distance(
                        own.encoder_hidden_states[mine + 1][b, position],
                        taught.encoder_hidden_states[theirs + 1][b, position],
                    )
    terms = {
        "cross_entropy": ce / 10,
        "kl": kl / 10,
        "hidden_decoder": hidden_decoder / 10,
        "hidden_encoder": hidden_encoder / 17,
    }
    loss = 0.7 * terms["cross_entropy"] + 0.8 * terms["kl"] + 3 * (terms["hidden_decoder"] + terms["hidden_encoder"])
    return loss, {name: float(value.detach()) for name, value in terms.items()}


def state_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    one, other = ((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() for x in (one, other.detach()))
    return ((one - other) ** 2).mean()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


ROUNDING = 3e-6  # relative, of fp32 through both models; it differs between processors, 1.1e-6 is the most seen


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_and_gradients_equal_the_reference(family: str, tokenizer: Any) -> None:
    student, teacher = make_pair(family, tokenizer)
    objective, batch = Objective.model_validate(ALL), make_batch()
    exact_student, exact_teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    expected, expected_terms = reference(exact_student, exact_teacher, batch, objective)
    expected.backward()

    scored = ScoredStudent(student, objective, 0.1, PAIRS)
    loss, terms = scored(**batch, counts=COUNTS, teacher=Teacher(teacher, PAIRS))
    loss.backward()
    assert dict(zip(scored.terms, terms.tolist(), strict=True)) == pytest.approx(expected_terms, rel=ROUNDING)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=ROUNDING)
    found, exact = gradients(student), gradients(exact_student)
    assert found.keys() == exact.keys() and len(found) > 20
    whole = torch.cat([g.flatten() for g in exact.values()])
    difference = torch.cat([(found[name].double() - exact[name]).flatten() for name in exact])
    assert float(difference.norm() / whole.norm()) < ROUNDING
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_of_the_teacher_is_at_no_distance(family: str, tokenizer: Any) -> None:
    teacher = make_model(family, tokenizer, noise=0.3)
    pairs = Distillation(tuple((i, i) for i in range(4)), tuple((i, i) for i in range(3)))
    scored = ScoredStudent(shrink(teacher, [0, 1, 2], [0, 1, 2, 3]), Objective.model_validate(ALL), 0.0, pairs)
    _, terms = scored(**make_batch(), counts=COUNTS, teacher=Teacher(teacher, pairs))
    assert terms[0] > 0 and terms[1:].tolist() == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_to_learn_is_zero_with_finite_gradients(family: str, tokenizer: Any) -> None:
    """The micro-batch of a rank that has no examples left."""
    student, teacher = make_pair(family, tokenizer)
    batch = make_batch()
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    loss, terms = ScoredStudent(student, Objective.model_validate(ALL), 0.1, PAIRS)(
        **batch, counts=COUNTS, teacher=Teacher(teacher, PAIRS)
    )
    loss.backward()
    assert float(loss.detach()) == 0 and terms.tolist() == [0, 0, 0, 0]
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_add_up_and_padding_adds_nothing(family: str, tokenizer: Any) -> None:
    student, teacher = make_pair(family, tokenizer)
    scored, live = ScoredStudent(student, Objective.model_validate(ALL), 0.1, PAIRS), Teacher(teacher, PAIRS)
    batch = make_batch()
    whole, terms = scored(**batch, counts=COUNTS, teacher=live)
    parts = []
    for row, (source, target) in enumerate(((9, 6), (6, 4))):  # each without the other's padding
        one = {"input_ids": batch["input_ids"][[row], :source], "labels": batch["labels"][[row], :target]}
        one["attention_mask"] = torch.ones_like(one["input_ids"])
        parts.append(scored(**one, examples=[row], counts=COUNTS, teacher=live))
    assert sum(float(loss.detach()) for loss, _ in parts) == pytest.approx(float(whole.detach()), rel=1e-5)
    torch.testing.assert_close(sum(part for _, part in parts), terms, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_encoder_changes_nothing_and_runs_once(family: str, tokenizer: Any) -> None:
    teacher = make_model(family, tokenizer, noise=0.3)
    results = []
    for shares in (False, True):
        student, own = shrink(teacher, [0, 1, 2], [1, 3]), copy.deepcopy(teacher)
        freeze(student, ["encoder"])
        pairs = Distillation(((0, 1), (1, 3)), (), shares)
        live = Teacher(own, pairs)
        assert (own.get_encoder() is None) == shares
        ran: list[Any] = []
        for model in (student, own):
            if model.get_encoder() is not None:
                model.get_encoder().register_forward_hook(lambda module, *_, ran=ran: ran.append(module))
        scored = ScoredStudent(student, Objective.model_validate(ALL), 0.1, pairs)
        loss, terms = scored(**make_batch(), counts=COUNTS, teacher=live)
        loss.backward()
        assert len(ran) == (1 if shares else 2)
        results.append((loss.detach(), terms, gradients(student)))
    (loss, terms, grads), (shared_loss, shared_terms, shared_grads) = results
    assert torch.equal(loss, shared_loss) and torch.equal(terms, shared_terms)
    assert grads.keys() == shared_grads.keys()
    assert all(torch.equal(grads[name], shared_grads[name]) for name in grads)


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_and_shared_encoder_have_no_dropout_in_training(family: str, tokenizer: Any) -> None:
    student, teacher = make_model(family, tokenizer), make_model(family, tokenizer)
    scored = ScoredStudent(student, Objective.model_validate(ALL), 0.0, Distillation(((0, 0),), (), True))
    frozen = FrozenTeacher(teacher, Distillation())
    scored.train()
    frozen.train()
    assert student.get_decoder().training and not any(m.training for m in student.get_encoder().modules())
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_teacher_that_is_missing_or_too_much_is_an_error(tokenizer: Any) -> None:
    student, teacher = make_pair("bart", tokenizer)
    for objective, live in ((ALL, None), ({}, Teacher(teacher, PAIRS))):
        with pytest.raises(AssertionError):
            ScoredStudent(student, Objective.model_validate(objective), 0.0, PAIRS)(
                **make_batch(), counts=COUNTS, teacher=live
            )


def test_no_gradient_flows_through_the_teacher(tokenizer: Any) -> None:
    """Not even from an encoder's output that would take one."""
    batch, teacher = make_batch(), make_model("bart", tokenizer)
    encoded = torch.randn(2, 9, 16, requires_grad=True)
    live = Teacher(teacher, Distillation(((0, 1),), (), True))
    signal = live.signal(Request([0, 1], batch["input_ids"], batch["attention_mask"], batch["labels"], encoded))
    for tensor in (signal.hidden_ND, signal.weight_VD, *signal.decoder_states):
        assert not tensor.requires_grad


def test_a_teacher_begins_with_its_own_start_token(tokenizer: Any) -> None:
    """A student of another family or config may begin with another."""
    student, teacher = make_pair("bart", tokenizer)
    read: list[torch.Tensor] = []
    teacher.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True
    )
    teacher.config.decoder_start_token_id = 7
    scored = ScoredStudent(student, Objective.model_validate(ALL), 0.0, PAIRS)
    scored(**make_batch(), counts=COUNTS, teacher=Teacher(teacher, PAIRS))
    assert read[0][:, 0].tolist() == [7, 7] and student.config.decoder_start_token_id != 7


def test_the_first_target_counts_where_the_start_token_is_the_pad_token(tokenizer: Any) -> None:
    """The original masked by decoder_input_ids != pad and so dropped it for T5, Marian and Pegasus."""
    student, teacher = make_pair("t5", tokenizer)
    scored, live = ScoredStudent(student, Objective.model_validate(ALL), 0.0, PAIRS), Teacher(teacher, PAIRS)
    batch = make_batch()
    first = batch | {"labels": torch.where(torch.arange(6) == 0, batch["labels"], IGNORED)}
    _, terms = scored(**first, counts=COUNTS, teacher=live)
    assert int(live.asked[0].counted_BT.sum()) == 2 and bool((terms > 0.01).all())


def test_widths_meet_by_a_trained_projection(tokenizer: Any) -> None:
    """A small T5 from a large one of the same tokenizer: other width, heads and depth."""
    student = make_model("t5", tokenizer, encoder=2, decoder=2)
    teacher = make_model("t5", tokenizer, noise=0.3, d_model=24, d_kv=8, num_heads=3)
    scored = ScoredStudent(student, Objective.model_validate(ALL), 0.0, PAIRS, teacher_width=24)
    loss, terms = scored(**make_batch(), counts=COUNTS, teacher=Teacher(teacher, PAIRS))
    loss.backward()
    assert bool((terms > 0).all())
    maps = {name: p for name, p in scored.named_parameters() if "projections" in name}
    assert {tuple(p.shape) for p in maps.values()} == {(24, 16)} and len(maps) == 4
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in maps.values())
    assert not any("projections" in name for name in student.state_dict())


def test_an_untied_head_has_a_gradient_of_its_own(tokenizer: Any) -> None:
    student = make_model("bart", tokenizer, tie_word_embeddings=False)
    teacher = make_model("bart", tokenizer, noise=0.15, tie_word_embeddings=False)
    assert student.lm_head.weight is not student.get_input_embeddings().weight
    pairs = Distillation(((0, 0),))
    scored = ScoredStudent(student, Objective.model_validate(ALL), 0.0, pairs)
    scored(**make_batch(), counts=COUNTS, teacher=Teacher(teacher, pairs))[0].backward()
    assert bool((student.lm_head.weight.grad.abs().sum(1) > 0).all()), "every token's logit is pulled"
    rows = student.get_decoder().embed_tokens.weight.grad.abs().sum(1).nonzero()
    assert len(rows) < 15, "only what was read has a gradient in the embeddings"


def test_a_replica_stays_in_the_memory_map_of_its_file(tokenizer: Any, tmp_path: Path) -> None:
    """So that the processes of a machine hold the teacher's weights once between them."""
    save_model(make_model("bart", tokenizer), tokenizer, tmp_path)
    model = load_model(tmp_path)
    live = Teacher(model, Distillation(((0, 1),)))
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith(str(tmp_path / "model.safetensors"))]
    assert ranges
    for name, parameter in live.model.named_parameters():
        assert any(int(start, 16) <= parameter.data_ptr() < int(end, 16) for start, end in ranges), name
