"""What a student's objective means beside its teacher: pairs of layers, the shared encoder, what is refused. No torch."""

from dataclasses import dataclass

from distill.errors import InputError
from distill.families import Shape
from distill.layers import layers_that_supervise, layers_to_copy
from distill.recipe import Recipe, Student, Supervision, Teacher

Pairs = tuple[tuple[int, int], ...]  # (student layer, teacher layer), both 0-based


@dataclass(frozen=True)
class Distillation:
    """A student's objective, resolved: which layers are compared, and whether one encoder serves both models."""

    decoder_pairs: Pairs = ()
    encoder_pairs: Pairs = ()
    shares_encoder: bool = False


def distillation(recipe: Recipe, name: str, teacher: Shape, base: Shape) -> Distillation:
    """Resolve the objective of student `name`; `base` is the shape of what it begins with (its teacher, as a rule).

    InputError where the objective asks for what cannot be right.
    """
    student = recipe.students[name]
    if not student.objective.needs_teacher:
        if student.objective.share_encoder:
            raise InputError(
                f"students.{name}.objective.share_encoder: true given, but no term of the objective needs the teacher. "
                "Add kl or hidden, or leave it out."
            )
        return Distillation()
    _check_vocabularies(name, student, teacher, base)
    layers = student_layers(recipe, name, base)
    decoder, encoder = _pairs(name, student, teacher, layers)
    _check_cache(recipe, name, teacher, decoder, encoder)
    return Distillation(decoder, encoder, _shares_encoder(recipe, name, teacher, layers[0]))


def student_layers(recipe: Recipe, name: str, base: Shape) -> tuple[list[int], list[int]]:
    """The encoder and decoder layers that a student copies of its teacher, or of the model it begins with."""
    student = recipe.students[name]
    return (
        layers_to_copy(base.encoder_layers, student.encoder_layers, f"students.{name}.encoder_layers"),
        layers_to_copy(base.decoder_layers, student.decoder_layers, f"students.{name}.decoder_layers"),
    )


def _check_vocabularies(name: str, student: Student, teacher: Shape, base: Shape) -> None:
    if student.objective.kl and base.vocabulary != teacher.vocabulary:
        raise InputError(
            f"students.{name}.model: {student.model} has a vocabulary of {base.vocabulary}, teacher {student.teacher} "
            f"one of {teacher.vocabulary}. The KL needs the same tokenizer; choose another model, or leave out kl."
        )


def _pairs(name: str, student: Student, teacher: Shape, layers: tuple[list[int], list[int]]) -> tuple[Pairs, Pairs]:
    """(decoder pairs, encoder pairs) of the hidden-state term."""
    hidden = student.objective.hidden
    if hidden is None:
        return (), ()
    key = f"students.{name}.objective.hidden.supervise"
    if hidden.supervise == "copied" and student.model is not None:
        raise InputError(
            f"{key}: copied (the default) given, but the student begins with {student.model}, not with its teacher's "
            "layers. Expected spread or lists of teacher layers; add supervise: spread."
        )
    encoder_layers, decoder_layers = layers
    frozen = "encoder" in student.train.freeze
    if isinstance(hidden.supervise, Supervision):
        if hidden.supervise.encoder and frozen:
            raise InputError(f"{key}.encoder: given, but the encoder is frozen (train.freeze); remove one of them.")
        return (
            _listed(f"{key}.decoder", hidden.supervise.decoder, teacher.decoder_layers, decoder_layers),
            _listed(f"{key}.encoder", hidden.supervise.encoder, teacher.encoder_layers, encoder_layers),
        )
    spread = hidden.supervise == "spread"
    decoder = _spread(teacher.decoder_layers, decoder_layers) if spread else tuple(enumerate(decoder_layers))
    if frozen or len(encoder_layers) == teacher.encoder_layers:
        return decoder, ()
    return decoder, _spread(teacher.encoder_layers, encoder_layers) if spread else tuple(enumerate(encoder_layers))


def _listed(key: str, given: list[int] | None, teacher_depth: int, own: list[int]) -> Pairs:
    """No list means that this stack takes no part."""
    return () if given is None else tuple(enumerate(layers_that_supervise(teacher_depth, len(own), given, key)))


def _spread(teacher_depth: int, own: list[int]) -> Pairs:
    return tuple(enumerate(layers_that_supervise(teacher_depth, len(own), None, "spread")))


def _check_cache(recipe: Recipe, name: str, teacher: Shape, decoder: Pairs, encoder: Pairs) -> None:
    """Refuse what a cache does not hold."""
    student = recipe.students[name]
    cache = recipe.teachers[student.teacher].cache
    if cache is None:
        return
    last = teacher.decoder_layers - 1
    others = sorted({layer for _, layer in decoder} - {last})
    wants = [f"decoder layers {others}"] * bool(others) + ["encoder layers"] * bool(encoder)
    if cache.keep == "top_k" and decoder:
        wants = ["hidden states"]
    if wants:
        raise InputError(
            f"students.{name}.objective.hidden: needs the teacher's {' and '.join(wants)}, but teacher "
            f"{student.teacher} is read from a cache of {cache.keep}"
            + (f", which holds only its last decoder layer ({last})" if cache.keep == "hidden" else "")
            + ". Remove the teacher's cache, or the hidden-state term, or supervise by the last layer."
        )
    if cache.keep == "top_k" and cache.k > teacher.vocabulary:
        raise InputError(
            f"teachers.{student.teacher}.cache.k: {cache.k} given, expected at most the vocabulary's "
            f"{teacher.vocabulary}; lower it."
        )


def _shares_encoder(recipe: Recipe, name: str, teacher: Shape, encoder_layers: list[int]) -> bool:
    """Whether one encoder serves both; InputError where it is asked for and cannot be."""
    student = recipe.students[name]
    asked = student.objective.share_encoder
    obstacle = _obstacle(student, recipe.teachers[student.teacher], teacher, encoder_layers)
    if asked and obstacle:
        raise InputError(
            f"students.{name}.objective.share_encoder: true given, but {obstacle}. Expected a frozen encoder that is "
            "the teacher's own; change that, or leave share_encoder out."
        )
    return asked is not False and obstacle is None


def _obstacle(student: Student, settings: Teacher, teacher: Shape, encoder_layers: list[int]) -> str | None:
    if "encoder" not in student.train.freeze:
        return "the student's encoder is trained (train.freeze does not name the encoder)"
    if student.model is not None:
        return f"the student begins with {student.model}, another model"
    if len(encoder_layers) != teacher.encoder_layers:
        return f"the student has {len(encoder_layers)} of the teacher's {teacher.encoder_layers} encoder layers"
    if settings.precision not in (None, student.train.precision):
        return f"the student computes in {student.train.precision}, the teacher in {settings.precision}"
    return None
