"""What can be said of a recipe's teachers without torch: folders, shapes, whether the students fit them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill.distillation import distillation, student_layers
from distill.errors import InputError
from distill.families import Shape, shape_of
from distill.hub import hub_dataset
from distill.reading import check_first_example, check_first_examples, documents_source, labels_file
from distill.recipe import Recipe, Teacher
from distill.sections import Architecture

DEFAULT_MAX_SOURCE_TOKENS = 1024
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "source.spm", "sentencepiece.bpe.model", "vocab.json")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def looks_like_folder(model: str) -> bool:
    """True for a path, False for a hub name (NAME or OWNER/NAME that is no folder here)."""
    return Path(model).exists() or model.startswith(("/", ".", "~")) or model.count("/") > 1


def needs_hub(recipe: Recipe) -> bool:
    """True where a model or the corpus is given by its name."""
    models = [teacher.model for teacher in recipe.teachers.values() if not teacher.run]
    models += [student.model for student in recipe.students.values()]
    return hub_dataset(recipe.corpus) is not None or any(model and not looks_like_folder(model) for model in models)


def check_folder(folder: Path) -> None:
    """InputError where a model folder lacks its config, weights or tokenizer."""
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise InputError(f"{folder} is no folder{where}; expected one written by save_pretrained. Correct the path.")
    if not (folder / "config.json").exists() and (folder / "best" / "config.json").is_file():
        raise InputError(f"{folder} has no model, but the folder of one: give {folder / 'best'}.")
    wanted = {"config.json": ("config.json",), "weights": WEIGHT_FILES, "tokenizer": TOKENIZER_FILES}
    for what, names in wanted.items():
        if not any((folder / name).is_file() for name in names):
            raise InputError(
                f"{folder} has no {what}; expected {' or '.join(names)} in it. "
                "Save the model and its tokenizer there with save_pretrained."
            )


def check_recipe(recipe: Recipe) -> None:
    """Everything about teachers and students that can be refused before any work. InputError says what.

    What has a hub name is not looked up here; `jobs.prepare` does.
    """
    if recipe.wandb and find_spec("wandb") is None:
        raise InputError("wandb: given, but not installed. Run `pip install -e .[wandb]`, or remove the block.")
    for name in recipe.teachers:
        shape = teacher_shape(recipe, name)
        if shape:
            check_teacher(recipe, name, shape)
    for name, labels in recipe.labels.items():
        documents_source(recipe.corpus, labels, name)
        if labels.file:
            labels_file(labels, name)


def check_corpus(recipe: Recipe) -> None:
    """Read the first example of every split, and of other documents that are labelled.

    Raise InputError if one is not as the recipe says: a missing field, another delimiter, another encoding.
    """
    check_first_examples(recipe.corpus)
    for name, labels in recipe.labels.items():
        source = documents_source(recipe.corpus, labels, name)
        if source:
            check_first_example(source, f"labels.{name}.documents")


def check_teacher(recipe: Recipe, name: str, shape: Shape) -> None:
    """A teacher's limits, and those of its students that begin with it or with a folder."""
    check_limits(recipe, shape, f"teacher {name}")
    check_fp16(recipe, name, shape)
    for student_name, student in recipe.students.items():
        base = base_shape(recipe, student_name, shape)
        if student.teacher == name and base is not None:
            check_student(recipe, student_name, shape, base)


def check_student(recipe: Recipe, name: str, teacher: Shape, base: Shape) -> None:
    """The layers that a student takes of what it begins with, its limits, and what it is scored against."""
    check_limits(recipe, base, f"student {name}")
    student_layers(recipe, name, base)
    distillation(recipe, name, teacher, base)
    longest = [
        min(shape.positions or DEFAULT_MAX_SOURCE_TOKENS, DEFAULT_MAX_SOURCE_TOKENS) for shape in (teacher, base)
    ]
    both = recipe.students[name].objective.needs_teacher
    if both and recipe.corpus.max_source_tokens is None and longest[0] < longest[1]:
        raise InputError(
            f"corpus.max_source_tokens: not given, but student {name} reads up to {longest[1]} tokens and its teacher "
            f"{recipe.students[name].teacher} up to {longest[0]}. Expected documents that both read; "
            f"set it to at most {longest[0]}."
        )


def base_shape(recipe: Recipe, name: str, teacher: Shape | None) -> Shape | None:
    """The shape of what student `name` begins with: its teacher, or a model of its own; None for a hub name."""
    model = recipe.students[name].model
    if model is None:
        return teacher
    return folder_shape(model, f"students.{name}.model") if looks_like_folder(model) else None


def folder_shape(model: str, where: str) -> Shape:
    """The shape of a model in a folder; InputError, with the recipe's key, where it is not whole."""
    try:
        check_folder(Path(model))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return shape_of(_read_config(Path(model)), f"{where} ({model})")


def teacher_shape(recipe: Recipe, name: str) -> Shape | None:
    """The teacher's shape from its folder or its architecture block; None for a hub name, not looked up here."""
    teacher: Teacher = recipe.teachers[name]
    if teacher.run:
        best = Path(teacher.run) / "teachers" / (teacher.name or name) / "best"
        return folder_shape(str(best), f"teachers.{name}.run")
    if teacher.architecture and teacher.tokenizer:
        return _built_shape(teacher.architecture, teacher.tokenizer.vocabulary)
    assert teacher.model is not None
    if not looks_like_folder(teacher.model):
        return None
    return folder_shape(teacher.model, f"teachers.{name}.model")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'} is not JSON ({error}). Save the model again.") from None
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'} holds {type(config).__name__}, expected an object.")
    return config


def source_limit(shape: Shape, max_source_tokens: int | None, where: str) -> int:
    """Longest input in tokens: the recipe's, else the model's positions, at most 1024.

    InputError where the recipe asks for more than the model has.
    """
    if max_source_tokens is None:
        return min(shape.positions or DEFAULT_MAX_SOURCE_TOKENS, DEFAULT_MAX_SOURCE_TOKENS)
    if shape.positions is not None and max_source_tokens > shape.positions:
        raise InputError(
            f"corpus.max_source_tokens: {max_source_tokens} given, but {where} has {shape.positions} positions. "
            f"Expected at most {shape.positions}; lower it, or leave it out."
        )
    return max_source_tokens


def check_limits(recipe: Recipe, shape: Shape, where: str) -> None:
    """InputError where documents, summaries or generated texts may be longer than the model's positions."""
    source_limit(shape, recipe.corpus.max_source_tokens, where)
    lengths: dict[str, int | None] = {"corpus.max_target_tokens": recipe.corpus.max_target_tokens}
    members = {f"teachers.{name}": teacher.evaluate for name, teacher in recipe.teachers.items()}
    members |= {f"students.{name}": student.evaluate for name, student in recipe.students.items()}
    for name, evaluate in members.items():
        lengths[f"{name}.evaluate.generation.max_new_tokens"] = evaluate.generation.max_new_tokens if evaluate else None
    lengths |= {f"labels.{name}.max_new_tokens": labels.max_new_tokens for name, labels in recipe.labels.items()}
    for key, length in lengths.items():
        if shape.positions is not None and length is not None and length > shape.positions:
            raise InputError(
                f"{key}: {length} given, but {where} has {shape.positions} positions. "
                f"Expected at most {shape.positions}; lower it."
            )


def check_fp16(recipe: Recipe, teacher: str, shape: Shape) -> None:
    """InputError where a teacher that overflows in fp16 is to label in it: Pegasus, T5 and all that have their names."""
    if not any(family in shape.model_type for family in ("pegasus", "t5")):
        return
    for name, labels in recipe.labels.items():
        engine = labels.engine
        if (labels.teacher or name) == teacher and engine.name == "ctranslate2" and engine.compute == "fp16":
            raise InputError(
                f"labels.{name}.engine.compute: fp16 given, but activations of {shape.model_type} overflow in it. "
                "Expected fp32 or int8; change it."
            )


def _built_shape(architecture: Architecture, vocabulary: int) -> Shape:
    return Shape(
        model_type=architecture.family,
        encoder_layers=architecture.encoder_layers,
        decoder_layers=architecture.decoder_layers,
        width=architecture.width,
        vocabulary=vocabulary,
        positions=architecture.positions if architecture.family == "bart" else None,
        feed_forward=(architecture.feed_forward, architecture.feed_forward),
    )
