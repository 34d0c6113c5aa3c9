"""A letter that the last sentence of a multiple choice answer ends with in plain words: "and I get (D)"."""

from __future__ import annotations

import re

from sophia_mcore.verify.reading.options import DOUBT
from sophia_mcore.verify.text.clauses import SENTENCE_END

_CHARACTERS = 300  # a longer sentence is not read
_I_GET = re.compile(
    r"(?:^|[,;]\s+(?:(?:and|so|then)\s+)?|\b(?:and|so|then)\s+)(?:I|we)\s+(?:then\s+)?"
    r"(?:get|got|obtain(?:ed)?|arrived? at|end(?:ed)? up with)\s+(?:option\s+|choice\s+)?(?P<answer>[(\[]?[A-J][)\]]?)$"
    r"|^(?:I|We)\s[^,;:]{3,80}?\s+and\s+(?:get|got|obtain(?:ed)?)\s+(?P<then>[(\[][A-J][)\]])$"
)


def obtained_letter(text: str) -> list[tuple[int, str]]:
    """The letter that the last sentence says was obtained, where nothing in it doubts or denies.

    >>> obtained_letter("I added both, and I get (D)."), obtained_letter("If I add both, I get (D).")
    ([(24, '(D)')], [])
    """
    text = text.rstrip()
    sentence = SENTENCE_END.split(text[text.rfind("\n") + 1 :])[-1].replace("**", "").rstrip(" .!")
    found = _I_GET.search(sentence) if len(sentence) <= _CHARACTERS else None
    if found is None or sentence.startswith("Had ") or DOUBT.search(sentence[: found.end() - 1]):
        return []
    letter = found["answer"] or found["then"]
    return [(text.rfind(letter), letter)]
