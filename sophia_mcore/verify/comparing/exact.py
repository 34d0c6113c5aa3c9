"""What can be decided without symbolic algebra, in microseconds: the fast path of every answer type.

``decide`` answers True, False or None; None sends the answer to the killable workers, where the same function runs with
an oracle for the parts that it cannot decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import permutations

from sophia_mcore.verify.comparing import choices
from sophia_mcore.verify.comparing.algebra import evaluate, immense
from sophia_mcore.verify.comparing.applied import applied_otherwise
from sophia_mcore.verify.comparing.compare import Oracle, compare
from sophia_mcore.verify.comparing.gold import Gold as Gold
from sophia_mcore.verify.comparing.gold import flat
from sophia_mcore.verify.comparing.gold import prepare as prepare
from sophia_mcore.verify.comparing.hopeless import cannot_equal
from sophia_mcore.verify.comparing.labels import case_differs, letters_equal, noun_left_out, ordinals_equal
from sophia_mcore.verify.comparing.lookalikes import is_list_type, lookalikes_equal
from sophia_mcore.verify.comparing.measures import (
    other_angle,
    other_currency,
    other_measure,
    price_of_percent,
    turned_equal,
)
from sophia_mcore.verify.comparing.named import named_value
from sophia_mcore.verify.comparing.ranges import named_ratios_equal, parse_range
from sophia_mcore.verify.comparing.symbols import symbols
from sophia_mcore.verify.rules import Rule
from sophia_mcore.verify.text import dates
from sophia_mcore.verify.text.amounts import number_in_sentence
from sophia_mcore.verify.text.normalize import TEXT_COMMAND, clean, comma_left_out, plain_text
from sophia_mcore.verify.text.numbers import Number, numbers_equal, parse_number
from sophia_mcore.verify.text.quantities import amount, parse_quantity
from sophia_mcore.verify.text.rates import rate_of, year_of
from sophia_mcore.verify.text.sentences import all_reals, core, harmless, said, same_place
from sophia_mcore.verify.text.several import in_order, labelled_parts, numbered_parts, python_list
from sophia_mcore.verify.text.spellings import spelled
from sophia_mcore.verify.text.words import chinese_digits

MAX_RAW_CHARACTERS = 20_000  # a longer prediction is wrong unless it is the gold answer letter by letter
MAX_CHARACTERS = 2_000  # cleaned, an answer longer than this and MAX_FACTOR times the gold answer is wrong
MAX_FACTOR = 10
MAX_NAMED = 16  # alternatives in words of which two are looked for together


_ASKED = ("?", "？")
_CLOCK = re.compile(r"\d{1,2}:\d{2}")
_KILO = re.compile(r"\d+(?:\.\d+)?k")


def decide(gold: Gold, prediction: str, oracle: Oracle | None = None) -> bool | None:
    """Whether ``prediction`` (as extracted) answers ``gold``; None where this takes symbolic algebra.

    With an ``oracle`` for pairs of parts the answer is None only when the forms cannot be compared part by part.
    """
    if gold.raw == prediction and prediction and not gold.any_of:
        return True
    longest = 2 * max(MAX_CHARACTERS, MAX_FACTOR * len(gold.text))  # decorated twice as long as it is: cheap to tell
    if len(prediction) > MAX_RAW_CHARACTERS or (len(prediction) > longest < len(prediction.strip("{} "))):
        return False
    if gold.any_of:
        found = _any([decide(one, prediction, oracle) for one in alternatives_for(gold.any_of, prediction)])
        return found if found is not False else _two_named(gold.any_of, prediction)
    if gold.all_of:
        return _decide_parts(gold, prediction, oracle)
    if prediction.rstrip(" .*$")[-1:] in _ASKED and gold.raw.rstrip(" .*$")[-1:] not in _ASKED:
        return False
    rated = _without_rates(gold, prediction)
    if rated is not None:
        return decide(*rated, oracle)
    text = all_reals(clean(prediction if "," in gold.raw else comma_left_out(prediction)))
    text = year_of(text) if gold.type == "integer" else text
    paid, wanted = amount(prediction), amount(gold.raw)
    if paid is not None and wanted is not None and not paid.same_currency(wanted):
        return numbers_equal(wanted.in_cents, paid.in_cents, gold.rule) if wanted.dollars and paid.dollars else False
    if paid is not None and wanted is not None:
        return numbers_equal(wanted.number, paid.number, gold.rule)
    if not text or (len(text) > MAX_CHARACTERS and len(text) > MAX_FACTOR * len(gold.text)):
        return False
    written = gold.raw, gold.text, prediction, text
    turned = turned_equal(*written) if "pi" in gold.text + text and gold.type != "choice" else None
    if turned is not None:
        return turned
    if other_currency(gold.raw, prediction) or other_measure(*written) or price_of_percent(*written):
        return False
    if gold.type == "choice":
        return _decide_choice(gold, text, prediction, oracle)
    text = _named_as(gold, text)
    if gold.type in ("text", "expression") and case_differs(gold.text, text):
        return False
    ranked = ordinals_equal(gold.text, text)
    if ranked is not None:
        return ranked
    special = SPECIAL_TYPES.get(gold.type)
    if special is not None:
        return special(gold, text, oracle)
    if _CLOCK.fullmatch(gold.text) and (dates.has_meridiem(flat(text)) or dates.spoken_time(flat(text))):
        return dates.parse_time(flat(gold.text)) == (dates.parse_time(flat(text)) or dates.spoken_time(flat(text)))
    if gold.text != text:
        shares = named_ratios_equal(gold.text, text)
        if shares is not None:
            return shares
        listed = gold.given and is_list_type(gold.type)
        found = lookalikes_equal(gold.text, text, gold.raw, prediction, listed)
        if found is not None:
            return found
    if gold.text == text or _dense(gold.text) == _dense(text) or noun_left_out(gold.text, text):
        return True
    if not gold.text.isascii() and chinese_digits(gold.text) == chinese_digits(text):
        return True
    text = said(text) if "=" in gold.text else _HALF_A_NAME.sub("", said(text))
    number, gold_number = _numbers(gold, text)
    if number is not None and gold_number is not None:
        return numbers_equal(gold_number, number, gold.rule)
    if number is not None and gold.type == "expression" and gold.given and parse_quantity(named_value(gold.text)[1]):
        return False  # "2mg" is a formula, and no milligrams
    if applied_otherwise(gold.text, text, gold.raw, prediction):
        return False
    if cannot_equal(gold.text, text, number is not None, gold_number is not None):
        return False
    return compare(symbols(gold.text), symbols(text), gold.rule, gold.type if gold.given else "", oracle)


def _numbers(gold: Gold, text: str) -> tuple[Number | None, Number | None]:
    """The number of an answer and that of the gold answer, each None where it has none."""
    number, wanted = parse_number(text), parse_number(gold.text)
    if number is None and wanted is not None and text[:1].isalpha() and " " in text:
        number = parse_number(clean(number_in_sentence(text, frozenset())))
    if number is None and wanted is not None and _KILO.fullmatch(text):
        number = parse_number(f"{text[:-1]}e3")
    elif number is not None and wanted is None and _KILO.fullmatch(gold.text):
        wanted = parse_number(f"{gold.text[:-1]}e3")
    return number, wanted


def _without_rates(gold: Gold, prediction: str) -> tuple[Gold, str] | None:
    """Both answers without what they are per, where that is the same; None where nothing is to be taken off.

    Money for a plain number or amount of money, or for options of such, is per whatever the question says. "30 per
    hour" is not 30, nor is "$5" the gold answer "$5 per hour".
    """
    (wanted, own), (found, per) = rate_of(gold.raw), rate_of(prediction)
    if not (own or per):
        return None
    if own:
        same = own.removesuffix("s") == per.removesuffix("s")
        return (prepare(wanted, "", (), gold.rule), found) if same and not gold.options else None
    money = amount(found) is not None
    plain = all(_is_amount(one) and not rate_of(one)[1] for one in gold.options or (gold.raw,))
    return (gold, found) if money and plain else None


def _is_amount(text: str) -> bool:
    return amount(text) is not None or parse_number(clean(text)) is not None


def endless(prediction: str) -> bool:
    """Whether algebra on ``prediction`` would begin by writing down a number of hundreds of millions of digits."""
    if len(prediction) > MAX_CHARACTERS:
        return False
    expression = evaluate(clean(prediction))
    return expression is not None and expression.huge and immense(expression.node)


_CONSTANT = re.compile(r"\+\s*(?:[CcKk](?:_\{?\d\}?)?|\\text\s*\{\s*(?:[Cc]|[Cc]onst(?:ant|\.)?)\s*\})$")


def _constant_named(gold: str, text: str) -> str:
    """A constant of integration at the end, called C as in the gold answer."""
    match = _CONSTANT.search(text) if _CONSTANT.search(gold) else None
    letter = match[0].lstrip("+ ")[:1] if match else ""
    free = match is not None and (letter == "\\" or letter not in re.sub(r"\\[a-z]+", "", text[: match.start()]))
    return f"{text[: match.start()]}+ C" if match is not None and free else text


_READ_OFF = re.compile(r"(?P<name>[^\W\d_][\w'’ -]{1,60}?)\s+\((?P<read>[^()]{1,20})\)")
_FUNCTION = re.compile(r"[fgh](?:\s*\^\s*(?:\{\s*-1\s*\}|-1))?\s*\(\s*x\s*\)\s*=\s*(?=[^=]+$)")


def _named_as(gold: Gold, text: str) -> str:
    """An answer with the gold answer's names for a function and a constant, and without what was read off for it."""
    if gold.type == "text" or (gold.type == "expression" and " " in gold.text):
        text = _without_reading(gold.text, text)
    elif gold.text.startswith("y"):
        text = _named_y(gold.text, text)
    return _constant_named(gold.text, text) if gold.text.endswith("C") else text


def _without_reading(gold: str, text: str) -> str:
    """A name without the amount in brackets that was read off for it: "September (22 mm)"."""
    found = _READ_OFF.fullmatch(text) if text.endswith(")") and "(" not in gold else None
    if found is None:
        return text
    read = found["read"].strip()
    return found["name"] if parse_number(read) is not None or parse_quantity(read) is not None else text


def _named_y(gold: str, text: str) -> str:
    """A function of x as the gold answer's "y = ...": "f(x) = 2x", "f^{-1}(x) = 2x"."""
    found = _FUNCTION.match(text) if re.match(r"y\s*=", gold) and "y" not in text else None
    return f"y = {text[found.end() :]}" if found is not None else text


_HALF_A_NAME = re.compile(r"^[^()=]{1,20}\)\s*=\s*(?=[^=()]+$)")  # "P(A and B) = 0.36", cut at "and"
_LOOSE_SPACE = re.compile(r"(?<!\d) | (?!\d)")


def _dense(text: str) -> str:
    """Without spaces, except between digits."""
    return _LOOSE_SPACE.sub("", text) if " " in text else text


# ---- types with a rule of their own


def _any(results: list[bool | None]) -> bool | None:
    return True if True in results else None if None in results else False


def _two_named(golds: tuple[Gold, ...], prediction: str) -> bool:
    """Whether an answer is two of the alternatives in words: "Lyon, France", "Lyon in France", "car (automobile)"."""
    if len(prediction) > MAX_CHARACTERS or "?" in prediction:
        return False
    named = [one.text for one in golds if one.type == "text"]
    text = core(plain_text(clean(prediction)))
    return any(
        text == f"{plain_text(first)}{between}{plain_text(second)}"
        for first, second in permutations(named[:MAX_NAMED], 2)
        for between in (", ", " (", " in ")
        if between != " in " or (first[:1].isupper() and second[:1].isupper())
    )


def alternatives_for(golds: tuple[Gold, ...], prediction: str) -> tuple[Gold, ...]:
    """Where the prediction has a unit, the alternatives that have one, if any do: "8.5 km" is not "8.5 m" or "8.5"."""
    found = parse_quantity(clean(prediction))
    measured = tuple(gold for gold in golds if (parse_quantity(gold.text) is not None))
    return measured if found is not None and found.known and measured else golds


_SPACING = re.compile(r"\\(?:q?quad(?![a-z])|[,;:! ])|[$~]")


def _in_words(answer: str) -> str:
    """Named parts without text commands and spacing: "\\text{Domain: } (-1, 4]"."""
    return " ".join(_SPACING.sub(" ", TEXT_COMMAND.sub(r" \1 ", answer)).split()) if "\\" in answer else answer


def _decide_parts(gold: Gold, prediction: str, oracle: Oracle | None) -> bool | None:
    wanted = labelled_parts(gold.raw)
    named = labelled_parts(_in_words(prediction)) if wanted else ()
    if wanted and [label for label, _ in named] != [label for label, _ in wanted]:
        return False
    found = tuple(part for _, part in named) if wanted else numbered_parts(prediction)
    found = found or in_order(clean(prediction), len(gold.all_of))
    if len(found) != len(gold.all_of):
        return False
    results = [decide(part, text, oracle) for part, text in zip(gold.all_of, found, strict=True)]
    return False if False in results else None if None in results else True


_PRIMED_LETTER = re.compile(r"[A-Z]\s*(?:['′’]+|\^\s*\{?\s*(?:\\prime\s*)+\}?)")


def _decide_choice(gold: Gold, text: str, raw: str, oracle: Oracle | None) -> bool | None:
    wanted = choices.gold_options(gold.raw, gold.options) if gold.options else frozenset()
    wanted_letters = choices.option_letters(gold.text)
    if wanted_letters and not wanted:
        return choices.option_letters(text) == wanted_letters
    if not gold.options:
        letter = choices.option_index(gold.text, ())
        wanted = frozenset() if letter is None else frozenset({letter})
    if _PRIMED_LETTER.fullmatch(text):
        return False
    if wanted and choices.undecided(text, gold.options):
        return False
    named = choices.option_index(text, gold.options)
    if not wanted:
        return plain_text(gold.text) == plain_text(text)
    if named is not None:
        return named in wanted
    if not gold.options:
        return False
    equal = [_option_equal(option, text, raw, gold.rule, oracle) for option in gold.options]
    right = [equal[index] for index in wanted]
    if True in right and all(index in wanted for index, same in enumerate(equal) if same is True):
        return True
    if None in equal and set(right) != {False}:
        return None
    if gold.rule.similar_option and True not in equal:
        return choices.option_index(text, gold.options, similar=True) in wanted
    return False


def _option_equal(option: str, text: str, raw: str, rule: Rule, oracle: Oracle | None) -> bool | None:
    if not option.strip() or other_angle(option, text):
        return False
    cleaned = clean(option)
    if price_of_percent(option, cleaned, text, text):
        return False
    price, paid = amount(option), amount(text)
    if price is not None and paid is not None and not price.same_currency(paid):
        return price.dollars and paid.dollars and numbers_equal(price.in_cents, paid.in_cents, rule)
    turned = turned_equal(option, cleaned, raw, text)
    return compare(symbols(cleaned), symbols(text), rule, "", oracle) if turned is None else turned


def _decide_yes_no(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted = choices.yes_no(gold.text, letters=True)
    letters = plain_text(gold.text) not in ("yes", "no")  # NO may be an abbreviation
    return plain_text(gold.text) == plain_text(text) if wanted is None else choices.yes_no(text, letters) == wanted


_FIGURE_IS = re.compile(r"^(?:(?:[Qq]uadrilateral|[Tt]riangle|\\triangle|[Ff]igure)\s+)?[A-Z]{3,6} is (?=an? )")


def _decide_text(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    text = _FIGURE_IS.sub("it is ", text)
    wanted, found = (plain_text(one.replace("\\triangle", "triangle ")).replace("-", " ") for one in (gold.text, text))
    name, value = named_value(text)
    whole = f"the {found}" if text[:4].casefold() == "the " else found
    if (
        found == wanted
        or (not wanted.isascii() and chinese_digits(found) == chinese_digits(wanted))
        or spelled(core(found)) == spelled(wanted)
        or _same_hour(wanted, found)
        or core(found) in (f"{wanted} triangle", f"{wanted} angle")
        or (core(found) == core(wanted) and same_place(found, wanted))
        or core(whole) == wanted
        or (name and plain_text(value) == wanted)
        or noun_left_out(gold.text, text)
    ):
        return True
    listed = letters_equal(gold.text, text)
    if listed is not None or not (gold.rule.contained and same_place(found, wanted)):
        return bool(listed)
    return harmless(core(whole), core(wanted))


def _same_hour(wanted: str, found: str) -> bool:
    """Whether one is a time of day in words and the other the same time."""
    spoken = dates.spoken_time(wanted), dates.spoken_time(found)
    times = [one or dates.parse_time(text) for one, text in zip(spoken, (wanted, found), strict=True)]
    return spoken != (None, None) and times[0] == times[1]


def _decide_date(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted = dates.parse_date(flat(gold.text))
    return plain_text(gold.text) == plain_text(text) if wanted is None else dates.parse_date(flat(text)) == wanted


def _decide_time(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted, found = dates.parse_time(flat(gold.text)), dates.parse_time(flat(text))
    if found is None and " in the " in text:  # "half past three in the afternoon"
        found = dates.spoken_time(flat(text))
    return plain_text(gold.text) == plain_text(text) if wanted is None else found == wanted


def _decide_list(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted, found = python_list(gold.text), python_list(text)
    between = parse_range(text)
    if wanted is not None and between is not None:
        found = (between.low.value, between.high.value)
    elif wanted is not None and found is None:
        found = python_list(f"[{text}]")
    if wanted is None or found is None:
        return compare(gold.text, text, gold.rule, "list", oracle)
    return _items_equal(wanted, found, gold.rule)


def _items_equal(gold: object, found: object, rule: Rule) -> bool:
    if isinstance(gold, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(gold) == len(found) and all(_items_equal(a, b, rule) for a, b in zip(gold, found, strict=True))
    a, b = parse_number(str(gold)), parse_number(str(found))
    if a is not None and b is not None:
        return numbers_equal(a, b, rule)
    return plain_text(str(gold)) == plain_text(str(found))


SPECIAL_TYPES: dict[str, Callable[[Gold, str, Oracle | None], bool | None]] = {
    "yes_no": _decide_yes_no,
    "text": _decide_text,
    "date": _decide_date,
    "time": _decide_time,
    "list": _decide_list,
}
