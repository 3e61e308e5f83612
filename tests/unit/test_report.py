from distill.report import _overlap


def test_a_test_set_that_stands_in_train_is_said_so() -> None:
    assert _overlap({"near_duplicates_in_train": 0, "examples": 10}) == ""
    assert "**2 of 10 test documents stand, nearly word for word, in train.**" in _overlap(
        {"near_duplicates_in_train": 2, "examples": 10}
    )
