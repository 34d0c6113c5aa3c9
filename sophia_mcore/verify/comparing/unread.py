r"""What algebra would leave out of an answer: words, marks, accents, operators that it does not know.

math-verify reads what it can and drops the rest: "5 m/s east" is 5 m/s there, and "\hat{p}" is p. So its word counts
only where nothing is left over: both answers name the same letters and hold the same signs that it does not read.
"""

from __future__ import annotations

import re
from collections import Counter

from sophia_mcore.verify.comparing.named import named_value
from sophia_mcore.verify.text.normalize import TEXT_COMMAND

# Commands that math-verify works out, that group, or that stand for a number.
_READ = re.compile(
    "[dt]?frac|sqrt|cdot|times|div|pm|mp|pi|infty|exp|ln|log|lg|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh"
    "|le|ge|ne|lt|gt|in|cup|cap|setminus|left|right|mathbb|binom|circ|emptyset|approx|equiv|quad|qquad|overline|lfloor"
    "|rfloor|lceil|rceil|mid|ldots"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\{[^{}]*\})?")
_NUMBERS = re.compile(r"[A-Za-z]?\s*\\in\s*\\mathbb\s*\{?\s*[A-Z]\s*\}?|\\mathbb\s*\{?\s*[A-Z]\s*\}?")
_FUNCTION = re.compile(
    r"(?<![A-Za-z\\])(?:arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|and|or)(?![A-Za-z])"
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_LETTER = re.compile(r"[A-Za-z]")
_MARK = re.compile(r"[!?'\"%#@&]|[^\x00-\x7f]")
_WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Z]?[a-z]{3,}|of|to|in|on|by|at|for|vs)(?![A-Za-z])")
_BEHIND = re.compile(r"\\([A-Za-z]+)[\s{(]*(\d+(?:\.\d+)?|\\?[A-Za-z]+|\S)?")
_BEFORE = re.compile(rf"(\d+(?:\.\d+)?|[A-Za-z]+|\S)?\s*(?!!)({_MARK.pattern})")
_PRODUCT = re.compile(
    r"(?:(?<![A-Za-z\\])[A-Za-z]|[\d})\]])\s+\d|(?<![\d.])0\d"
)  # "4 m/s 0.5", "2 3", 000: no products
_GAUSS = re.compile(r"(?<!sqrt)\[[^\[\]+,-]*(?:\\(?:log|ln|frac|sqrt)|/)[^\[\],]*\]")  # rounded down in Chinese books
_CONDITION = re.compile(r"[<>|=]|\\(?:le|ge|ne|in)(?![A-Za-z])")


def without_one_name(gold: str, text: str) -> tuple[str, str]:
    """Two answers without the name that only one of them has.

    >>> without_one_name("0.36", "P(A) = 0.36"), without_one_name("x=1", "y=1")
    (('0.36', '0.36'), ('x=1', 'y=1'))
    """
    (name, value), (other, said) = named_value(gold), named_value(text)
    return (value, said) if bool(name) != bool(other) and ("=" in gold) != ("=" in text) else (gold, text)


def nothing_unread(gold: str, text: str) -> bool:
    r"""Whether two cleaned answers hold the same letters and the same signs that algebra does not read.

    The name of a value, and the variable of a condition against an interval, may be on one side only.

    >>> nothing_unread(r"y=\frac{6}{x}", "xy=6"), nothing_unread("5 m/s", "5 m/s east")
    (True, False)
    >>> nothing_unread(r"\vec{a}+\vec{b}", r"\vec{b}+\vec{a}"), nothing_unread(r"\vec{a}", "a")
    (True, False)
    """
    gold, text = without_one_name(gold, text)
    gold, text = (_NUMBERS.sub(" ", _ENVIRONMENT.sub(" ", TEXT_COMMAND.sub(r" \1 ", one))) for one in (gold, text))
    if _words(gold) != _words(text) or any(_PRODUCT.search(one) for one in (gold, text)):
        return False
    if _GAUSS.search(gold) or _GAUSS.search(text):
        return False
    if _signs(gold) != _signs(text) or _places(gold) != _places(text):
        return False
    first, second = _letters(gold), _letters(text)
    if any(letter.swapcase() in first | second for letter in first | second) or _primed(gold) or _primed(text):
        return False  # R and r, R and R' are the same letter there
    if first == second:
        return True
    more, fewer, longer = (first, second, gold) if len(first) > len(second) else (second, first, text)
    return not fewer and len(more) == 1 and _CONDITION.search(longer) is not None


def _letters(text: str) -> set[str]:
    return set(_LETTER.findall(_COMMAND.sub(" ", _FUNCTION.sub(" ", text))))


def _primed(text: str) -> bool:
    """Whether a letter stands with and without a prime."""
    primed = set(re.findall(r"(?<![A-Za-z\\])([A-Za-z])\s*(?:'|\^\s*\{?\s*\\prime)", text))
    return any(re.search(rf"(?<![A-Za-z\\]){one}(?![A-Za-z'])(?!\s*\^\s*\{{?\s*\\prime)", text) for one in primed)


def _words(text: str) -> list[str]:
    """The words and numbers of an answer that has words, in order: "A won 3 to 1" is not "A won 1 to 3"."""
    plain = _FUNCTION.sub(" ", text)
    return re.findall(r"[A-Za-z]+|\d+(?:\.\d+)?", plain) if _WORD.search(plain) else []


def _places(text: str) -> Counter[tuple[str, str]]:
    r"""What stands behind commands and before marks that algebra does not read: 5 \angle 30 is not 30 \angle 5."""
    behind = (
        (name, "".join(sorted(following)) if following.isupper() else following)  # angle ABC is angle CBA
        for name, following in _BEHIND.findall(text)
        if not _READ.fullmatch(name)
    )
    return Counter(behind) + Counter((mark, before) for before, mark in _BEFORE.findall(text))


def _signs(text: str) -> Counter[str]:
    unknown = Counter(name for name in _COMMAND.findall(text) if not _READ.fullmatch(name))
    return unknown + Counter(_MARK.findall(text))
