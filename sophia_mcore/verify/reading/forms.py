r"""Answers of an unmistakable form that the last sentence ends with: a point, a ratio, a list, an ordinal, a share."""

from __future__ import annotations

import re

from sophia_mcore.verify.text.clauses import SENTENCE_END

SENTENCE_CHARACTERS = 300
_DOUBTED = re.compile(
    r"\b(?:if|unless|whether|would|might|could|may|suppos\w+|assum\w+|not|no|never|wrong|incorrect|false|except|but|or|almost|nearly"
    r"|less|more|least|most|than|before|after|about|initial\w*|originally|started|starting|begin\w*|began|first|given|says?|said|claims?"
    r"|thinks?|guess\w*|instead|opposite|other|another|from|mistake\w*|sort\w*)\b|n['’]t\b|\?",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|unless|whether|would|might|could|suppos\w+|assum\w+|says?|said|claims?|thinks?|wrong|incorrect|not"
    r"|false|initial\w*|original\w*)\b|\?",
    re.IGNORECASE,
)
_SO = r"(?:(?:so|thus|hence|therefore|then)[,:]?\s+)?"
_POINT = re.compile(
    r"\b(?:at|is|are|point|centre|center|vertex|to|coordinates|be)\s+[*$]{0,3}(?P<answer>\((?:[-−]?[\d.]+|[-−]?\d+/\d+)(?:,\s*[-−]?[\d./]+){1,2}\))[*$]{0,3}$"
)
_ANY_POINT = re.compile(r"\([^()]*,[^()]*\)")
_RATIO = re.compile(r"\b(?:is|are|be)\s+in\s+(?:the|a)\s+ratio\s+(?:of\s+)?(?P<first>\d+)\s+to\s+(?P<second>\d+)$")
_ORDINAL = re.compile(
    rf"{_SO}(?:it|this|that)(?:\s+is|['’]s)\s+the\s+(?P<answer>\d+)(?:st|nd|rd|th)\s+(?:figure|term|pattern|picture|diagram)",
    re.IGNORECASE,
)
_PARTS = "hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"
_SHARE = re.compile(
    rf"{_SO}(?P<answer>(?:one|two|three|four|five|six|seven|eight"
    rf"|nine)[ -](?:{_PARTS})) of the [a-z]+(?: [a-z]+)? (?:is|are) [a-z]+ed",
    re.IGNORECASE,
)
_SIGN = re.compile(r"\bfill in\s+(?:the sign\s+)?[\"“'`$]{1,2}(?P<answer>[<>=])[\"”'`$]{1,2}$")
_LIST = re.compile(
    r"(?:[:=]|\b(?:is|are|gives?|get))\s+[*$`]{0,3}(?P<answer>\[(?:[^\[\]()\n]|\([^()\n]*\)){1,200}\])[*$`]{0,3}$"
)
_BLOCK = re.compile(
    r"(?P<lead>[^\n]*(?:therefore|so|thus|hence|answer|result|list|values|order)[^\n]*)[:：]\s*\n+```\w*\n\s*(?P<answer>\[[^\[\]\n]{1,200}\])\s*\n```\Z",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    rf"{_SO}(?:it['’]?s?(?:\s+is)?|that['’]?s?(?:\s+is)?|this is|[Tt]he [a-z]+(?: [a-z]+)? (?:is|was"
    rf"|lies)) between (?P<first>\d+) and (?P<second>\d+)",
    re.IGNORECASE,
)


def _last_sentence(text: str) -> tuple[int, str]:
    """Where the last sentence begins, and its words without emphasis and the full stop."""
    text = text.rstrip()
    line = text.rpartition("\n")[2]
    sentence = SENTENCE_END.split(line)[-1]
    plain = sentence.replace("**", "").rstrip(" .!*")
    return len(text) - len(sentence), plain if len(plain) <= SENTENCE_CHARACTERS else ""


def stated_form(text: str) -> list[tuple[int, str]]:
    """The point, ratio, list, ordinal or share that the last sentence states, where nothing in it supposes or denies.

    >>> stated_form("It ends at **(2, 3)**."), stated_form("It is not at (2, 3).")
    ([(0, '(2, 3)')], [])
    """
    tail = text[-600:].rstrip()
    block = _BLOCK.search(tail) if tail.endswith("```") else None  # the search is slow
    if block is not None and _DOUBTED.search(block["lead"]) is None:
        return [(max(text.rfind(block["answer"]), 0), block["answer"])]
    start, sentence = _last_sentence(text)
    if not sentence:
        return []
    answer = _form(sentence)
    rest = sentence.replace(answer, " ")
    doubted = _SUPPOSED.search(rest) or _DOUBTED.search(re.split(r"[,;]\s", rest)[-1])
    return [(start, answer)] if answer and not doubted else []


def _form(sentence: str) -> str:
    point = _POINT.search(sentence)
    if point is not None and len(_ANY_POINT.findall(sentence)) == 1:
        return point["answer"]
    ratio = _RATIO.search(sentence)
    if ratio is not None:
        return f"{ratio['first']}:{ratio['second']}"
    listed = _LIST.search(sentence)
    if listed is not None and sentence.count("[") == 1:
        return listed["answer"]
    sign = _SIGN.search(sentence)
    if sign is not None:
        return sign["answer"]
    found = _ORDINAL.fullmatch(sentence) or _SHARE.fullmatch(sentence)
    return found["answer"] if found is not None else ""


def between(text: str) -> list[tuple[int, str]]:
    """Both ends of what the last sentence says to lie between two numbers.

    >>> between("So it's between 1995 and 1999.")
    [(0, '[1995, 1999]')]
    """
    start, sentence = _last_sentence(text)
    found = _BETWEEN.fullmatch(sentence)
    return [(start, f"[{found['first']}, {found['second']}]")] if found is not None else []
