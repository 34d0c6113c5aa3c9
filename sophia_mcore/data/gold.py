"""Is the gold answer of a multiple choice question one of its options? Looked at before anything is sampled."""

from __future__ import annotations

import re
from string import ascii_uppercase

from sophia_mcore.verify.choices import option_index, option_letters
from sophia_mcore.verify.normalize import clean

_LABEL = re.compile(r"\s*\(?([A-Za-z])[).:]\s*\S.*", re.DOTALL)  # "(B) 12" inside an option
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])(?:[).:]|\s)\s*(\S.*)", re.DOTALL)
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
    if len(options) > len(ascii_uppercase):
        return f"the options are {len(options)}, more than there are letters"
    moved = _moved_label(options)
    if moved:
        return moved
    mark = _LETTER_AND_TEXT.fullmatch(answer.strip())
    if mark is not None and _is_another(mark[1], mark[2], options):
        return f"the answer {answer[:80]!r} names a letter and the text of another option"
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


def _moved_label(options: tuple[str, ...]) -> str:
    """What is wrong where all options carry a label of their own, and one is not that of its place; else ""."""
    labels = [_LABEL.fullmatch(option) for option in options]
    if not all(labels):
        return ""
    for place, label in enumerate(labels):
        assert label is not None
        if label[1].upper() != ascii_uppercase[place]:
            return f"the options: ({ascii_uppercase[place]}) is labelled {label[1]!r}"
    return ""


def _is_another(letter: str, text: str, options: tuple[str, ...]) -> bool:
    """Whether ``text`` is exactly one option, and not the one of ``letter``."""
    plain = [clean(option).casefold() for option in options]
    wanted = clean(text).casefold()
    return plain.count(wanted) == 1 and ascii_uppercase.index(letter) != plain.index(wanted)


def letter_of_index(answer: str, first: int, options: tuple[str, ...]) -> str | None:
    """The letter of the option that an index counted from ``first`` names; None if it names none.

    >>> letter_of_index("1", 0, ("red", "blue")), letter_of_index("2", 0, ("red", "blue"))
    ('B', None)
    """
    if not _INDEX.fullmatch(answer.strip()):
        return None
    index = int(float(answer)) - first
    return ascii_uppercase[index] if 0 <= index < min(len(options), 26) and options[index] else None
