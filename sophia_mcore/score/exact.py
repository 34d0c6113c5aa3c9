"""What can be decided exactly in microseconds: numbers as rationals, option letters, equal text.

``decide`` answers True, False or None; None means that the answer needs real mathematics.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 300  # longer numbers and larger exponents are left to the killable workers
DECIMAL_PLACES = 6  # numbers with a decimal point are equal when they agree after rounding to this many places


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number as written."""

    value: Fraction
    decimal: bool  # written with a decimal point or an exponent: compared after rounding
    percent: bool


_SIGN = r"(?P<sign>[+-]?)\s*"
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"{_SIGN}(?:(?P<plain>{_PLAIN})(?:[eE](?P<exponent>[+-]?\d+))?"
    rf"|(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    rf"|(?P<whole>\d+)?\s*\\[dt]?frac\s*(?:\{{\s*(?P<ftop>-?\d+)\s*\}}\s*\{{\s*(?P<fbottom>-?\d+)\s*\}}|(?P<d1>\d)\s*(?P<d2>\d)))"
    rf"(?P<percent>\s*(?:\\?%|percent))?"
)
_TIMES_TEN = re.compile(
    rf"{_SIGN}(?P<plain>{_PLAIN})\s*(?:\\times|\\cdot|\*|×|x|·)\s*10\s*\^\s*(?:\{{\s*([+-]?\d+)\s*\}}|([+-]?\d+))"
)
_DASHES = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "﹣": "-", "－": "-", "，": ",", "（": "(", "）": ")", "％": "%", "：": ":"}
)
_SPACE = re.compile(r"(?:\\[,;!: ]|~|\\q?quad\b|\s)+")
_DECORATION = re.compile(r"\\(?:left|right|displaystyle|big|Big|bigg|Bigg)(?![a-zA-Z])")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mbox|operatorname)\s*\{([^{}]*)\}")


def clean(answer: str) -> str:
    """An answer with one way of writing spaces, dashes and decorations; its meaning is untouched."""
    if not answer.isascii():
        answer = unicodedata.normalize("NFC", answer).translate(_DASHES)
    if "\\" in answer or "~" in answer:
        answer = _SPACE.sub(" ", _DECORATION.sub("", answer))
    answer = answer.strip().strip("$").strip()
    if answer.endswith(".") and answer[:-1]:
        answer = answer[:-1]
    return answer


def parse_number(text: str) -> Number | None:
    """A cleaned answer as a rational number, or None if it is not plainly one.

    >>> parse_number("1,234.50").value
    Fraction(2469, 2)
    """
    if len(text) > MAX_DIGITS:
        return None
    text = text.removeprefix("\\$").strip()
    match = _NUMBER.fullmatch(text)
    if match is None:
        return _parse_scientific(text)
    sign = -1 if match["sign"] == "-" else 1
    percent = match["percent"] is not None
    if match["plain"]:
        exponent = int(match["exponent"] or "0") if len(match["exponent"] or "") <= 4 else MAX_DIGITS + 1
        if abs(exponent) > MAX_DIGITS:
            return None
        plain = match["plain"].replace(",", "")
        decimal = "." in plain or match["exponent"] is not None
        value = Fraction(plain if plain[-1] != "." else plain[:-1]) * Fraction(10) ** exponent
        return Number(sign * value, decimal, percent)
    if match["top"]:
        top, bottom, whole = match["top"], match["bottom"], "0"
    else:
        top, bottom = match["ftop"] or match["d1"], match["fbottom"] or match["d2"]
        whole = match["whole"] or "0"
    if int(bottom) == 0:
        return None
    return Number(sign * (int(whole) + Fraction(int(top), int(bottom))), False, percent)


def _parse_scientific(text: str) -> Number | None:
    match = _TIMES_TEN.fullmatch(text)
    if match is None:
        return None
    exponent = match[3] or match[4]
    if len(exponent) > 4 or abs(int(exponent)) > MAX_DIGITS:
        return None
    plain = match["plain"].replace(",", "").rstrip(".")
    value = Fraction(plain) * Fraction(10) ** int(exponent)
    return Number(-value if match["sign"] == "-" else value, "." in plain or int(exponent) < 0, False)


def numbers_equal(gold: Number, prediction: Number) -> bool:
    """Equality of two numbers; "50%" equals both 0.5 and 50."""
    pairs = [(gold.value, prediction.value)]
    if gold.percent != prediction.percent:
        pairs.append(
            (gold.value / 100 if gold.percent else gold.value, prediction.value / (100 if prediction.percent else 1))
        )
    if gold.decimal or prediction.decimal:
        return any(round(a, DECIMAL_PLACES) == round(b, DECIMAL_PLACES) for a, b in pairs)
    return any(a == b for a, b in pairs)


_LETTER = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\].:]?")
_LETTER_AND_TEXT = re.compile(r"[(\[]?\s*([A-Z])\s*(?:[)\]]|[.:]|\s-)\s*(.+)", re.DOTALL)


def plain_text(answer: str) -> str:
    """Text for comparison: case, emphasis, LaTeX text commands, outer punctuation and extra spaces do not count."""
    while True:
        shorter = _TEXT.sub(r"\1", answer)
        if shorter == answer:
            break
        answer = shorter
    answer = answer.replace("*", "").replace("_", " ").replace("$", "").replace("\\ ", " ")
    return " ".join(unicodedata.normalize("NFKC", answer).casefold().split()).strip(" .,:;!?\"'`()[]{}")


def option_index(answer: str, options: tuple[str, ...]) -> int | None:
    """Which option an answer names: by its letter, by letter and text, or by its text alone; None if by none."""
    answer = _TEXT.sub(r"\1", answer).strip()
    texts = [plain_text(option) for option in options]
    letter = _LETTER.fullmatch(answer)
    if letter:
        index = ord(letter[1].upper()) - ord("A")
        if not options or index < len(options):
            return index
    text = plain_text(answer)
    if texts.count(text) == 1:
        return texts.index(text)
    both = _LETTER_AND_TEXT.fullmatch(answer)
    if both:
        index = ord(both[1]) - ord("A")
        if not options or index < len(options):
            return index
    return None


YES_NO = {"yes": True, "true": True, "correct": True, "是": True, "对": True, "正确": True} | {
    "no": False,
    "false": False,
    "incorrect": False,
    "否": False,
    "不是": False,
    "错": False,
    "错误": False,
}


def yes_no(answer: str) -> bool | None:
    """True, False, or None when the answer is neither.

    >>> yes_no("Yes, it is")
    True
    """
    words = plain_text(answer)
    if words in YES_NO:
        return YES_NO[words]
    first = re.split(r"[\s,.;，。]", words, maxsplit=1)[0]
    return {"yes": True, "no": False}.get(first)


_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*")
_CONSTANTS = frozenset({"pi", "oo", "inf", "infinity", "nan", "none"})


def is_words(answer: str) -> bool:
    """True for plain words, which equal nothing but the same words."""
    return _WORDS.fullmatch(answer) is not None and answer.casefold() not in _CONSTANTS


def decide(gold: str, prediction: str, answer_type: str, options: tuple[str, ...]) -> bool | None:
    """Equality of two cleaned answers where it is certain, else None.

    ``answer_type`` is canonical (``types`` in rules.toml) and already inferred.
    """
    if answer_type == "choice":
        wanted = option_index(gold, options)
        if wanted is not None:
            return option_index(prediction, options) == wanted
    if answer_type == "yes_no":
        return (
            yes_no(gold) == yes_no(prediction)
            if yes_no(gold) is not None
            else plain_text(gold) == plain_text(prediction)
        )
    if gold == prediction:
        return True
    if answer_type == "text":
        return plain_text(gold) == plain_text(prediction)
    gold_number, number = parse_number(gold), parse_number(prediction)
    if gold_number and number:
        return numbers_equal(gold_number, number)
    if plain_text(gold) == plain_text(prediction) and is_words(plain_text(gold)):
        return True
    if (gold_number and is_words(prediction)) or (number and is_words(gold)):
        return False
    return None
