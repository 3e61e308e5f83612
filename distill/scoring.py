"""A student beside its teacher: what the trainer drives, put together from a run."""

import dataclasses
import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from distill.distillation import Distillation, distillation
from distill.distributed import World
from distill.engine import LiveTeacher
from distill.errors import InputError
from distill.families import Shape, shape_of
from distill.files import sha256_file
from distill.objective import ScoredStudent, TeacherSource
from distill.pretrained import check_same_tokenizer, dtype_of, fingerprint, load_config, load_model, load_tokenizer
from distill.recipe import Objective, Student, Teacher
from distill.run import Member, Run
from distill.sections import Train
from distill.teacher_cache import CachedTeacher, Contents, contents, hash_tokens
from distill.tokens import Tokens

log = logging.getLogger(__name__)


def scored_student(
    run: Run, member: Member, model: PreTrainedModel, tokenizer: Any, tokens: Tokens, world: World
) -> tuple[ScoredStudent, TeacherSource | None]:
    """A member's model with its objective, and the teacher where a term needs one.

    All ranks must call it. InputError where teacher and student do not go together.
    """
    settings, train = run.settings(member), run.train_settings(member)
    assert train is not None
    if not isinstance(settings, Student) or not settings.objective.needs_teacher:
        objective = settings.objective if isinstance(settings, Student) else Objective()
        return ScoredStudent(model, objective, train.label_smoothing), None
    weights = run.weights(run.member("teachers", settings.teacher))
    config = load_config(weights)
    pairs = distillation(run.recipe, member.name, _shape(weights), _shape(settings.model or weights))
    taught = load_tokenizer(weights, run.teacher_settings(member).languages)
    check_same_tokenizer(tokenizer, taught, member.name, settings.teacher)
    teacher: TeacherSource
    if run.recipe.teachers[settings.teacher].cache:
        teacher = _cached(run, settings, tokens, world, pairs)
    else:
        teacher, pairs = _live(run, settings, train, model, world, pairs)
    log.info("%s: learns from teacher %s; %s", member, settings.teacher, pairs)
    torch.manual_seed(run.seed(member))  # of the projections between widths, where there are any
    return ScoredStudent(model, settings.objective, train.label_smoothing, pairs, config["d_model"]), teacher


def cache_contents(run: Run, teacher: str, tokens: Tokens) -> Contents:
    """What a teacher's cache holds where it is made from the recipe, the corpus and the weights as they are now."""
    settings = run.recipe.teachers[teacher]
    assert settings.cache is not None
    students = [s for s in run.recipe.students.values() if s.teacher == teacher]
    identity = {
        "corpus": sha256_file(run.split("train")),
        "tokens": hash_tokens(tokens),
        "teacher": fingerprint(run.weights(run.member("teachers", teacher))),
    }
    temperatures = [s.objective.kl.temperature for s in students if s.objective.kl]
    return contents(settings.cache, temperatures, settings.precision or "fp32", identity)


def _live(
    run: Run, settings: Student, train: Train, student: PreTrainedModel, world: World, pairs: Distillation
) -> tuple[LiveTeacher, Distillation]:
    teacher_settings: Teacher = run.recipe.teachers[settings.teacher]
    weights = run.weights(run.member("teachers", settings.teacher))
    model = load_model(weights, dtype_of(teacher_settings.precision or train.precision))
    if pairs.shares_encoder and not _same_weights(student.get_encoder(), model.get_encoder()):
        if settings.objective.share_encoder:
            raise InputError(
                f"share_encoder: true given, but the student's encoder has other weights than that of {weights}. "
                "Expected the teacher's own; shrink the student from this teacher, or leave share_encoder out."
            )
        log.warning("the student's encoder has other weights than the teacher's: each runs its own")
        pairs = dataclasses.replace(pairs, shares_encoder=False)
    return LiveTeacher(model, teacher_settings, pairs, world), pairs


def _cached(run: Run, settings: Student, tokens: Tokens, world: World, pairs: Distillation) -> CachedTeacher:
    member = run.member("teachers", settings.teacher)
    made_of = world.broadcast(cache_contents(run, member.name, tokens) if world.is_main else None)
    kl = settings.objective.kl
    temperature = kl.temperature if kl else None
    config = load_config(run.weights(member))
    return CachedTeacher(member.cache, made_of, tokens, config, world.device, temperature, pairs)


def _shape(source: str) -> Shape:
    return shape_of(load_config(source), source)


def _same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
