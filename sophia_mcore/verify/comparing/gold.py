"""A gold answer ready for comparison: cleaned, with its type, given by the data set or inferred from its form."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sophia_mcore.verify.comparing import choices, structures
from sophia_mcore.verify.comparing.algebra import evaluate
from sophia_mcore.verify.comparing.compare import is_words, related
from sophia_mcore.verify.comparing.inequalities import bound
from sophia_mcore.verify.comparing.labels import SHORT_WORDS
from sophia_mcore.verify.rules import NUMBER_TYPES, Rule, known_type
from sophia_mcore.verify.text import dates
from sophia_mcore.verify.text.normalize import TEXT_COMMAND, clean, plain_text
from sophia_mcore.verify.text.numbers import parse_number
from sophia_mcore.verify.text.quantities import parse_quantity
from sophia_mcore.verify.text.sentences import all_reals, stated
from sophia_mcore.verify.text.several import alternatives, labelled_parts, numbered_parts, python_list


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
    if known in ("date", "time") and (dates.parse_date if known == "date" else dates.parse_time)(flat(text)) is None:
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
    if len(text) > 5 and dates.parse_date(flat(text)) is not None:
        return "date"
    if dates.has_meridiem(flat(text)) and dates.parse_time(flat(text)) is not None:
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


def flat(text: str) -> str:
    """Without text commands and double spaces."""
    return " ".join(TEXT_COMMAND.sub(r"\1", text).split()) if "\\" in text else text
