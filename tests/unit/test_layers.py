import itertools

import pytest

from distill.errors import InputError
from distill.layers import PUBLISHED_COPIES, evenly_spaced, layers_to_copy

# Written out again, from the published code: teacher depth -> student depth -> layers.
TABLES = {
    12: {
        1: [0], 2: [0, 6], 3: [0, 6, 11], 4: [0, 4, 8, 11], 6: [0, 2, 4, 7, 9, 11],
        9: [0, 1, 2, 4, 5, 7, 9, 10, 11], 12: list(range(12)),
    },
    16: {
        1: [0], 2: [0, 15], 3: [0, 8, 15], 4: [0, 5, 10, 15], 6: [0, 3, 6, 9, 12, 15], 8: [0, 2, 4, 6, 8, 10, 12, 15],
        9: [0, 1, 3, 5, 7, 9, 11, 13, 15], 12: [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15], 16: list(range(16)),
    },
    6: {1: [0], 2: [0, 5], 3: [0, 2, 5], 4: [0, 1, 3, 5], 6: list(range(6))},
}  # fmt: skip


def test_the_published_tables() -> None:
    for depth, table in TABLES.items():
        for student, layers in table.items():
            assert layers_to_copy(depth, student, "x") == layers


def test_no_published_depth_is_missing() -> None:
    assert {depth: set(table) | {depth} for depth, table in PUBLISHED_COPIES.items()} == {
        depth: set(table) for depth, table in TABLES.items()
    }


@pytest.mark.parametrize("teacher", range(1, 49))
def test_any_depth_is_spaced_evenly(teacher: int) -> None:
    for student in range(1, teacher + 1):
        layers = evenly_spaced(teacher, student)
        assert layers == sorted(set(layers)) and len(layers) == student
        assert layers[0] == 0 and (student == 1 or layers[-1] == teacher - 1)
        gaps = [b - a for a, b in itertools.pairwise(layers)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_an_explicit_list_and_all_layers() -> None:
    assert layers_to_copy(12, [1, 5], "x") == [1, 5]
    assert layers_to_copy(3, None, "x") == [0, 1, 2]


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (13, "students.s.decoder_layers: 13 layers asked for, but the teacher has 12. Expected 1 to 12"),
        ([0, 12], r"layers \[12\] are out of range; the teacher's layers are 0 to 11"),
        ([], "at least one layer"),
        ([3, 1], "in rising order"),
        ([1, 1], "each once"),
    ],
)
def test_what_does_not_fit_is_refused(student: int | list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layers_to_copy(12, student, "students.s.decoder_layers")
