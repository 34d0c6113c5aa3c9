"""What can be decided without symbolic algebra, in microseconds: the fast path of every answer type.

``decide`` answers True, False or None; None sends the answer to the killable workers, where the same function runs with
an oracle for the parts that it cannot decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sophia_mcore.verify.comparing import choices, structures
from sophia_mcore.verify.comparing.algebra import evaluate, immense
from sophia_mcore.verify.comparing.applied import applied_otherwise
from sophia_mcore.verify.comparing.compare import Oracle, compare, is_words, related
from sophia_mcore.verify.comparing.hopeless import cannot_equal
from sophia_mcore.verify.comparing.inequalities import bound
from sophia_mcore.verify.comparing.labels import SHORT_WORDS, case_differs, letters_equal, noun_left_out, ordinals_equal
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
from sophia_mcore.verify.rules import NUMBER_TYPES, Rule, known_type
from sophia_mcore.verify.text import dates
from sophia_mcore.verify.text.amounts import number_in_sentence
from sophia_mcore.verify.text.normalize import TEXT_COMMAND, clean, comma_left_out, plain_text
from sophia_mcore.verify.text.numbers import numbers_equal, parse_number
from sophia_mcore.verify.text.quantities import amount, parse_quantity
from sophia_mcore.verify.text.sentences import all_reals, core, harmless, said, same_place, stated
from sophia_mcore.verify.text.several import alternatives, in_order, labelled_parts, numbered_parts, python_list
from sophia_mcore.verify.text.spellings import spelled
from sophia_mcore.verify.text.words import chinese_digits

MAX_RAW_CHARACTERS = 20_000  # a longer prediction is wrong unless it is the gold answer letter by letter
MAX_CHARACTERS = 2_000  # cleaned, an answer longer than this and MAX_FACTOR times the gold answer is wrong
MAX_FACTOR = 10


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold answer, cleaned, with its type and the precision of the comparison."""

    raw: str
    text: str
    type: str
    options: tuple[str, ...]
    rule: Rule
    given: bool = False  # whether the data set gave the type, or else it was inferred
    any_of: tuple[Gold, ...] = ()  # alternatives: any of these is right
    all_of: tuple[Gold, ...] = ()  # numbered parts: each of these must be right


def prepare(answer: str, given_type: str, options: tuple[str, ...], rule: Rule) -> Gold:
    """A gold answer ready for comparison; the type is the given one where it fits the answer, else inferred."""
    text = all_reals(stated(clean(answer)))
    kind = known_type(given_type) if given_type else ""
    if (rule.alternatives or "#" in answer) and not options:
        any_of = tuple(prepare(one, given_type, (), rule) for one in alternatives(answer))
        if any_of:
            return Gold(answer, text, any_of[0].type, (), rule, any_of=any_of)
    parts = () if options or kind == "choice" else numbered_parts(answer)
    named = labelled_parts(answer) if " " in answer and not options else ()
    if named:
        return Gold(answer, text, "parts", (), rule, all_of=tuple(prepare(part, "", (), rule) for _, part in named))
    if parts:
        return Gold(answer, text, "parts", (), rule, all_of=tuple(prepare(part, "", (), rule) for part in parts))
    found = _type_of(answer, text, kind, options)
    return Gold(answer, text, found, options, rule, given=found == kind or (kind == "text" and found == "tuple"))


_ONE_LETTER = re.compile(r"[(\[]?[A-J][)\].]?")


def _type_of(answer: str, text: str, known: str, options: tuple[str, ...]) -> str:
    if options and (choices.gold_options(answer, options) or choices.option_letters(text)):
        return "choice"
    if known == "yes_no" and choices.yes_no(text, letters=True) is not None:
        return known
    inferred = infer(text)
    if known == "text" and inferred not in ("choice", "yes_no"):  # the data set says how it is written, not what it is
        return "tuple" if inferred == "several" else inferred
    if known == "parts":
        return inferred
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
    if bound(text) is not None:
        return "expression"
    if is_words(plain) or plain in SHORT_WORDS or plain == "none":
        return "text"
    if len(text) > 5 and dates.parse_date(_flat(text)) is not None:
        return "date"
    if dates.has_meridiem(_flat(text)) and dates.parse_time(_flat(text)) is not None:
        return "time"
    if (text.startswith("[") and ("'" in text or '"' in text)) and python_list(text) is not None:
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
        return _any([decide(one, prediction, oracle) for one in alternatives_for(gold.any_of, prediction)])
    if gold.all_of:
        return _decide_parts(gold, prediction, oracle)
    if prediction.rstrip(" .*$")[-1:] in _ASKED and gold.raw.rstrip(" .*$")[-1:] not in _ASKED:
        return False
    text = all_reals(clean(prediction if "," in gold.raw else comma_left_out(prediction)))
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
    if gold.text.endswith("C"):
        text = _constant_named(gold.text, text)
    if gold.type in ("text", "expression") and case_differs(gold.text, text):
        return False
    ranked = ordinals_equal(gold.text, text)
    if ranked is not None:
        return ranked
    special = SPECIAL_TYPES.get(gold.type)
    if special is not None:
        return special(gold, text, oracle)
    if _CLOCK.fullmatch(gold.text) and (dates.has_meridiem(_flat(text)) or dates.spoken_time(_flat(text))):
        return dates.parse_time(_flat(gold.text)) == (dates.parse_time(_flat(text)) or dates.spoken_time(_flat(text)))
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
    text = said(text)
    number, gold_number = parse_number(text), parse_number(gold.text)
    if number is None and gold_number is not None and text[:1].isalpha() and " " in text:
        number = parse_number(clean(number_in_sentence(text, frozenset())))
    if number is None and gold_number is not None and _KILO.fullmatch(text):
        number = parse_number(f"{text[:-1]}e3")
    elif number is not None and gold_number is None and _KILO.fullmatch(gold.text):
        gold_number = parse_number(f"{gold.text[:-1]}e3")
    if number is not None and gold_number is not None:
        return numbers_equal(gold_number, number, gold.rule)
    if applied_otherwise(gold.text, text, gold.raw, prediction):
        return False
    if cannot_equal(gold.text, text, number is not None, gold_number is not None):
        return False
    return compare(symbols(gold.text), symbols(text), gold.rule, gold.type if gold.given else "", oracle)


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


_LOOSE_SPACE = re.compile(r"(?<!\d) | (?!\d)")


def _dense(text: str) -> str:
    """Without spaces, except between digits."""
    return _LOOSE_SPACE.sub("", text) if " " in text else text


# ---- types with a rule of their own


def _any(results: list[bool | None]) -> bool | None:
    return True if True in results else None if None in results else False


def alternatives_for(golds: tuple[Gold, ...], prediction: str) -> tuple[Gold, ...]:
    """Where the prediction has a unit, the alternatives that have one, if any do: "8.5 km" is not "8.5 m" or "8.5"."""
    found = parse_quantity(clean(prediction))
    measured = tuple(gold for gold in golds if (parse_quantity(gold.text) is not None))
    return measured if found is not None and found.known and measured else golds


def _decide_parts(gold: Gold, prediction: str, oracle: Oracle | None) -> bool | None:
    named, wanted = labelled_parts(prediction), labelled_parts(gold.raw)
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
    if (
        found == wanted
        or (not wanted.isascii() and chinese_digits(found) == chinese_digits(wanted))
        or spelled(core(found)) == spelled(wanted)
        or _same_hour(wanted, found)
        or core(found) in (f"{wanted} triangle", f"{wanted} angle")
        or (core(found) == core(wanted) and same_place(found, wanted))
        or (text[:4].casefold() == "the " and core(f"the {found}") == wanted)
        or (name and plain_text(value) == wanted)
        or noun_left_out(gold.text, text)
    ):
        return True
    listed = letters_equal(gold.text, text)
    return listed if listed is not None else gold.rule.contained and harmless(core(found), core(wanted))


def _same_hour(wanted: str, found: str) -> bool:
    """Whether one is a time of day in words and the other the same time."""
    spoken = dates.spoken_time(wanted), dates.spoken_time(found)
    times = [one or dates.parse_time(text) for one, text in zip(spoken, (wanted, found), strict=True)]
    return spoken != (None, None) and times[0] == times[1]


def _flat(text: str) -> str:
    return " ".join(TEXT_COMMAND.sub(r"\1", text).split()) if "\\" in text else text


def _decide_date(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted = dates.parse_date(_flat(gold.text))
    return plain_text(gold.text) == plain_text(text) if wanted is None else dates.parse_date(_flat(text)) == wanted


def _decide_time(gold: Gold, text: str, oracle: Oracle | None) -> bool | None:
    wanted, found = dates.parse_time(_flat(gold.text)), dates.parse_time(_flat(text))
    if found is None and " in the " in text:  # "half past three in the afternoon"
        found = dates.spoken_time(_flat(text))
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
