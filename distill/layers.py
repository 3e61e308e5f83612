"""Which teacher layers a student copies. Pure integers; a layer is a 0-based block.

The published tables of "Pre-trained Summarization Distillation" (Shleifer & Rush 2020) are used as they are;
depths outside them are spaced evenly with the first and the last layer kept.
"""

import math
from collections.abc import Sequence

from distill.errors import InputError

PUBLISHED_COPIES: dict[int, dict[int, tuple[int, ...]]] = {
    6: {
        1: (0,),
        2: (0, 5),
        3: (0, 2, 5),
        4: (0, 1, 3, 5),
    },
    12: {
        1: (0,),
        2: (0, 6),
        3: (0, 6, 11),
        4: (0, 4, 8, 11),
        6: (0, 2, 4, 7, 9, 11),
        9: (0, 1, 2, 4, 5, 7, 9, 10, 11),
    },
    16: {
        1: (0,),
        2: (0, 15),
        3: (0, 8, 15),
        4: (0, 5, 10, 15),
        6: (0, 3, 6, 9, 12, 15),
        8: (0, 2, 4, 6, 8, 10, 12, 15),
        9: (0, 1, 3, 5, 7, 9, 11, 13, 15),
        12: (0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15),
    },
}

PUBLISHED_SUPERVISION: dict[int, dict[int, tuple[int, ...]]] = {
    6: {
        1: (5,),
        2: (3, 5),
        3: (1, 4, 5),
        4: (1, 2, 4, 5),
    },
    12: {
        1: (11,),
        2: (5, 11),
        3: (3, 7, 11),
        6: (1, 3, 5, 8, 10, 11),
    },
    16: {
        1: (15,),
        4: (4, 9, 12, 15),
        8: (1, 3, 5, 7, 9, 11, 13, 15),
    },
}


def layers_to_copy(teacher_depth: int, student: int | Sequence[int] | None, key: str) -> list[int]:
    """The teacher layers that make the student, in order.

    `student` is a depth, an explicit list of teacher layers, or None for all of them. `key` is the recipe's
    dotted key, for the message of the InputError raised where the request does not fit the teacher.
    """
    if student is None:
        return list(range(teacher_depth))
    if isinstance(student, int):
        return _of_depth(teacher_depth, student, key)
    return _explicit(teacher_depth, list(student), key)


def evenly_spaced(teacher_depth: int, student_depth: int) -> list[int]:
    """`student_depth` layers of `teacher_depth`, first and last kept; a single layer is the first."""
    if student_depth == 1:
        return [0]
    return [round(i * (teacher_depth - 1) / (student_depth - 1)) for i in range(student_depth)]


def layers_that_supervise(teacher_depth: int, student_depth: int, given: Sequence[int] | None, key: str) -> list[int]:
    """The teacher layer that each student layer is compared with: `given`, or spread with the last by the last.

    Spread are the published tables; depths outside them end each of the student's equal parts of the teacher (which
    the tables nearly do). InputError, with the recipe's dotted `key`, where a given list does not fit.
    """
    if given is None:
        published = PUBLISHED_SUPERVISION.get(teacher_depth, {}).get(student_depth)
        ends = (math.ceil((i + 1) * teacher_depth / student_depth) - 1 for i in range(student_depth))
        return list(published or ends)
    layers = list(given)
    wrong = [layer for layer in layers if not 0 <= layer < teacher_depth]
    if wrong:
        raise InputError(
            f"{key}: layers {wrong} are out of range; the teacher's layers are 0 to {teacher_depth - 1}. "
            "Change the list."
        )
    if len(layers) != student_depth:
        raise InputError(
            f"{key}: {len(layers)} layers given, but the student has {student_depth} layers. "
            f"Expected one teacher layer for each; give {student_depth}."
        )
    return layers


def _of_depth(teacher_depth: int, depth: int, key: str) -> list[int]:
    if not 1 <= depth <= teacher_depth:
        raise InputError(
            f"{key}: {depth} layers asked for, but the teacher has {teacher_depth}. "
            f"Expected 1 to {teacher_depth}; choose a smaller student or a deeper teacher."
        )
    published = PUBLISHED_COPIES.get(teacher_depth, {}).get(depth)
    return list(published) if published else evenly_spaced(teacher_depth, depth)


def _explicit(teacher_depth: int, layers: list[int], key: str) -> list[int]:
    wrong = [layer for layer in layers if not 0 <= layer < teacher_depth]
    if wrong:
        raise InputError(
            f"{key}: layers {wrong} are out of range; the teacher's layers are 0 to {teacher_depth - 1}. "
            "Change the list."
        )
    if not layers or sorted(set(layers)) != layers:
        raise InputError(
            f"{key}: {layers} given, expected at least one layer, in rising order, each once. Change the list."
        )
    return layers
