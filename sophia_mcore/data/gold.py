"""Is the gold answer of a multiple choice question one of its options? Looked at before anything is sampled."""

from __future__ import annotations

import re
from string import ascii_uppercase

from sophia_mcore.verify.choices import option_index, option_letters
from sophia_mcore.verify.normalize import clean

_INDEX = re.compile(r"\d{1,2}(?:\.0)?")


def answer_problem(answer: str, options: tuple[str, ...]) -> str:
    """What is wrong with a gold answer in view of its options; "" when it names one of them, or several by letter.

    >>> answer_problem("B", ("red", "blue")), answer_problem("blue", ("red", "blue"))
    ('', '')
    >>> answer_problem("E", ("red", "blue"))
    "the answer 'E' is none of the 2 options"
    """
    texts = [option for option in options if option]
    if not texts:
        return ""
    if [option.strip() for option in texts].count(answer.strip()) == 1:
        return ""
    text = clean(answer)
    named = option_index(text, options)
    if named is not None:
        empty = named < len(options) and not options[named]
        return f"the answer {answer[:80]!r} names option ({ascii_uppercase[named]}), which has no text" if empty else ""
    letters = option_letters(text)
    if letters and all(
        ascii_uppercase.index(letter) < len(options) and options[ascii_uppercase.index(letter)] for letter in letters
    ):
        return ""
    cleaned = [clean(option) for option in options]
    if cleaned.count(text) == 1:
        return ""
    hint = "; is it an index? then set answer_index = 0 or 1 of the source" if _INDEX.fullmatch(answer) else ""
    return f"the answer {answer[:80]!r} is none of the {len(texts)} options{hint}"


def letter_of_index(answer: str, first: int, options: tuple[str, ...]) -> str | None:
    """The letter of the option that an index counted from ``first`` names; None if it names none.

    >>> letter_of_index("1", 0, ("red", "blue")), letter_of_index("2", 0, ("red", "blue"))
    ('B', None)
    """
    if not _INDEX.fullmatch(answer.strip()):
        return None
    index = int(float(answer)) - first
    return ascii_uppercase[index] if 0 <= index < min(len(options), 26) and options[index] else None
