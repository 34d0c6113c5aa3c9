"""Numbers in words, and what words behind a number make of it."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from sophia_mcore.verify.rules import tables

SMALL: dict[str, int] = tables().numerals
POWERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
MULTIPLIERS: dict[str, Fraction] = {
    "hundred": Fraction(100), **{word: Fraction(value) for word, value in POWERS.items()}, "dozen": Fraction(12),
    "万": Fraction(10**4), "亿": Fraction(10**8), "百万": Fraction(10**6), "千": Fraction(1000), "百": Fraction(100),
    "half": Fraction(1, 2), "halves": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4),
    "fourth": Fraction(1, 4), "fifth": Fraction(1, 5), "sixth": Fraction(1, 6), "seventh": Fraction(1, 7),
    "eighth": Fraction(1, 8), "ninth": Fraction(1, 9), "tenth": Fraction(1, 10), "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000),
}  # fmt: skip
MULTIPLIERS |= {f"{word}s": value for word, value in MULTIPLIERS.items() if word.isascii() and word != "halves"}

_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_CHINESE = re.compile("[零〇一二两三四五六七八九十百千万]{1,9}")
_CHINESE_FRACTION = re.compile(r"([一二两三四五六七八九十百\d]+)分之([一二两三四五六七八九十百\d]+)")
MEASURE = re.compile(
    r"(?<=[\d零一二两三四五六七八九十百千万])\s*[个只条张本人名位种次块件棵辆间层组对份根支颗枚头匹套段页岁步道题盒](?=$)"
)

# Words that make another answer of the number before them, or no number at all.
PREPOSITIONS = frozenset({"in", "of", "on", "at", "for", "and", "to", "by", "from"})
_PLURALS = {f"{word[:-1]}ies" if word.endswith("y") else f"{word}s" for word in SMALL}
NOT_A_NOUN = tables().not_nouns | frozenset(MULTIPLIERS) | _PLURALS


@lru_cache(maxsize=1 << 12)
def number_of_words(text: str) -> Fraction | None:
    """The number that words alone stand for, in English or Chinese; None for anything else.

    >>> number_of_words("thirty-five"), number_of_words("two thirds"), number_of_words("三十五")
    (Fraction(35, 1), Fraction(2, 3), Fraction(35, 1))
    """
    text = text.strip()
    if not text or len(text) > 80 or (text.isascii() and not text[0].isalpha()):
        return None
    if not text.isascii():
        chinese = _chinese(text.removeprefix("负"))
        return -chinese if chinese is not None and text.startswith("负") else chinese
    words = re.split(r"[\s-]+", text.casefold())
    if len(words) > 3 and words[-3] == "and" and words[-2] in ("a", "one") and MULTIPLIERS.get(words[-1], 1) < 1:
        whole = _integer(words[:-3])
        return None if whole is None else whole + MULTIPLIERS[words[-1]]  # one and a half
    if words[0] in ("a", "an") and len(words) > 1 and words[1] in MULTIPLIERS:
        words[0] = "one"
    if len(words) > 1 and words[-1] in MULTIPLIERS and words[-1] not in POWERS and words[-1] != "hundred":
        count = _integer(words[:-1])
        return None if count is None else count * MULTIPLIERS[words[-1]]
    if words == ["half"]:
        return Fraction(1, 2)
    value = _integer(words)
    return None if value is None else Fraction(value)


def _integer(words: list[str]) -> int | None:
    total = group = 0
    previous = ""
    for word in words:
        if word == "and" and previous in ("hundred", *POWERS):
            continue
        if word in SMALL:
            value = SMALL[word]
            if previous in SMALL and not (SMALL[previous] >= 20 and 0 < value < 10):
                return None
            group += value
        elif word == "hundred" and 0 < group < 100:
            group *= 100
        elif word in POWERS and 0 < group < 1000:
            total, group = total + group * POWERS[word], 0
        else:
            return None
        previous = word
    return total + group if previous in SMALL or previous in ("hundred", *POWERS) else None


def _chinese(text: str) -> Fraction | None:
    if text == "一半":
        return Fraction(1, 2)
    fraction = _CHINESE_FRACTION.fullmatch(text)
    if fraction:
        bottom, top = (Fraction(part) if part.isdecimal() else _chinese(part) for part in fraction.groups())
        return top / bottom if top is not None and bottom else None
    if _CHINESE.fullmatch(text) is None:
        return None
    head, mark, tail = text.rpartition("万")
    if mark:
        high, low = _chinese(head), _chinese(tail.lstrip("零〇")) if tail else Fraction(0)
        if high is None or low is None or (tail and tail[0] not in "零〇" and "千" not in tail):
            return None
        return high * 10_000 + low
    total, digit, unit = 0, None, 10_000
    for position, character in enumerate(text):
        if character in _DIGITS:
            if digit:
                return None  # 二三: two or three
            digit = _DIGITS[character]
            continue
        if _UNITS[character] >= unit or (digit is None and (character != "十" or position)):
            return None
        unit = _UNITS[character]
        total += (1 if digit is None else digit) * unit
        digit = None
    if digit and unit > 10 and unit < 10_000 and text[-2] not in "零〇":
        return None  # 一百二: short for 120, or for 102?
    return Fraction(total + (digit or 0))


_NUMERALS = re.compile("[零〇一二两三四五六七八九十百千万]+")


def chinese_digits(text: str) -> str:
    """With digits for Chinese numerals.

    >>> chinese_digits("三倍"), chinese_digits("二月十三日")
    ('3倍', '2月13日')
    """

    def digits(match: re.Match[str]) -> str:
        value = _chinese(match[0])
        return match[0] if value is None else str(value)

    return _NUMERALS.sub(digits, text)


_PER_CENT = re.compile(r"\bper cent\b", re.IGNORECASE)
_HALF_A = re.compile(r"^half an? (?=(?P<word>[a-z]{2,}))", re.IGNORECASE)
_MAGNITUDE = re.compile(
    r"(?<![\w.,^/_])(?P<number>\d[\d,]*(?:\.\d+)?)\s*-?(?:\\text\s*\{)?\s*(?P<word>hundred|thousand|million|billion|trillion|"
    r"dozen|百万|万|亿|千(?![米克瓦卡焦帕赫伏安]))(?![A-Za-z])\s*\}?",
    re.IGNORECASE,
)
_PART = re.compile(
    r"(?P<number>\d+)(?:\s+(?P<and>and\s+(?:a|an|one))|\s*-?(?:\\text\s*\{)?)\s*(?P<word>hal(?:f|ves)|(?:third|quarter|fourth|fifth"
    r"|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?)\s*\}?",
    re.IGNORECASE,
)


def magnitudes(text: str) -> str:
    """With the words that multiply the number before them worked in: "5 million dollars", "3 halves", "3 and a half".

    >>> magnitudes("2.5 million dollars"), magnitudes("3 quarters"), magnitudes("2 and a half")
    ('2500000 dollars', '3/4', '5/2')
    """
    text = _HALF_A.sub(_half, _PER_CENT.sub("percent", text))
    if not text.isascii():
        text = MEASURE.sub("", text)
    part = _PART.fullmatch(text)
    if part:
        share = MULTIPLIERS[part["word"].casefold()]
        return str(int(part["number"]) + share if part["and"] else int(part["number"]) * share)
    return _MAGNITUDE.sub(_multiplied, text).strip()


def _half(match: re.Match[str]) -> str:
    word = match["word"].casefold()
    return "0.5 " if word in tables().units or word in POWERS or word == "dozen" else match[0]


def _multiplied(match: re.Match[str]) -> str:
    value = Fraction(match["number"].replace(",", "")) * MULTIPLIERS[match["word"].casefold()]
    following = "" if match.end() == len(match.string) else " "
    return (str(value) if value.denominator == 1 else str(float(value))) + following


def digits_first(text: str) -> str:
    """With digits for the number in words that it begins with: "six apples" as "6 apples"."""
    words = text.split(" ")
    if words[0].casefold().partition("-")[0] not in SMALL or len(words) > 8:
        return text
    for count in range(len(words) - 1, 0, -1):
        value = number_of_words(" ".join(words[:count]))
        if value is not None:
            return " ".join([str(value), *words[count:]])
    return text


def is_noun(words: str, one: bool) -> bool:
    """Whether words behind a number only say what is counted: "5 apples", "1 apple", "7 apples in total"."""
    words = re.sub(r"(?:^|\s+)(?:in total|in all|altogether|left)$", "", words.casefold())
    if not words:
        return True
    parts = re.split(r"[\s-]+", words)
    if not parts or any(part in NOT_A_NOUN or part in SMALL for part in parts):
        return False
    return (
        one or parts[-1] in tables().plurals or (parts[-1].endswith("s") and not parts[-1].endswith(("ss", "us", "is")))
    )


_ANY_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def qualifiers(text: str) -> set[str]:
    r"""The words of an answer that make another one of the value beside them.

    >>> sorted(qualifiers(r"not \text{AB} = 5 or more"))
    ['more', 'not']
    """
    return {word for word in map(str.casefold, _ANY_WORD.findall(text)) if word in tables().qualifiers}
