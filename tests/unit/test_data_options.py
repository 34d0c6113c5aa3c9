"""Options of multiple choice questions in the text that models are asked."""

import pytest

from sophia_mcore.data.columns import with_options


@pytest.mark.parametrize(
    ("question", "options", "asked"),
    [
        ("Which?", (), "Which?"),
        ("Which? A. red B. blue", ("red", "blue"), "Which? A. red B. blue"),
        ("Choices:\n(A) 1\n(B) 2", ("(A) 1", "(B) 2"), "Choices:\n(A) 1\n(B) 2"),
        ("Is a red or a blue one larger?", ("red", "blue"), "Is a red or a blue one larger?\n(A) red\n(B) blue"),
        ("Who?", ("A: Ada", "B: I. Newton"), "Who?\n(A) Ada\n(B) I. Newton"),
    ],
)
def test_options_stand_in_the_question_once(question: str, options: tuple[str, ...], asked: str) -> None:
    assert with_options(question, options) == asked
