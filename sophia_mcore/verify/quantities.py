"""Numbers with units. Spellings are data (rules.toml); conversion is pint's, in the killable workers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from sophia_mcore.verify.normalize import TEXT_COMMAND
from sophia_mcore.verify.rules import tables


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


_AMOUNT = re.compile(r"(?P<before>\D{1,20}?)\s*[+-]?\s*[\d.,]+\s*|\s*[\d.,]+\s*(?P<after>\D{1,20})")


@lru_cache(maxsize=1 << 12)
def currencies(text: str) -> frozenset[str]:
    r"""The currency of an amount of money as written, before ``clean`` takes the dollar signs for mathematics.

    >>> currencies(r"\$20"), currencies("20 yuan"), currencies("$20$")
    (frozenset({'dollar'}), frozenset({'yuan'}), frozenset())
    """
    match = _AMOUNT.fullmatch(text[:60].strip(" .")) if len(text) <= 60 else None
    if match is None:
        return frozenset()
    name = TEXT_COMMAND.sub(r"\1", match["before"] or match["after"]).strip("+-\\ ")
    found = tables().currencies.get(name)
    return frozenset({found} if found else ())


_NOUN = re.compile(
    r"(?P<number>[+-]?[\d.,]+(?:/\d+)?|[+-]?\\frac\{\d+\}\{\d+\})\s+(?P<unit>[^\W\d_]{2,}(?:[ -][^\W\d_]+){0,3})"
)
_MICRO = re.compile(r"\\mu(?![a-zA-Z])\s*")
_DEGREE_UNITS = ((r"^\circ C", "°C"), (r"^\circ F", "°F"), (r"^{\circ}C", "°C"), (r"^{\circ}F", "°F"))


@lru_cache(maxsize=1 << 15)
def parse_quantity(text: str) -> Quantity | None:
    r"""A cleaned answer as number and unit; None if it has no unit.

    >>> parse_quantity(r"5 \text{ cm}^2")
    Quantity(number='5', unit='centimeter ** 2', known=True)
    """
    if len(text) > 200 or not (text[-1:].isalnum() or text[-1:] in "}.%"):
        return None
    flat = text
    if "\\" in text:
        flat = TEXT_COMMAND.sub(r" \1", _MICRO.sub("µ", text)).replace(r"\Omega", "Ω").replace("µ ", "µ")
    spaced = flat != text or " " in text or not text[-1:].isascii()
    if "circ" in flat:
        flat = " ".join(flat.split())
        for written, unit in _DEGREE_UNITS:
            flat = flat.replace(written, f" {unit}").replace(written.replace("C", " C").replace("F", " F"), f" {unit}")
    flat = " ".join(flat.split())
    whole, part = _patterns()
    match = whole.fullmatch(flat)
    if match and (spaced or len(match["unit"]) > 1):
        return Quantity(match["number"].strip(), _in_pint(match["unit"], part), True)
    noun = _NOUN.fullmatch(flat)
    if noun and noun["unit"] not in ("and", "or"):
        return Quantity(noun["number"], noun["unit"].casefold().removesuffix("s"), False)
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
