from distill.report import warnings_block


def test_what_is_to_know_of_the_corpus_stands_below_the_heading() -> None:
    assert warnings_block([]) == ""
    assert warnings_block(["One is cut.", "Two."]) == "\n**To know about the corpus:**\n\n- One is cut.\n- Two.\n"
