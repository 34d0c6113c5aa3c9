"""Options by other names: months cut short, images by their rank, letters behind texts; and several named at once."""

from __future__ import annotations

import re

from sophia_mcore.verify.text.normalize import plain_text

OPTION_BEHIND = re.compile(
    r"(?P<said>[^()]{2,120}?(?:\([^()]{1,30}\)[^()]{0,30})?)\s*\((?:[Oo]ption|[Cc]hoice)\s+(?P<letter>[A-J])\)"
)
_DENIED = re.compile(
    r"\b(?:not|no|never|would|could|might|if|but|or|unlike|than|except|before|after|near|close|wrong)\b|n['’]t\b"
)


def names_only(said: str, index: int, plain: list[str]) -> bool:
    """Whether words name the option at ``index`` by its text, and no other, and deny nothing."""
    named = {i for i, one in enumerate(plain) if len(one) > 1 and re.search(rf"(?<![\w.]){re.escape(one)}(?!\w)", said)}
    return named == {index} and _DENIED.search(said.replace(plain[index], " ")) is None


_RANKS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_RANKED = re.compile(rf"(?P<rank>{'|'.join(_RANKS)}) (?P<noun>image|picture|figure|graph|diagram)(?: then)?")
_IMAGE = re.compile(r"\W*(?:image|picture|figure|fig\.?|graph|diagram)\s*(?P<number>\d+)\W*")


def of_image(text: str, plain: list[str]) -> int | None:
    """The option of an image by its rank, where all options are numbered images: "the fourth image" for "<image 4>"."""
    ranked = _RANKED.fullmatch(text.replace(",", ""))
    images = [_IMAGE.fullmatch(option) for option in plain] if ranked else []
    numbers = [int(image["number"]) for image in images if image is not None]
    if ranked is None or len(numbers) != len(plain):
        return None
    number = _RANKS.index(ranked["rank"]) + 1
    return numbers.index(number) if numbers.count(number) == 1 else None


NUMBERED = re.compile(r"\(\d\)\s")
_BRACKET_BEHIND = re.compile(r"\([^()]*\)")
_BEFORE_REASON = re.compile(
    r"\b(?:because|since|as|while|whereas|than|not|nor|from|rather|instead|except)\b", re.IGNORECASE
)
_OR_LETTER = re.compile(
    r"(?:[,;/&]|\b(?:or|and|else|otherwise|alternatively)\b)\s*(?:(?:or|and|else|then|otherwise|alternatively|possibly|perhaps"
    r"|maybe|even|also)\b,?\s+)*(?:(?:option|choice)\s+)?[(\[]?(?P<letter>[A-J])[)\]]?(?=[\s*.]*$|\s*\(\)|\s*[:.,;]\s|[)\]])"
)
_OR_TEXT = re.compile(r"\b(?:or|else|otherwise|alternatively|possibly|perhaps|maybe)\b\s+(?P<text>\S.*)$")


def other_named(answer: str, first: re.Match[str], plain: list[str]) -> bool:
    """Whether behind a letter and its bracket another option is named: "C (21 °C) or D (24 °C)"."""
    rest = _BEFORE_REASON.split(_BRACKET_BEHIND.sub("()", answer[first.end() :]))[0]
    own = first[0].upper()
    if any(match["letter"] not in own for match in _OR_LETTER.finditer(rest)):
        return True
    text = _OR_TEXT.search(rest)
    said = plain_text(text["text"]) if text else ""
    return any(len(option) > 1 and said.startswith(option) for option in plain)


_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_IN_FULL = {name[:length]: name for name in (*_MONTHS, *_DAYS) for length in (3, len(name))} | {
    "sept": "september", "tues": "tuesday", "thur": "thursday", "thurs": "thursday",
}  # fmt: skip


def abbreviated(text: str, options: list[str]) -> int | None:
    """The option that is the same month or day of the week, where all options are such: "Feb" for "February"."""
    wanted, names = _IN_FULL.get(text.rstrip(".")), [_IN_FULL.get(option.rstrip(".")) for option in options]
    return names.index(wanted) if wanted and all(names) and names.count(wanted) == 1 else None
