"""What can be decided without symbolic algebra, in microseconds: the fast path of every answer type.

``decide`` answers True, False or None; None sends the answer to the killable workers, where the same function runs with
an oracle for the parts that it cannot decide.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from sophia_mcore.verify import choices, dates, structures
from sophia_mcore.verify.algebra import evaluate, immense
from sophia_mcore.verify.compare import Oracle, assignment, compare, is_words, related
from sophia_mcore.verify.normalize import MAX_DEPTH, TEXT_COMMAND, clean, depth, plain_text
from sophia_mcore.verify.numbers import numbers_equal, parse_number
from sophia_mcore.verify.quantities import currencies, parse_quantity
from sophia_mcore.verify.rules import NUMBER_TYPES, Rule, known_type

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
        if related(text):
            return "equation"
        return "expression" if evaluate(text) is not None or "\\" in text or not _PROSE.search(text) else "text"
    if form.kind in ("half", "union") or (form.kind in ("round", "square") and r"\infty" in text):
        return "interval"
    return {"bare": "several", "set": "set", "empty": "set", "matrix": "matrix"}.get(form.kind, "tuple")


_PROSE = re.compile(r"[^\W\d_]{3,}\s+[^\W\d_]{2,}|[\u4e00-\u9fff]")

# What is still to be worked out is no final answer, unless the gold answer leaves it so too.
_UNEVALUATED = re.compile(
    r"\\(?:sum|prod|i{0,3}int|oint|lim|limsup|liminf|det|gcd|lcm|[bp]?mod)(?![a-zA-Z])|\\frac\s*\{\s*d\s*[\^}]|\\frac\s*\{\s*\\partial"
    r"|\\end\s*\{[a-zA-Z]*matrix\}\s*\^\s*\{?\s*[-\dn]"  # a power or the inverse of a matrix
)
_BASE = re.compile(r"\d\s*_\s*(?!\s*(?:10|\{\s*10\s*\})(?!\d))")  # 101_2; a number in base ten is itself
_CHAIN = re.compile(r"(?:\^\s*-?(?:[\d.]+|\\?[A-Za-z]+)\s*){8}")  # powers of powers without braces are no LaTeX


def decide(gold: Gold, prediction: str, oracle: Oracle | None = None) -> bool | None:
    """Whether ``prediction`` (as extracted) answers ``gold``; None where this takes symbolic algebra.

    With an ``oracle`` for pairs of parts the answer is None only when the forms cannot be compared part by part.
    """
    if gold.raw == prediction and prediction:
        return True
    longest = 2 * max(MAX_CHARACTERS, MAX_FACTOR * len(gold.text))  # decorated twice as long as it is: cheap to tell
    if len(prediction) > MAX_RAW_CHARACTERS or (len(prediction) > longest < len(prediction.strip("{} "))):
        return False
    text = clean(prediction)
    money = currencies(gold.raw)
    if money and len(money | currencies(prediction)) == 2:
        return False
    if not text or (len(text) > MAX_CHARACTERS and len(text) > MAX_FACTOR * len(gold.text)):
        return False
    special = SPECIAL_TYPES.get(gold.type)
    if special is not None:
        return special(gold, text, oracle)
    if gold.text == text or _dense(gold.text) == _dense(text):
        return True
    number, gold_number = parse_number(text), parse_number(gold.text)
    if number is not None and gold_number is not None:
        return numbers_equal(gold_number, number, gold.rule)
    if depth(text) > MAX_DEPTH and depth(gold.text) <= MAX_DEPTH:
        return False
    for hopeless in (_UNEVALUATED, _CHAIN, _BASE):
        if hopeless.search(text) and not hopeless.search(gold.text):
            return False
    if gold_number is not None and (r"\begin" in text or (text.startswith(r"\{") and "|" in text)):
        return False  # a matrix, cases or a described set against a number
    return compare(gold.text, text, gold.rule, gold.type, oracle)


def endless(prediction: str) -> bool:
    """Whether algebra on ``prediction`` would begin by writing down a number of hundreds of millions of digits."""
    if len(prediction) > MAX_CHARACTERS:
        return False
    expression = evaluate(clean(prediction))
    return expression is not None and expression.huge and immense(expression.node)


_LOOSE_SPACE = re.compile(r"(?<!\d) | (?!\d)")


def _dense(text: str) -> str:
    """Without spaces, except between digits."""
    return _LOOSE_SPACE.sub("", text) if " " in text else text


# ---- types with a rule of their own


def _decide_choice(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted_letters = choices.option_letters(gold.text)
    if wanted_letters:
        return choices.option_letters(text) == wanted_letters
    wanted = choices.option_index(gold.text, gold.options)
    if wanted is not None and choices.undecided(text, gold.options):
        return False
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
    name, value = assignment(text)
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
