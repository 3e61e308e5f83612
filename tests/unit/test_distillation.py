"""What an objective means beside its teacher, and what is refused before any work."""

from typing import Any

import pytest

from distill.distillation import distillation
from distill.errors import InputError
from distill.families import Shape
from distill.layers import PUBLISHED_SUPERVISION, layers_that_supervise
from distill.recipe import Recipe
from distill.recipe_file import parse_recipe

TEACHER = Shape("bart", 12, 12, 16, 320, 64, (24, 24))
ALL: dict[str, Any] = {"kl": {"weight": 0.8}, "hidden": {"weight": 3.0}}


def make_recipe(objective: dict[str, Any], teacher: dict[str, Any] | None = None, **student: Any) -> Recipe:
    settings = {"teacher": "t", "decoder_layers": 3, "objective": objective} | student
    return parse_recipe(
        {
            "name": "r",
            "corpus": {"train": "docstrings"},
            "teachers": {"t": {"model": "some/name"} | (teacher or {})},
            "students": {"s": settings},
            "train": {"steps": 1, "freeze": ["encoder"]},
        }
    )


@pytest.mark.parametrize(
    ("teacher", "student"), [(t, s) for t in PUBLISHED_SUPERVISION for s in PUBLISHED_SUPERVISION[t]]
)
def test_published_supervision(teacher: int, student: int) -> None:
    layers = layers_that_supervise(teacher, student, None, "key")
    assert len(layers) == student and layers[-1] == teacher - 1 and layers == sorted(set(layers))


def test_published_supervision_to_the_letter() -> None:
    assert layers_that_supervise(12, 6, None, "key") == [1, 3, 5, 8, 10, 11]
    assert layers_that_supervise(16, 4, None, "key") == [4, 9, 12, 15]
    assert layers_that_supervise(6, 2, None, "key") == [3, 5]


@pytest.mark.parametrize("teacher", range(1, 25))
def test_other_depths_rise_to_the_last_layer(teacher: int) -> None:
    for student in range(1, 2 * teacher + 2):  # a student of another model may be the deeper one
        layers = layers_that_supervise(teacher, student, None, "key")
        assert len(layers) == student and layers[-1] == teacher - 1 and layers == sorted(layers) and layers[0] >= 0
        assert student > teacher or len(set(layers)) == student


def test_pairs() -> None:
    copied = distillation(make_recipe(ALL), "s", TEACHER, TEACHER)
    assert copied.decoder_pairs == ((0, 0), (1, 6), (2, 11)) and copied.encoder_pairs == ()
    spread = make_recipe(ALL | {"hidden": {"weight": 1, "supervise": "spread"}})
    assert distillation(spread, "s", TEACHER, TEACHER).decoder_pairs == ((0, 3), (1, 7), (2, 11))
    listed = make_recipe(ALL | {"hidden": {"weight": 1, "supervise": {"decoder": [2, 2, 9]}}})
    assert distillation(listed, "s", TEACHER, TEACHER).decoder_pairs == ((0, 2), (1, 2), (2, 9))


def test_the_encoder_takes_part_where_its_depth_differs_and_it_is_trained() -> None:
    trained = {"train": {"freeze": []}}
    found = distillation(make_recipe(ALL, encoder_layers=2, **trained), "s", TEACHER, TEACHER)
    assert found.encoder_pairs == ((0, 0), (1, 6))
    assert distillation(make_recipe(ALL, **trained), "s", TEACHER, TEACHER).encoder_pairs == ()
    assert distillation(make_recipe(ALL, encoder_layers=2), "s", TEACHER, TEACHER).encoder_pairs == ()


def test_the_encoder_is_shared_where_it_is_frozen_and_the_teachers_own() -> None:
    def shares(objective: dict[str, Any] = ALL, teacher: dict[str, Any] | None = None, **student: Any) -> bool:
        return distillation(make_recipe(objective, teacher, **student), "s", TEACHER, TEACHER).shares_encoder

    assert shares() and shares(ALL | {"share_encoder": True})
    assert not shares(ALL | {"share_encoder": False})
    assert not shares(train={"freeze": []}) and not shares(encoder_layers=6)
    assert not shares({}), "nobody teaches"
    assert not shares(teacher={"precision": "bf16"})
    assert shares({"kl": {"weight": 1}}, {"cache": "hidden"}), "it keeps quiet as beside the live teacher"


ASKED = ALL | {"share_encoder": True}
LISTS = {"weight": 1, "supervise": {"encoder": [1]}}
OTHER_MODEL = {"model": "other/name"}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (make_recipe(ASKED, train={"freeze": []}), "share_encoder: true given, but the student's encoder is trained"),
        (make_recipe(ASKED, encoder_layers=6), "6 of the teacher's 12 encoder layers"),
        (make_recipe(ASKED, {"precision": "bf16"}), "the student computes in fp32, the teacher in bf16"),
        (make_recipe({"share_encoder": True}), "no term of the objective needs the teacher"),
        (make_recipe(ALL | {"hidden": LISTS}, encoder_layers=1), "hidden.supervise.encoder: given, but the encoder is"),
        (make_recipe(ALL | {"hidden": {"weight": 1, "supervise": {"decoder": [1, 2]}}}), "2 layers given, but the"),
        (make_recipe(ALL | {"hidden": {"weight": 1, "supervise": {"decoder": [1, 2, 12]}}}), "0 to 11"),
        (make_recipe(ALL, **OTHER_MODEL), "copied .* given, but the student begins with other/name"),
        (make_recipe(ALL, {"cache": "hidden"}), r"decoder layers \[0, 6\], but teacher t is read from a cache of hidden"),
        (make_recipe(ALL, {"cache": "top_k"}), "hidden states, but teacher t is read from a cache of top_k"),
        (make_recipe({"kl": {"weight": 1}}, {"cache": {"keep": "top_k", "k": 400}}), "cache.k: 400 given, expected at most"),
    ],
)  # fmt: skip
def test_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(InputError, match=message):
        distillation(recipe, "s", TEACHER, TEACHER)


def test_another_vocabulary_is_refused() -> None:
    recipe = make_recipe({"kl": {"weight": 1}}, **OTHER_MODEL)
    with pytest.raises(InputError, match="a vocabulary of 100, teacher t one of 320"):
        distillation(recipe, "s", TEACHER, Shape("bart", 3, 3, 16, 100, 64, (24, 24)))


def test_a_cache_of_hidden_states_serves_a_term_on_the_last_layer() -> None:
    recipe = make_recipe(ALL | {"hidden": {"weight": 1, "supervise": "spread"}}, {"cache": "hidden"}, decoder_layers=1)
    assert distillation(recipe, "s", TEACHER, TEACHER).decoder_pairs == ((0, 11),)


@pytest.mark.parametrize(
    ("objective", "teacher", "message"),
    [
        ({"cross_entropy": 0}, {}, "students.s.objective: every term is zero"),
        ({"kl": {"weight": 0}}, {}, "students.s.objective.kl.weight: 0 given"),
        ({"kl": {"weight": 1, "temprature": 2}}, {}, "did you mean 'temperature'"),
        ({"kl": 0.8}, {}, "objective.kl: 0.8 given; expected a block with the keys weight, temperature, direction"),
        ({"kl": {"weight": True}}, {}, "objective.kl.weight: True given; a number is expected"),
        ({"hidden": {"weight": 1, "supervise": [1, 3]}}, {}, "'copied' or 'spread', or a block with the keys decoder"),
        ({"hidden": {"weight": 1, "supervise": {"decoder": [True, 3]}}}, {}, "a number is expected, not true or false"),
        ({"kl": {"weight": 1, "direction": "back"}}, {}, "objective.kl.direction: 'back' given"),
        ({"kl": {"weight": 1, "beta": 1}}, {}, "objective.kl.beta: 1 given"),
        ({"hidden": {"weight": 1, "supervise": {}}}, {}, "no layers; give decoder or encoder"),
        ({"hidden": {"weight": 1, "supervise": "last"}}, {}, "objective.hidden.supervise: 'last' given"),
        ({}, {"zero_stage": 2}, "teachers.t.zero_stage: 2 given"),
        ({}, {"offload": "cpu"}, "offload needs zero_stage 3"),
        ({}, {"cache": "hidden", "zero_stage": 3}, "a teacher fills its cache as a replica"),
        ({}, {"cache": "logits"}, "teachers.t.cache.keep: 'logits' given"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(objective: dict[str, Any], teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_recipe(objective, teacher)
