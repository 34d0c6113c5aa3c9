r"""Named values: "x = 5", "\angle ABC = 40", "AB = CD = 5", "S = \frac{12}{2} = 6", "Area = 12"."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from sophia_mcore.verify.comparing.algebra import Expression, at_points, evaluate
from sophia_mcore.verify.text.clauses import assigns
from sophia_mcore.verify.text.normalize import TEXT_COMMAND, split_top

_INDEX = r"(?:\s*_\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\?[A-Za-z]+|\w))?(?:\s*\^\s*\{?\s*\*\s*\}?)?"
_ARGUMENT = r"(?:\s*\([^()=<>]{1,30}\))?"
_LETTERS = (
    r"(?:\\(?!frac|sqrt|text|left|right|begin|end|pm|mp|times|cdot|div|le|ge|ne|ln|log)[A-Za-z]+\s*)?[A-Z]{1,4}'?"
)
_VARIABLE = rf"(?:(?:\\[Dd]elta\s*)?\\?[A-Za-z]+{_INDEX}'{{0,2}}{_ARGUMENT})"
_SEGMENT = (
    r"(?:\\(?:overline|vec|overrightarrow|widehat|hat|bar|mathbf|stackrel\{\\frown\})\s*\{"
    r"\s*[A-Za-z]{1,4}\s*\}|[A-Z]{1,3}'?)"
)
_ANGLE = rf"(?:m\s*)?\\(?:angle|triangle|measuredangle)\s*(?:[A-Z]{{1,4}}'?|\d{{1,2}}|\\?[a-z]+){_INDEX}"
_SIZE = rf"(?:\|\s*(?:{_SEGMENT}|\\?[A-Za-z]{_INDEX})\s*\||\\left\|\s*{_SEGMENT}\s*\\right\|)"
_WORDS = r"(?:\\(?:text|mathrm|operatorname)\s*\{[^{}=]{1,60}\}|[A-Za-z][a-z]{2,20}(?:\s+[A-Za-z]+){0,5})"
_FUNCTION = (
    rf"\\(?:sin|cos|tan|cot|sec|csc|log|ln)(?:\s*\^\s*\{{?\d\}}?)?\s*(?:\(?\s*(?:\\?[A-Za-z]+|{_ANGLE}|\d+"
    rf"(?:\s*\^\s*\{{?\s*\\circ\s*\}}?)?){_INDEX}\s*\)?)"
)
_OF = r"(?:\\Pr|\\mathbb\s*\{?\s*[EPV]\s*\}?|[A-Z]|[a-z]|Var|\\operatorname\{[A-Za-z]+\})\s*[(\[][^()\[\]]{1,40}[)\]]"
_DERIVATIVE = (
    r"\\frac\s*\{\s*(?:d|\\partial)\s*(?:\^\s*\{?2\}?)?\s*[a-zA-Z]?\s*\}\s*\{\s*(?:d|\\partial)"
    r"\s*[a-zA-Z](?:\s*\^\s*\{?2\}?)?\s*\}(?:\s*[a-z](?:\([a-z]\))?)?"
)
_QUOTIENT = (
    rf"(?:\\frac\s*\{{\s*(?:{_SEGMENT}|S{_INDEX}|V{_INDEX})\s*\}}\s*\{{\s*(?:{_SEGMENT}|S{_INDEX}"
    rf"|V{_INDEX})\s*\}}|{_SEGMENT}\s*[:/]\s*{_SEGMENT})"
)
_LIMIT = r"\\lim\s*(?:_\s*\{[^{}]*\})?\s*.{1,60}"
_POINTS = r"\(\s*[a-z]\s*(?:,\s*[a-z]\s*){1,3}\)"
_NAME = re.compile(
    "|".join(
        f"(?:{kind})"
        for kind in (
            *(_VARIABLE, _SEGMENT, _ANGLE, _SIZE, _WORDS, _FUNCTION, _OF, _DERIVATIVE, _QUOTIENT, _LIMIT, _POINTS),
            rf"{_LETTERS}{_INDEX}",
        )
    )
)
_RELATION = re.compile(r"<|>|\\(?:le|ge|ne|lt|gt)(?![a-zA-Z])")
_EQUAL = re.compile(r"\\(?:approx|equiv|simeq)(?![a-zA-Z])")
_OF_UNKNOWN = re.compile(  # says what a function of an unknown or of a segment is
    r"\|\s*[kmntuwxy]\s*\||\\(?:log|ln)[^A-Za-z]*(?:\{[^{}]*\})?[\s({]*[a-z][\s)}]*"
    r"|\\(?:sin|cos|tan|cot|sec|csc)(?:\s*\^\s*\{?\d\}?)?[\s({]*(?:[kmntuwxy]|[A-Z]{2})[\s)}]*"
)
_PRODUCT = re.compile(r"[a-z]{2,}")
# A letter that may stand for a word: its initial, or one of these.
_LETTER_OF = {"area": "as", "perimeter": "pcl", "circumference": "cpl", "surface": "s", "length": "l", "distance": "ds"}


@lru_cache(maxsize=1 << 13)
def named_value(text: str) -> tuple[str, str]:
    r"""(name, value) of a cleaned answer that says what something equals; ("", text) for any other answer.

    A chain counts by its last side when every other side is a name or equals it as a number. "5 = x" is read backwards.

    >>> named_value(r"\angle ABC = 40"), named_value("AB = CD = 5"), named_value("2x = 5")
    (('\\angle ABC', '40'), ('AB', '5'), ('', '2x = 5'))
    """
    if len(text) > 400 or ("=" not in text and r"\approx" not in text and r"\equiv" not in text):
        return "", text
    if _RELATION.search(re.sub(r"\{[^{}]*\}|\([^()]*\)", "", text)):
        return "", text
    sides = split_top(_EQUAL.sub("=", text), "=")
    if sides is None or len(sides) < 2 or not all(sides):
        return "", text
    *others, value = sides
    if len(sides) == 2 and is_name(value, strict=True) and _is_number(others[0]):
        others, value = [value], others[0]
    if not is_name(others[0]) and not _is_number(others[0]):
        return "", text
    if len(others) == 1 and is_name(others[0]):
        return others[0], value
    if is_name(value) and not _is_number(value):
        return "", text
    worked = _without_unit(value) or evaluate(value)
    for side in others:
        if is_name(_MULTIPLE_OF.sub("", side)) and not _is_number(side):
            continue
        middle = evaluate(side)
        if worked is None or middle is None or _JOINED.search(side):
            return "", text
        formula = worked.is_number and not middle.is_number and is_name(others[0])  # V = \pi r^2 h = 12
        if not formula and not _near(middle, worked):
            return "", text
    return others[0], value


_MULTIPLE_OF = re.compile(r"^(?:\d+|\\frac\s*\{?1\}?\s*\{?2\}?)\s*(?=\\angle)")  # of an angle, within a chain
_JOINED = re.compile(r"\b(?:or|and|if|but|not|at|for|when|where|with|on|in)\b|[,;]")
_MEASURED = re.compile(
    r"(?P<number>.*[\d})i])\s*\\(?:text|mathrm)\s*\{[^{}]*\}.*|(?P<plain>[-\d.,]*\d) (?:(?:square|cubic) )?[a-zA-Z]{2,}"
)


def _without_unit(value: str) -> Expression | None:
    """The number before a unit in \\text; None if there is none."""
    measured = _MEASURED.fullmatch(value)
    return evaluate((measured["number"] or measured["plain"]).strip()) if measured else None


def _near(middle: Expression, last: Expression) -> bool:
    """Whether two expressions have the same value to three digits: the last side may be rounded."""
    if middle.exact is not None and last.exact is not None:  # of any size
        return abs(middle.exact - last.exact) <= Fraction(5, 1000) * max(abs(middle.exact), abs(last.exact))
    try:
        sides = list(zip(at_points(middle), at_points(last), strict=True))
    except OverflowError:
        return False
    return all(x is not None and y is not None and abs(x - y) <= 5e-3 * max(abs(x), abs(y)) for x, y in sides)


def _is_number(text: str) -> bool:
    expression = evaluate(text)
    return expression is not None and expression.is_number


@lru_cache(maxsize=1 << 13)
def is_name(text: str, strict: bool = False) -> bool:
    r"""Whether a side of an equation names one thing: a variable, segment, angle, function value or words.

    >>> is_name("AB"), is_name(r"\sin \theta"), is_name("P(X=2)"), is_name("AB + CD"), is_name("ab"), is_name("2x")
    (True, True, True, False, False, False)
    """
    text = text.strip()
    if _NAME.fullmatch(text) is None or text in (r"\pi", "e", "i") or _OF_UNKNOWN.fullmatch(text):
        return False
    if " " in text and assigns(text.rpartition(" ")[0] + " "):
        return False  # "let x", "it occurs at x"
    letters = TEXT_COMMAND.sub("", re.sub(r"\\[A-Za-z]+|_\s*(?:\{[^{}]*\}|\w+)|\([^()]*\)", " ", text))
    if strict:
        return len(text) <= 2 or text.startswith("\\angle") or re.fullmatch(rf"[A-Za-z]{_INDEX}", text) is not None
    run = _PRODUCT.fullmatch(letters.strip())
    return run is None or len(run[0]) > 2  # xy is a product, area is a word


def names_agree(a: str, b: str) -> bool:
    r"""Whether two names may stand for the same thing: alike, a segment read backwards, or a word and its letter.

    >>> names_agree("AB", "BA"), names_agree("Circumference", "C"), names_agree("x", "y"), names_agree("f(x)", "y")
    (True, True, False, True)
    """
    first, second = (
        re.sub(r"[\s{}$]|\\(?:text|mathrm|overline|angle|left|right)|^m(?=[A-Z])", "", name) for name in (a, b)
    )
    if first.casefold() == second.casefold() or (first[::-1] == second and len(first) > 1):
        return True
    if {first, second} == {first[:1], f"{first[:1]}_{first[2:] or second[2:]}"}:
        return True  # x and x_1
    if any(re.fullmatch(r"[a-z]\(x\)", x) and y == "y" for x, y in ((first, second), (second, first))):
        return True
    for word, letter in ((first.casefold(), second.casefold()), (second.casefold(), first.casefold())):
        if len(word) > 3 and word.isalpha() and len(letter) == 1:
            return letter == word[0] or any(letter in known for key, known in _LETTER_OF.items() if key in word)
    return False
