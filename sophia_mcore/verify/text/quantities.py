"""Numbers with units. Spellings are data (rules.toml); conversion is pint's, in the killable workers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from sophia_mcore.verify.rules import tables
from sophia_mcore.verify.text.normalize import TEXT_COMMAND
from sophia_mcore.verify.text.numbers import Number, parse_number
from sophia_mcore.verify.text.words import digits_first, is_noun, magnitudes


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as text and its unit: in pint's language, or a word that is not a unit (then ``known`` is False)."""

    number: str
    unit: str
    known: bool


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    spellings = sorted(tables().units, key=len, reverse=True)
    atom = rf"(?:(?:square|cubic|sq\.?|cu\.?)\s+)?(?:{'|'.join(map(re.escape, spellings))})(?![A-Za-z])"
    power = r"(?:\s*\^?\s*(?:\{\s*-?\d\s*\}|-?\d))?"
    factor = rf"{atom}{power}"
    unit = rf"{factor}(?:\s*(?:/|\*|\\cdot|\bper\b|\s)\s*{factor})*"
    whole = rf"(?P<number>.*?[\d)}}]|.*\\pi)\s*(?P<unit>(?<=[\s\d)}}]){unit})"
    return re.compile(whole, re.DOTALL), re.compile(
        rf"(?P<area>square|cubic|sq\.?|cu\.?)?\s*(?P<name>{'|'.join(map(re.escape, spellings))})(?![A-Za-z])"
        r"\s*(?:\^?\s*\{?\s*(?P<power>-?\d)\s*\}?)?|(?P<sign>/|per\b|\*|\\cdot)"
    )


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount of money as written."""

    currency: str
    number: Number

    @property
    def dollars(self) -> bool:
        """Whether it is in dollars or cents."""
        return self.currency in ("dollar", "cent")

    def same_currency(self, other: Amount) -> bool:
        """Whether the currencies may be the same: the sign of the yen is that of the yuan too."""
        return self.currency == other.currency or {self.currency, other.currency} in ({"¥", "yen"}, {"¥", "yuan"})

    @property
    def in_cents(self) -> Number:
        """The number of cents of an amount in dollars or cents."""
        number = self.number
        return Number(number.value * 100, number.places) if self.currency == "dollar" else number


_MATH_SIGN = re.compile(r"(?<!\\)\$")
_AMOUNT = re.compile(r"(?P<before>\D{1,20}?)?\s*(?P<number>[+-]?\s*\d[\d.,]*)\s*(?P<after>\D{1,20})?")

_DOLLARS_AND_CENTS = re.compile(r"(?:\\?\$(\d{1,9})|(\d{1,9}) dollars?),?(?: and)? (\d{1,2}) cents?")


_YUAN_AND_JIAO = re.compile(r"(\d{1,9})[元块](?:(\d)[角毛])?(?:(\d)分)?")


def _in_yuan(match: re.Match[str]) -> str:
    return f"{match[1]}.{match[2] or 0}{match[3] or 0}元" if match[2] or match[3] else match[0]


@lru_cache(maxsize=1 << 12)
def amount(text: str) -> Amount | None:
    r"""An amount of money, before ``clean`` takes the dollar signs for mathematics; None if no currency is named.

    >>> amount(r"\$20").currency, amount("20 yuan").currency, amount("$20$")
    ('dollar', 'yuan', None)
    """
    if len(text) > 60:
        return None
    text = TEXT_COMMAND.sub(r" \1", text).strip(" .")
    if text.replace("\\$", "").count("$") % 2 == 0:
        text = _MATH_SIGN.sub("", text)  # $20$ is mathematics
    text = text if text.isascii() else _YUAN_AND_JIAO.sub(_in_yuan, text)
    text = _DOLLARS_AND_CENTS.sub(lambda both: f"${both[1] or both[2]}.{int(both[3]):02}", text)
    match = _AMOUNT.fullmatch(magnitudes(text))
    if match is None:
        return None
    number = parse_number(match["number"].replace(" ", "").rstrip(",."))
    names = [part.strip("+-\\ ") for part in (match["before"], match["after"]) if part and part.strip("+-\\ ")]
    found = {tables().currencies.get(name) for name in names}
    if number is not None and match["before"] and "-" in match["before"]:
        number = Number(-number.value, number.places)
    currency = found.pop() if len(found) == 1 else None
    return Amount(currency, number) if number is not None and currency else None


COMPOUND = "compound"  # the unit of "1 hour 30 minutes"
_UNITS_POWER = re.compile(r"units?\s*\^\s*\{?([23])\}?")
_PER_SQUARED = re.compile(r"\b(per [a-z]+) squared$")
_SPOKEN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_POWER_OF_TEN = r"(?:\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*(?:\{\s*-?\d+\s*\}|-?\d+))?"
_IN_BRACKETS = re.compile(rf"^([\d.,]+{_POWER_OF_TEN}|\\frac\{{\d+\}}\{{\d+\}})\s*\(([A-Za-zµΩ°/^\d ]{{1,20}})\)$")
_SEGMENT = re.compile(r"\s*(?:,|and)?\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+|[小时分钟秒天米厘]+)\.?")


def compound(text: str) -> tuple[tuple[str, str], ...] | None:
    """The numbers and units, in pint's language, of "1 hour 30 minutes"; None for anything else."""
    found, position = [], 0
    while position < len(text):
        segment = _SEGMENT.match(text, position)
        if segment is None or segment[2] not in tables().units:
            return None
        found.append((segment[1], tables().units[segment[2]]))
        position = segment.end()
    return tuple(found) if len(found) > 1 else None


_NOUN = re.compile(
    r"(?P<number>[+-]?[\d.,]+(?:/\d+)?|[+-]?\\frac\{\d+\}\{\d+\})\s+(?P<unit>[^\W\d_]{2,}(?:[ -][^\W\d_]+){0,3})"
)
_ANY_UNITS = re.compile(r"(?P<number>.*[\d}\)i])\s+(?P<unit>(?:(?:square|cubic|sq\.?) )?units?)")
_BRACED_POWER = re.compile(r"(?<=[A-Za-z])\s*\^\s*\{\s*([+-]?\d)\s*\}(?=[^{}]*\})")
_MICRO = re.compile(r"\\mu(?![a-zA-Z])\s*")
_DEGREE_UNITS = ((r"^\circ C", "°C"), (r"^\circ F", "°F"), (r"^{\circ}C", "°C"), (r"^{\circ}F", "°F"))


@lru_cache(maxsize=1 << 15)
def parse_quantity(text: str) -> Quantity | None:
    r"""A cleaned answer as number and unit; None if it has no unit.

    >>> parse_quantity(r"5 \text{ cm}^2")
    Quantity(number='5', unit='centimeter ** 2', known=True)
    """
    if len(text) > 200 or not (text[-1:].isalnum() or text[-1:] in "}.%)"):
        return None
    flat = text
    if "\\" in text:
        text = _BRACED_POWER.sub(r"^\1", text)  # m\,s^{-2} inside \mathrm{}
        flat = TEXT_COMMAND.sub(r" \1", _MICRO.sub("µ", text)).replace(r"\Omega", "Ω").replace("µ ", "µ")
    spaced = flat != text or " " in text or not text[-1:].isascii()
    if "circ" in flat:
        flat = " ".join(flat.split())
        for written, unit in _DEGREE_UNITS:
            flat = flat.replace(written, f" {unit}").replace(written.replace("C", " C").replace("F", " F"), f" {unit}")
    flat = " ".join(flat.split())
    whole, part = _patterns()
    flat = _UNITS_POWER.sub(lambda match: f"{'square' if match[1] == '2' else 'cubic'} units", flat)
    flat = _PER_SQUARED.sub(r"\1^2", flat) if flat.endswith("squared") else flat
    flat = _IN_BRACKETS.sub(r"\1 \2", flat)
    if " " in flat and flat[0].isdigit() and compound(flat):
        return Quantity(flat, COMPOUND, True)
    match = whole.fullmatch(flat)
    if match and (spaced or len(match["unit"].rstrip("^{}-0123456789 ")) > 1) and not _SPOKEN.search(match["number"]):
        return Quantity(match["number"].strip(), _in_pint(match["unit"], part), True)
    anything = _ANY_UNITS.fullmatch(flat)
    if anything and not _SPOKEN.search(anything["number"]):
        return Quantity(anything["number"].strip(), anything["unit"].removesuffix("s"), False)
    noun = _NOUN.fullmatch(digits_first(flat))
    if noun and (noun["unit"] == "times" or is_noun(noun["unit"], noun["number"] == "1")):
        unit = noun["unit"] if len(noun["unit"]) < 3 else noun["unit"].casefold()  # the case of "mM" counts
        return Quantity(noun["number"], unit.removesuffix("s"), False)
    return None


def _in_pint(unit: str, part: re.Pattern[str]) -> str:
    units = tables().units
    result, sign = "", ""
    for match in part.finditer(unit):
        if match["sign"]:
            sign = " / " if match["sign"] in ("/", "per") else " * "
            continue
        power = int(match["power"] or 1)
        area = match["area"] or ""
        power *= 2 if area.startswith("sq") else 3 if area.startswith("cu") else 1
        name = units[match["name"]] + (f" ** {power}" if power != 1 else "")
        result += (sign or (" * " if result else "")) + name
        sign = ""
    return result
