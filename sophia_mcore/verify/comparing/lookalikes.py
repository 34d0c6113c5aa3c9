r"""Answers that look like another and are not: rows, spaced commas, primes, bases, open ends, segments."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from sophia_mcore.verify.comparing.labels import is_formula
from sophia_mcore.verify.comparing.named import named_value
from sophia_mcore.verify.text.normalize import TEXT_COMMAND
from sophia_mcore.verify.text.numbers import parse_number
from sophia_mcore.verify.text.quantities import parse_quantity

_PLAIN = r"\d+(?:\.\d+)?"
_IN_A_ROW = re.compile(rf"{_PLAIN}(?:\s*([-:/])\s*{_PLAIN})(?:\s*\1\s*{_PLAIN})+")
_SIZES = re.compile(rf"{_PLAIN}(?:\s*(?:\\times|x)\s*{_PLAIN})+")
_SPACED_COMMA = re.compile(r"\d{1,3}(?:,\s+\d{3})+")
_PRIME = re.compile(
    r"^[^'\"]*\d\s*(?:(''|\"|″|’’|”|\^\s*\{?\s*\\prime\s*\\prime\s*\}?)|('|′|’|\^\s*\{?\s*\\prime\s*\}?))$"
)
_BASE = re.compile(r"\(?\s*(?P<digits>[\dA-F]+)\s*\)?\s*_\s*\{?\s*(?P<base>\d{1,2})\s*\}?")
_OPEN_END = re.compile(r"(?:^|[^.\d])\d+\s*(?:\\ldots|\.{2,})$")
_PRIMED = re.compile(
    r"(?<![A-Za-z]{2})([A-Za-z)])\s*(?:('{1,4})(?!\s*[sS]\b)|\^\s*\{?\s*((?:\\prime\s*){1,4})\}?)|\^\s*\{\s*(\\prime\s*)+\}"
)
_POINT = re.compile(r"[A-Z](?:'{1,3}|\^\s*\{?\s*(?:\\prime\s*)+\}?)?\s*\(.*\)")
_COMMAND = re.compile(r"\\(?!angle)[A-Za-z]+")
_SEGMENT = re.compile(r"(?:\\angle\s*[A-Z]{1,3}|(?<![A-Za-z])[A-Z]{2,3})(?![A-Za-z])")
_LISTS = frozenset({"several", "set", "tuple", "list"})


def lookalikes_equal(gold: str, text: str, raw_gold: str, raw_text: str, listed: bool) -> bool | None:
    r"""Whether two cleaned answers of which one is easily mistaken are equal; None if neither is of these kinds.

    ``raw_gold`` and ``raw_text`` are the answers as extracted, ``listed`` says that the data set calls it a list.

    >>> lookalikes_equal("6-8-10", "-12", "6-8-10", "-12", False)
    False
    >>> lookalikes_equal("3:4:5", "6:8:10", "3:4:5", "6:8:10", False)
    True
    """
    if _programs_differ(gold, text) or _names_in_a_row_differ(gold, text):
        return False
    for rule in (_rows_equal, _bases_equal, _literals_equal, _readings_equal, _codes_equal, _sizes_equal):
        found = rule(named_value(gold)[1], named_value(text)[1])
        if found is not None:
            return found
    if _letter_primes_differ(gold, text) or _segments_differ(gold, text):
        return False
    if not listed and _commas_differ(gold, text):
        return False
    if (_OPEN_END.search(text) is None) != (_OPEN_END.search(gold) is None):
        return False
    return _primes_equal(raw_gold.strip("$ ."), raw_text.strip("$ ."))


def is_list_type(answer_type: str) -> bool:
    """Whether answers of this type have parts between commas."""
    return answer_type in _LISTS


def _rows_equal(gold: str, text: str) -> bool | None:
    """Three and more plain numbers in a row, "6-8-10", "3:4:5", "3/4/5": the same in a row; ratios may be expanded."""
    a, b = _IN_A_ROW.fullmatch(gold), _IN_A_ROW.fullmatch(text)
    if a is None and b is None:
        return None
    if a is None or b is None or a[1] != b[1]:
        return False
    first, second = ([Fraction(part) for part in re.findall(_PLAIN, row)] for row in (gold, text))
    if first == second or a[1] != ":" or len(first) != len(second):
        return first == second
    return all(x * second[0] == y * first[0] for x, y in zip(first, second, strict=True)) and bool(first[0])


def _sizes_equal(gold: str, text: str) -> bool | None:
    r"""A size such as "3 \times 4" equals the same numbers in the same order; None if the gold answer is not a size."""
    if _SIZES.fullmatch(gold) is None:
        return None
    return _SIZES.fullmatch(text) is not None and re.findall(_PLAIN, gold) == re.findall(_PLAIN, text)


def _letter_primes_differ(gold: str, text: str) -> bool:
    """Whether letters are primed differently: f'(x) is not f(x). A name that only one has is left out."""
    if "'" not in gold + text and r"\prime" not in gold + text:
        return False
    if ("=" in gold) != ("=" in text):
        gold, text = named_value(gold)[1], named_value(text)[1]
    if (_POINT.fullmatch(gold) and text.startswith("(")) or (_POINT.fullmatch(text) and gold.startswith("(")):
        return False
    return _letter_primes(gold) != _letter_primes(text)


def _letter_primes(text: str) -> set[tuple[str, int]]:
    return {
        (match[1] or "", len(match[2] or "") + (match[3] or match[4] or "").count("prime"))
        for match in _PRIMED.finditer(text)
    }


def _segments_differ(gold: str, text: str) -> bool:
    r"""Whether answers made of segments and angles alone name different ones: AB \cdot CD is not AC \cdot BD.

    A segment or an angle may be read backwards.
    """
    if ("=" in gold) != ("=" in text):
        gold, text = named_value(gold)[1], named_value(text)[1]
    first, second = _segments(gold), _segments(text)
    if not first or not second or (max(len(first), len(second)) < 2 and r"\angle" not in gold + text):
        return False
    return first != second


def _segments(text: str) -> set[str]:
    """The segments and angles in an answer that has no other letters, each in the order that comes first."""
    plain = _COMMAND.sub(" ", text)
    if re.search("[A-Za-z]", _SEGMENT.sub(" ", plain)) or r"\triangle" in text:
        return set()
    found = ("".join(re.findall("[A-Z]", name.replace(r"\angle", ""))) for name in _SEGMENT.findall(plain))
    return {min(name, name[::-1]) for name in found}


def _commas_differ(gold: str, text: str) -> bool:
    """Whether one is a number and the other a list of numbers that only spaces tell from it: "3,400" and "3, 400"."""
    return any(
        _SPACED_COMMA.fullmatch(listed) is not None and parse_number(number) is not None
        for listed, number in ((gold, text), (text, gold))
    )


def _bases_equal(gold: str, text: str) -> bool | None:
    """A number in another base than ten equals only the same digits in the same base."""
    a, b = (
        match if match and all(int(digit, 16) < int(match["base"]) for digit in match["digits"]) else None
        for match in (_BASE.fullmatch(gold), _BASE.fullmatch(text))
    )  # in 2F_2 the F is a letter
    if a is None and b is None:
        return None
    if all(match is None or match["base"] == "10" for match in (a, b)):
        return None
    return a is not None and b is not None and a.groups() == b.groups()


_LITERAL = re.compile(r"0(?:x[0-9a-f]+|b[01]+|o[0-7]+)", re.IGNORECASE)
_READING = re.compile(r"(\d{2,3})\s*/\s*(\d{2,3})\s*(mm\s?Hg)?")


def _literals_equal(gold: str, text: str) -> bool | None:
    """A number as programs write it, 0x1F or 0b101, equals only the same digits; None if neither is one."""
    if _LITERAL.fullmatch(gold) is None and _LITERAL.fullmatch(text) is None:
        return None
    return gold.casefold() == text.casefold()


_CODE = re.compile(r"\d+(?:\.\d+){2,}|[A-Z]{2,}[- ]?\d{2,}[A-Z]?|(?=(?:\d*[A-Z]){2})(?=(?:[A-Z]*\d){2})[A-Z\d]{5,12}")


_LARGE_COUNT = re.compile(r"\d{3}")


def _codes_equal(gold: str, text: str) -> bool | None:
    """A serial number, version or address, "AB-1234" or "192.168.0.1", equals only itself; None if neither is one."""
    if _CODE.fullmatch(gold) is None and _CODE.fullmatch(text) is None:
        return None
    if any(is_formula(one) and not _LARGE_COUNT.search(one) for one in (gold, text)):
        return None  # C6H12O6
    return "".join(gold.split()) == "".join(text.split())


def _readings_equal(gold: str, text: str) -> bool | None:
    """A blood pressure, "120/80 mmHg", is two readings and no fraction; None if neither answer is one."""
    a, b = (_READING.fullmatch(TEXT_COMMAND.sub(r" \1", one).strip()) for one in (gold, text))
    if not any(match is not None and match[3] for match in (a, b)):
        return None
    return a is not None and b is not None and a.group(1, 2) == b.group(1, 2)


_OPERATOR = re.compile(r"(?<![=\\&^{_*])\s?[-+*/%]=(?!=)|<<|>>|(?<=[A-Za-z])\s*&\s*[(~A-Za-z]")


def _programs_differ(gold: str, text: str) -> bool:
    """Whether answers with an operator of programs, "x += 1", "x << 2", "a & b", are not the same line."""
    if not any(_OPERATOR.search(one) and r"\begin" not in one for one in (gold, text)):
        return False
    return "".join(gold.split()) != "".join(text.split())


_STRAND = re.compile(r"[35]\s*'\s*-?\s*[ACGTU]+\s*-?\s*[35]\s*'")
_SQUARE = r"[A-Za-z]{0,2}[A-Za-z]\d[+#]?"
_MOVES = re.compile(rf"{_SQUARE}(?:\s+{_SQUARE})+")
_CHAIN = re.compile(r"[A-Z]{1,4}(?:\s*-\s*[A-Z]{1,4}){2,}")
_RUN = re.compile(r"(?<![A-Za-z\\])[A-Z]{3,}(?![A-Za-z])")


def _names_in_a_row_differ(gold: str, text: str) -> bool:
    """Whether strands ("5'-ATG-3'"), moves ("e4 e5"), chains ("I-IV-V") or names of three and more capitals differ."""
    for kind in (_STRAND, _CHAIN, _MOVES):
        if kind.fullmatch(gold) and kind.fullmatch(text):
            return "".join(gold.split()) != "".join(text.split())
    first, second = (Counter(min(name, name[::-1]) for name in _RUN.findall(one)) for one in (gold, text))
    return bool(first and second) and first != second


def _primes_equal(gold: str, text: str) -> bool | None:
    """False where prime marks behind numbers differ; a single one may be feet, a double one inches."""
    a, b = _PRIME.match(gold), _PRIME.match(text)
    if a is None and b is None:
        return None
    if a is not None and b is not None:
        return None if bool(a[1]) == bool(b[1]) else False
    match, other = (a, text) if a is not None else (b, gold)
    assert match is not None
    measured = parse_quantity(other)
    unit = "inch" if match[1] else "foot"
    if measured is None or measured.unit != unit:
        return False
    number = parse_number(re.sub(r"[^\d.]", "", match[0]))
    wanted = parse_number(measured.number)
    return number is not None and wanted is not None and number.value == wanted.value
