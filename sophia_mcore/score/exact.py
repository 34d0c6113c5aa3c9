"""What can be decided without symbolic algebra, in microseconds: the fast path of every answer type.

``decide`` answers True, False or None; None sends the answer to the killable workers, where the same function runs with
an oracle for the parts that it cannot decide.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from sophia_mcore.score import choices, dates, structures
from sophia_mcore.score.algebra import Expression, equal, evaluate, proportional
from sophia_mcore.score.inequalities import inequalities_equal
from sophia_mcore.score.normalize import MAX_DEPTH, TEXT_COMMAND, clean, depth, plain_text
from sophia_mcore.score.numbers import Number, numbers_equal, parse_number, values_equal
from sophia_mcore.score.quantities import Quantity, parse_quantity
from sophia_mcore.score.rules import NUMBER_TYPES, Rule, known_type

Oracle = Callable[[str, str, Rule], bool]
MAX_RAW_CHARACTERS = 20_000  # a longer prediction is wrong unless it is the gold answer letter by letter
MAX_CHARACTERS = 2_000  # cleaned, an answer longer than this and MAX_FACTOR times the gold answer is wrong
MAX_FACTOR = 10


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold answer, cleaned, with its type and the precision it is held to."""

    raw: str
    text: str
    type: str
    options: tuple[str, ...]
    rule: Rule


def prepare(answer: str, given_type: str, options: tuple[str, ...], rule: Rule) -> Gold:
    """A gold answer ready for comparison; the type is the given one where it fits the answer, else inferred."""
    text = clean(answer)
    return Gold(answer, text, _type_of(text, known_type(given_type) if given_type else "", options), options, rule)


_ONE_LETTER = re.compile(r"[(\[]?[A-J][)\].]?")


def _type_of(text: str, known: str, options: tuple[str, ...]) -> str:
    if options and (choices.option_index(text, options) is not None or choices.option_letters(text)):
        return "choice"
    inferred = infer(text)
    if known == "choice":
        return "choice" if _ONE_LETTER.fullmatch(text) or choices.option_letters(text) else inferred
    if known in NUMBER_TYPES and inferred not in NUMBER_TYPES:
        return inferred
    if known == "yes_no" and choices.yes_no(text) is None:
        return inferred
    if known in ("date", "time") and (dates.parse_date if known == "date" else dates.parse_time)(_flat(text)) is None:
        return inferred
    return known or inferred


def infer(text: str) -> str:
    """Type of a cleaned gold answer from its form alone."""
    if _ONE_LETTER.fullmatch(text):
        return "choice"
    number = parse_number(text)
    if number is not None:
        return number.kind
    plain = plain_text(text)
    if plain in choices.YES_NO:
        return "yes_no"
    if is_words(plain):
        return "text"
    if len(text) > 5 and dates.parse_date(_flat(text)) is not None:
        return "date"
    if dates.has_meridiem(_flat(text)) and dates.parse_time(_flat(text)) is not None:
        return "time"
    if (text.startswith("[") and ("'" in text or '"' in text)) and _python_list(text) is not None:
        return "list"
    if parse_quantity(text) is not None:
        return "quantity"
    return _infer_form(text)


def _infer_form(text: str) -> str:
    form = structures.parse_structure(text)
    if form is None:
        return "set" if text.startswith(r"\{") else "expression"
    if form.kind == "atom":
        if _related(text):
            return "equation"
        return "expression" if evaluate(text) is not None or "\\" in text or not _PROSE.search(text) else "text"
    if form.kind in ("half", "union") or (form.kind in ("round", "square") and r"\infty" in text):
        return "interval"
    return {"bare": "several", "set": "set", "empty": "set", "matrix": "matrix"}.get(form.kind, "tuple")


_RELATION = re.compile(r"(?<![\\<>!:])=|[<>]|\\(?:le|ge|ne|lt|gt|approx|equiv|sim)(?![a-zA-Z])")
_BRACED = re.compile(r"\{[^{}]*\}")


def _related(text: str) -> bool:
    """Whether there is a relation sign outside all braces: that of \\sum_{n=1} does not make an equation."""
    if _RELATION.search(text) is None:
        return False
    while "{" in text:
        shorter = _BRACED.sub(" ", text)
        if shorter == text:
            break
        text = shorter
    return _RELATION.search(text) is not None


_PROSE = re.compile(r"[^\W\d_]{3,}\s+[^\W\d_]{2,}|[\u4e00-\u9fff]")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'’/-]+[^\W\d_]+)*")
_CONSTANTS = frozenset({"pi", "oo", "inf", "infinity", "nan", "none", "sin", "cos", "tan", "log", "ln", "sqrt"})


def is_words(plain: str) -> bool:
    """True for words of which at least one has three letters: they equal nothing but the same words."""
    if _WORDS.fullmatch(plain) is None or plain in _CONSTANTS:
        return False
    return any(len(word) > 2 or not word.isascii() for word in plain.split())


def decide(gold: Gold, prediction: str, oracle: Oracle | None = None) -> bool | None:
    """Whether ``prediction`` (as extracted) answers ``gold``; None where this takes symbolic algebra.

    With an ``oracle`` for pairs of parts the answer is None only when the forms cannot be compared part by part.
    """
    if gold.raw == prediction and prediction:
        return True
    if len(prediction) > MAX_RAW_CHARACTERS:
        return False
    text = clean(prediction)
    if not text or (len(text) > MAX_CHARACTERS and len(text) > MAX_FACTOR * len(gold.text)):
        return False
    special = SPECIAL_TYPES.get(gold.type)
    if special is not None:
        return special(gold, text, oracle)
    if gold.text == text or _dense(gold.text) == _dense(text):
        return True
    number = parse_number(text)
    if number is not None:
        gold_number = parse_number(gold.text)
        if gold_number is not None:
            return numbers_equal(gold_number, number, gold.rule)
    if depth(text) > MAX_DEPTH and depth(gold.text) <= MAX_DEPTH:
        return False
    return compare(gold.text, text, gold.rule, gold.type, oracle)


_LOOSE_SPACE = re.compile(r"(?<!\d) | (?!\d)")


def _dense(text: str) -> str:
    """Without spaces, except between digits."""
    return _LOOSE_SPACE.sub("", text) if " " in text else text


def compare(gold: str, text: str, rule: Rule, answer_type: str = "", oracle: Oracle | None = None) -> bool | None:
    """Equality of two cleaned mathematical answers, by form and then part by part."""

    def parts_equal(a: str, b: str) -> bool | None:
        result = atoms_equal(a, b, rule)
        return oracle(a, b, rule) if result is None and oracle is not None else result

    a, b = structures.parse_structure(gold), structures.parse_structure(text)
    if a is None or b is None:
        return None
    if a.kind == "atom" == b.kind:
        return parts_equal(a.text, b.text)
    name, value = _assignment(text)
    if name and a.kind != "atom" and b.kind == "atom":
        return compare(gold, value, rule, answer_type, oracle)
    found = inequalities_equal(gold, text)
    if found is not None:
        return found
    return structures.compare(a, b, parts_equal, ordered_pairs=answer_type in ("tuple", "list"))


_ASSIGNMENT = re.compile(
    r"(?P<name>\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?'?(?:\([A-Za-z,\s]{1,8}\))?)\s*(?:=|\\approx(?![a-zA-Z])|\\equiv)\s*"
    r"(?P<value>[^=<>]+)"
)


def _assignment(text: str) -> tuple[str, str]:
    """("x", "5") of "x = 5"; ("", text) if it is no such equation."""
    if "=" not in text and r"\approx" not in text:
        return "", text
    match = _ASSIGNMENT.fullmatch(text)
    if match is None or r"\ne" in text or r"\le" in text or r"\ge" in text:
        return "", text
    return match["name"].replace(" ", ""), match["value"].strip()


def atoms_equal(gold: str, text: str, rule: Rule) -> bool | None:
    """Equality of two answers without parts."""
    if gold == text:
        return True
    gold_number, number = parse_number(gold), parse_number(text)
    if gold_number is not None and number is not None:
        return numbers_equal(gold_number, number, rule)
    gold_infinity, infinity = structures.infinity(gold), structures.infinity(text)
    if gold_infinity is not None and infinity is not None:
        return gold_infinity == infinity
    if gold_infinity is not None or infinity is not None:
        value = evaluate(text if infinity is None else gold)
        return False if value is not None and value.is_number else None
    if _related(gold) or _related(text):
        for relation in (inequalities_equal(gold, text), _equations_equal(gold, text, rule)):
            if relation is not None:
                return relation
        return _relations_equal(gold, text)
    return _values_equal(gold, text, gold_number, number, rule)


def _equations_equal(gold: str, text: str, rule: Rule) -> bool | None:
    gold_name, gold_value = _assignment(gold)
    name, value = _assignment(text)
    if not gold_name and not name:
        return None
    if gold_name and name and gold_name != name:
        values = evaluate(gold_value), evaluate(value)
        return False if all(v is not None and v.is_number for v in values) else None
    if (not gold_name and _related(gold)) or (not name and _related(text)):
        return None
    return compare(gold_value, value, rule)


def _relations_equal(gold: str, text: str) -> bool | None:
    """Equations and inequalities: never equal to a plain value; two equations are equal when their sides' differences
    are proportional. Anything else takes solving."""
    if not (_related(gold) and _related(text)):
        value = evaluate(gold if _related(text) else text)
        return False if value is not None and value.is_number else None
    sides = [re.split(r"\\ne(?![a-zA-Z])", side) for side in (gold, text)]
    if len(sides[0]) == len(sides[1]) == 2 and sides[0][0].strip() == sides[1][0].strip():
        return atoms_equal(sides[0][1].strip(), sides[1][1].strip(), Rule())
    differences = [
        evaluate(f"({side[0]})-({side[1]})") for side in (gold.split("="), text.split("=")) if len(side) == 2
    ]
    if len(differences) == 2 and all(differences) and proportional(*differences):  # type: ignore[arg-type]
        return True
    return None


def _values_equal(gold: str, text: str, a: Number | None, b: Number | None, rule: Rule) -> bool | None:
    first, second = evaluate(gold), evaluate(text)
    result = None
    if first is not None and second is not None:
        result = _expressions_equal(first, second, a, b, rule)
        if result is True:
            return True
    x, y = parse_quantity(gold), parse_quantity(text)
    if x is not None or y is not None:  # "3 m" is three metres or three times m
        return _quantities_equal(gold, text, x, y, rule)
    if result is not None:
        return result
    if first is None or second is None:
        words, gold_words = plain_text(text), plain_text(gold)
        if is_words(words) and is_words(gold_words):
            return words == gold_words or None
        if (is_words(words) and first is not None and first.is_number) or (
            is_words(gold_words) and second is not None and second.is_number
        ):
            return False
    return None


def _expressions_equal(
    first: Expression, second: Expression, a: Number | None, b: Number | None, rule: Rule
) -> bool | None:
    result = equal(first, second)
    if result is True or not (first.is_number and second.is_number):
        return result
    inexact = bool((a and a.places is not None) or (b and b.places is not None))
    if inexact or rule.absolute is not None or rule.relative is not None or rule.truncate_integers:
        x, y = _real(first), _real(second)
        if x is not None and y is not None:
            return values_equal(x, y, inexact, (a.places if a else 0) or 0, rule)
    return result


def _real(expression: Expression) -> Fraction | None:
    if expression.exact is not None:
        return expression.exact
    value = expression.values[0]
    return Fraction(value.real) if value is not None and abs(value.imag) <= 1e-12 * abs(value) else None


def _quantities_equal(gold: str, text: str, a: Quantity | None, b: Quantity | None, rule: Rule) -> bool | None:
    """Numbers with units. A unit that only one of the two has does not count; conversions are the worker's."""
    if a is not None and b is not None and a.unit != b.unit:
        if a.known and b.known:
            return None
        return False if compare(a.number, b.number, rule) is False else None
    return compare(a.number if a else gold, b.number if b else text, rule)


# ---- types with a rule of their own


def _decide_choice(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted_letters = choices.option_letters(gold.text)
    if wanted_letters:
        return choices.option_letters(text) == wanted_letters
    wanted = choices.option_index(gold.text, gold.options)
    named = choices.option_index(text, gold.options)
    if wanted is None:
        return plain_text(gold.text) == plain_text(text)
    if named is not None:
        return named == wanted
    if gold.options:
        equal_options = [
            compare(clean(option), text, gold.rule, "", oracle) if option.strip() else False for option in gold.options
        ]
        if equal_options[wanted] is True and equal_options.count(True) == 1:
            return True
        if None in equal_options and equal_options[wanted] is not False:
            return None
        if gold.rule.similar_option and True not in equal_options:
            return choices.option_index(text, gold.options, similar=True) == wanted
    return False


def _decide_yes_no(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted = choices.yes_no(gold.text)
    return plain_text(gold.text) == plain_text(text) if wanted is None else choices.yes_no(text) == wanted


def _decide_text(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    if plain_text(gold.text) == plain_text(text):
        return True
    name, value = _assignment(text)
    return bool(name) and plain_text(gold.text) == plain_text(value)


def _flat(text: str) -> str:
    return " ".join(TEXT_COMMAND.sub(r"\1", text).split()) if "\\" in text else text


def _decide_date(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted = dates.parse_date(_flat(gold.text))
    return plain_text(gold.text) == plain_text(text) if wanted is None else dates.parse_date(_flat(text)) == wanted


def _decide_time(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted = dates.parse_time(_flat(gold.text))
    return plain_text(gold.text) == plain_text(text) if wanted is None else dates.parse_time(_flat(text)) == wanted


def _decide_list(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted, found = _python_list(gold.text), _python_list(text)
    if wanted is None or found is None:
        return compare(gold.text, text, gold.rule, "list", oracle)
    return _items_equal(wanted, found, gold.rule)


@lru_cache(maxsize=4096)
def _python_list(text: str) -> tuple[object, ...] | None:
    """A Python list or tuple as literal; nothing is executed."""
    if not text.startswith(("[", "(")) or len(text) > MAX_CHARACTERS or depth(text) > MAX_DEPTH:
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return tuple(value) if isinstance(value, (list, tuple)) else None


def _items_equal(gold: object, found: object, rule: Rule) -> bool:
    if isinstance(gold, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(gold) == len(found) and all(_items_equal(a, b, rule) for a, b in zip(gold, found, strict=True))
    a, b = parse_number(str(gold)), parse_number(str(found))
    if a is not None and b is not None:
        return numbers_equal(a, b, rule)
    return plain_text(str(gold)) == plain_text(str(found))


SPECIAL_TYPES: dict[str, Callable[[Gold, str, Oracle | None], bool | None]] = {
    "choice": _decide_choice,
    "yes_no": _decide_yes_no,
    "text": _decide_text,
    "date": _decide_date,
    "time": _decide_time,
    "list": _decide_list,
}
