"""Equality of mathematical answers: by form, then part by part, each part by value. True, False, or None: not told."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from sophia_mcore.verify.comparing import structures
from sophia_mcore.verify.comparing.algebra import Expression, equal, evaluate
from sophia_mcore.verify.comparing.inequalities import (
    bound,
    chains_equal,
    congruences_equal,
    inequalities_equal,
    relations_equal,
)
from sophia_mcore.verify.comparing.labels import letters_equal, names_equal, statements_equal
from sophia_mcore.verify.comparing.named import named_value, names_agree
from sophia_mcore.verify.comparing.ranges import ranges_equal, ratios_equal, spans_equal
from sophia_mcore.verify.comparing.symbols import DERIVED
from sophia_mcore.verify.comparing.vectors import as_point
from sophia_mcore.verify.rules import Rule
from sophia_mcore.verify.text.normalize import plain_text
from sophia_mcore.verify.text.numbers import Number, numbers_equal, parse_number, values_equal
from sophia_mcore.verify.text.quantities import COMPOUND, Quantity, parse_quantity
from sophia_mcore.verify.text.spellings import (
    bearings_equal,
    configurations_equal,
    contained_equal,
    exchanged,
    reactions_equal,
)

Oracle = Callable[[str, str, Rule], bool]


def compare(gold: str, text: str, rule: Rule, answer_type: str = "", oracle: Oracle | None = None) -> bool | None:
    """Equality of two cleaned mathematical answers, by form and then part by part."""

    def parts_equal(a: str, b: str) -> bool | None:
        result = atoms_equal(a, b, rule)
        return oracle(a, b, rule) if result is None and oracle is not None else result

    family, other = without_parameter(gold), without_parameter(text)
    if (family, other) != (gold, text):
        return compare(family, other, rule, answer_type, oracle)
    for special in (
        _bounds_equal(gold, text, rule),
        spans_equal(gold, text),
        ratios_equal(gold, text, parts_equal),
        ranges_equal(gold, text, rule),
        statements_equal(gold, text),
        letters_equal(gold, text),
        reactions_equal(gold, text),
        bearings_equal(gold, text),
        configurations_equal(gold, text),
        exchanged(gold, text) or contained_equal(gold, text) or None,
        chains_equal(gold, text),
        congruences_equal(gold, text),
    ):
        if special is not None:
            return special
    a, b = structures.parse_structure(gold), structures.parse_structure(text)
    if a is None or b is None:
        return inequalities_equal(gold, text)
    if a.kind == "atom" == b.kind:
        return parts_equal(a.text, b.text)
    if a.kind == "atom" and len({named_value(part.text)[0] for part in b.parts} - {""}) > 1 and not related(gold):
        return False  # "x = 5 or y = 5" is no value
    if (
        a.kind == "atom"
        and b.kind == "bare"
        and len(b.parts) > 1
        and parse_number(gold) is not None
        and not any(named_value(part.text)[0] for part in b.parts)
    ):
        return False  # "5, 5" is not 5
    point = _POINT.fullmatch(text) if b.kind == "atom" and a.kind == "round" else None
    if point:
        return compare(gold, point[1], rule, answer_type, oracle)
    if a.kind == "atom" and b.kind == "round" and (point := _POINT.fullmatch(gold)):
        return compare(point[1], text, rule, answer_type, oracle)
    if a.kind == "round" and b.kind != "round":
        b = as_point(b, len(a.parts))
    elif b.kind == "round" and a.kind != "round":
        a = as_point(a, len(b.parts))
    if a.kind != "atom" and b.kind == "atom" and named_value(text)[0]:
        return compare(gold, named_value(text)[1], rule, answer_type, oracle)
    if a.kind == "atom" and b.kind != "atom" and named_value(gold)[0]:
        return compare(named_value(gold)[1], text, rule, answer_type, oracle)
    found = inequalities_equal(gold, text)
    if found is not None:
        return found
    if (a.kind == "bare" == b.kind and _joined_otherwise(a, b)) or _one_of(a) != _one_of(b):
        return False
    ordered = answer_type in ("tuple", "list") or (a.kind == "bare" and _ranked(a))
    if len(_names(a)) > 1 and not _names(b) and a.kind == "bare":  # "1, 2" for x = 1, y = 2
        ordered = True
        a = _values_by_name(a)
    elif len(_names(b)) > 1 and not _names(a) and b.kind == "bare":  # "y = 2, x = 1" for (1, 2)
        b = _values_by_name(b)
    if a.kind == "bare" == b.kind and len(a.parts) != len(b.parts) and _PM not in a.text + b.text:
        return False  # "2, 3" is not "2, 2, 3"
    return structures.compare(a, b, parts_equal, ordered_pairs=ordered)


_PM = r"\pm"
_CONNECTIVE = re.compile(r"\b(?:and|or)\b|[和且或]")
_SAME_WORD = {"和": "and", "且": "and", "或": "or"}


def _joined_otherwise(a: structures.Structure, b: structures.Structure) -> bool:
    """Whether statements or names are joined by "and" or commas in one list, by "or" in the other; values may be."""
    first, second = ({_SAME_WORD.get(word, word) for word in _CONNECTIVE.findall(one.text)} for one in (a, b))
    if first == second or (first or {"and"}) == (second or {"and"}):
        return False
    counted = {one.unit for one in map(parse_quantity, (part.text for part in a.parts)) if one is not None}
    return len(counted) > 1 or not all(_is_value(part) for part in a.parts)


def _one_of(structure: structures.Structure) -> bool:
    """Whether values of different names are joined by "or": "x = 1 or y = 2" is not the point (1, 2)."""
    if structure.kind != "bare" or structures.OR.search(structure.text) is None:
        return False
    conditions = {_RELATION.split(part.text, maxsplit=1)[0].strip() for part in structure.parts if related(part.text)}
    return len(_names(structure)) > 1 or len(conditions) > 1


def _is_value(part: structures.Structure) -> bool:
    if part.kind != "atom" or related(part.text):
        return True
    value = evaluate(part.text)
    return (value is not None and value.is_number) or parse_quantity(part.text) is not None


def _ranked(several: structures.Structure) -> bool:
    """Whether three and more letters are out of order, as those of a ranking are."""
    letters = [part.text for part in several.parts]
    return len(letters) > 2 and letters != sorted(letters) and all(re.fullmatch("[A-Z]", one) for one in letters)


_RUNS = ("abcd", "hk", "ijk", "mn", "pqrs", "uvw", "xyz")  # variables whose order everybody knows
_BARE_NAME = re.compile(r"([a-z])(?:_\{?(\d)\}?)?")


def _values_by_name(structure: structures.Structure) -> structures.Structure:
    """The values of named parts, in the order of their names where that is known: x before y, x_1 before x_2."""
    named = [named_value(part.text) for part in structure.parts]
    names = [_BARE_NAME.fullmatch(name) for name, _ in named]
    keys = [(name[1], name[2] or "") for name in names if name is not None]
    if len(set(keys)) == len(named) and any({letter for letter, _ in keys} <= set(run) for run in _RUNS):
        named = [value for _, value in sorted(zip(keys, named, strict=True))]
    return replace(structure, parts=tuple(structures.atom(value) for _, value in named))


def _names(structure: structures.Structure) -> set[str]:
    """The names of the parts, without indices: x_1 and x_2 are both an x."""
    return {re.sub(r"_.*", "", named_value(part.text)[0]) for part in structure.parts if part.kind == "atom"} - {""}


_PARAMETER = re.compile(
    r"(?P<family>.+?)[,;]?\s*\(?\s*(?:(?:where|with|for)\s+)?(?:any\s+)?(?P<name>[a-z])\s*\\in\s*(?:\\(?:mathbb|mathbf|mathrm)\s*\{?\s*)?Z\s*\}?\s*\)?",
    re.DOTALL,
)


def without_parameter(text: str) -> str:
    r"""A family of values over all integers with its parameter called k, without "k \in Z"; other texts as they are."""
    match = _PARAMETER.fullmatch(text) if "Z" in text and r"\in" in text else None
    if match is None:
        return text
    return re.sub(rf"(?<![A-Za-z\\]){match['name']}(?![A-Za-z])", "k", match["family"].strip())


_POINT = re.compile(r"[A-Z]'?\s*(\(.+\))")  # A(1, 2)


def _bounds_equal(gold: str, text: str, rule: Rule) -> bool | None:
    """A bound without a variable, such as "\\le 5", equals nothing but the same bound; None if neither is one."""
    a, b = bound(gold), bound(text)
    if a is None and b is None:
        return None
    if a is None or b is None:
        return False
    return a[0] == b[0] and (a[1] == b[1] or (bool(a[1] and b[1]) and compare(a[1], b[1], rule) is True))


def atoms_equal(gold: str, text: str, rule: Rule) -> bool | None:
    """Equality of two answers without parts."""
    if gold == text:
        return True
    gold_number, number = parse_number(gold), parse_number(text)
    if gold_number is not None and number is not None:
        return numbers_equal(gold_number, number, rule)
    letters = names_equal(gold, text)
    if letters is not None:
        return letters
    if _LONG_WORD.search(gold) and plain_text(gold) == plain_text(text):
        return True
    gold_infinity, infinity = structures.infinity(gold), structures.infinity(text)
    if gold_infinity is not None and infinity is not None:
        return gold_infinity == infinity
    if gold_infinity is not None or infinity is not None:
        value = evaluate(text if infinity is None else gold)
        return False if value is not None and value.is_number else None
    if related(gold) or related(text):
        for relation in (inequalities_equal(gold, text), _equations_equal(gold, text, rule)):
            if relation is not None:
                return relation
        return _related_equal(gold, text)
    return _values_equal(gold, text, gold_number, number, rule)


def _equations_equal(gold: str, text: str, rule: Rule) -> bool | None:
    """Named values by their values, where the names agree or only one answer has a name."""
    gold_name, gold_value = named_value(gold)
    name, value = named_value(text)
    if not gold_name and not name:
        return None
    if gold_name and name and not names_agree(gold_name, name):
        values = evaluate(gold_value), evaluate(value)
        if gold_value == value or DERIVED in gold_name + name:
            return False
        return False if all(v is not None and v.is_number for v in values) else None
    if (not gold_name and related(gold)) or (not name and related(text)):
        return None
    if len(gold_name) == 1 and gold_name.swapcase() == name:  # M and m are two masses, but r = 5 is R = 5
        values = evaluate(gold_value), evaluate(value)
        if not all(v is not None and v.is_number for v in values):
            return False
    return compare(gold_value, value, rule)


def _related_equal(gold: str, text: str) -> bool | None:
    """Equations and inequalities: never equal to a plain value, else by their sides. Anything else takes solving."""
    if not (related(gold) and related(text)):
        return None if named_value(gold if related(gold) else text)[0] else False
    sides = [re.split(r"\\ne(?![a-zA-Z])", side) for side in (gold, text)]
    if len(sides[0]) == len(sides[1]) == 2 and sides[0][0].strip() == sides[1][0].strip():
        return atoms_equal(sides[0][1].strip(), sides[1][1].strip(), Rule())
    found = relations_equal(gold, text)
    if found is None and any(
        name and parse_number(value) is not None for name, value in map(named_value, (gold, text))
    ):
        return False  # a named number against another equation, such as 1 - P = 1/2
    return found


def _values_equal(gold: str, text: str, a: Number | None, b: Number | None, rule: Rule) -> bool | None:
    wordy = _WORD.search(gold) is not None or _WORD.search(text) is not None
    first, second = (
        (None, None) if wordy else (_expression(gold, a), _expression(text, b))
    )  # a word is no product of letters
    result = None
    if first is not None and second is not None:
        result = _expressions_equal(first, second, a, b, rule)
    x, y = parse_quantity(gold), parse_quantity(text)
    units = x is not None and y is not None and x.known and y.known and x.unit != y.unit
    if result is True and not units:  # mM and Mm are the same product of letters
        return True
    if x is not None or y is not None:  # "3 m" is three metres or three times m
        return _quantities_equal(gold, text, x, y, rule)
    if result is not None:
        return result
    if wordy:
        return False
    if first is None or second is None:
        words, gold_words = plain_text(text), plain_text(gold)
        if is_words(words) and is_words(gold_words):
            return words == gold_words or None
        if (is_words(words) and first is not None and first.is_number) or (
            is_words(gold_words) and second is not None and second.is_number
        ):
            return False
    return None


def _expression(text: str, number: Number | None) -> Expression | None:
    """As the grammar reads it, else as the plain number that it is, such as "2 1/3" or "half"."""
    found = evaluate(text)
    if found is None and number is not None:
        found = evaluate(rf"\frac{{{number.value.numerator}}}{{{number.value.denominator}}}")
    return found


def _expressions_equal(
    first: Expression, second: Expression, a: Number | None, b: Number | None, rule: Rule
) -> bool | None:
    result = equal(first, second)
    if result is True or not (first.is_number and second.is_number):
        return result
    inexact = bool((a and a.places is not None) or (b and b.places is not None))
    exact = first.exact is not None and second.exact is not None and not inexact
    if inexact or (rule.tolerant and not (exact and rule.tolerance is None)) or rule.truncate_integers:
        x, y = _real(first), _real(second)
        if x is not None and y is not None:
            return values_equal(x, y, inexact, (a.places if a else 0) or 0, rule)
    return result


def _real(expression: Expression) -> Fraction | None:
    if expression.exact is not None:
        return expression.exact
    value = expression.values[0]
    return Fraction(value.real) if value is not None and abs(value.imag) <= 1e-12 * abs(value) else None


_ANY_UNIT = re.compile(r"(?:(?:square|cubic|sq\.?) )?unit")


def _quantities_equal(gold: str, text: str, a: Quantity | None, b: Quantity | None, rule: Rule) -> bool | None:
    """Numbers with units. A unit that only one of the two has does not count; conversions are the worker's.

    Other words behind the numbers must be the same ("5 apples"); "units" is any unit. "5 times" is not 5.
    """
    if (a is not None and a.unit == COMPOUND) or (b is not None and b.unit == COMPOUND):
        return None if a is not None and b is not None else False
    if a is None and b is not None and b.unit == "time":
        return False
    if (a is None) != (b is None) and (gold if a is None else text).endswith(("%", "percent")):
        return False
    if a is not None and b is not None and a.unit != b.unit:
        if a.known and b.known:
            return None
        if a.known == b.known or not any(not q.known and _ANY_UNIT.fullmatch(q.unit) for q in (a, b)):
            return False
    return compare(a.number if a else gold, b.number if b else text, rule)


_RELATION = re.compile(r"(?<![\\<>!:])=|[<>]|\\(?:le|ge|ne|lt|gt|approx|equiv|sim)(?![a-zA-Z])")
_BRACED = re.compile(r"\{[^{}]*\}")


def related(text: str) -> bool:
    """Whether there is a relation sign outside all braces: that of \\sum_{n=1} does not make an equation."""
    if _RELATION.search(text) is None:
        return False
    while "{" in text:
        shorter = _BRACED.sub(" ", text)
        if shorter == text:
            break
        text = shorter
    return _RELATION.search(text) is not None


_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'’/-]+[^\W\d_]+)*")
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{4,}|[A-Za-z]{3} \d+$)")  # "row 3"
_WORD = re.compile(r"(?<![\\A-Za-z{])(?=[A-Za-z]{5})[A-Za-z]*[aeiouAEIOU][A-Za-z]*")
_CONSTANTS = frozenset({"pi", "oo", "inf", "infinity", "nan", "none", "sin", "cos", "tan", "log", "ln", "sqrt"})


def is_words(plain: str) -> bool:
    """True for words of which at least one has three letters: they equal nothing but the same words."""
    if _WORDS.fullmatch(plain) is None or plain in _CONSTANTS:
        return False
    return any(len(word) > 2 or not word.isascii() for word in plain.split())
