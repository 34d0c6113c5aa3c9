r"""Letters with marks as names of their own: T1 and T_1, y', dy/dx. The grammar would multiply or divide them."""

from __future__ import annotations

import re
from functools import lru_cache

from sophia_mcore.verify.comparing.labels import is_formula
from sophia_mcore.verify.text.quantities import parse_quantity
from sophia_mcore.verify.text.spellings import is_configuration

DERIVED = "D_{zz"  # how the name of a derivative begins; no letter of an answer is called so
_INDEX = re.compile(
    r"(?<![A-Za-z\\])(?!(?:ln|lg|pi)\d)(?P<before>[A-Za-z]?)(?P<letter>[A-Za-z])(?P<digits>\d{1,3})(?!\d*\.\d|\d)"
)
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_ONE_SIGN = re.compile(r"_\s*\{\s*(\w)\s*\}(?!\w)")
_ARGUMENT = re.compile(r"\\(?:frac|sqrt)\s+\Z")
_PRIME = re.compile(
    r"(?<![A-Za-z\\])(?P<letter>[a-z])\s*(?:(?P<marks>'{1,3})|\^\s*\{?\s*(?P<primes>(?:\\prime\s*){1,3})\}?)"
)
_ONE = r"(?:\\(?:mathrm|text)\s*\{\s*(?:d|\\partial)\s*\}|d|\\partial)"
_POWER = r"(?:\s*\^\s*\{?\s*[23n]\s*\}?)?"
_BELOW = rf"{_ONE}\s*(?P<by>\\?[A-Za-z]+){_POWER}"
_DERIVATIVE = re.compile(
    rf"\\frac\s*\{{\s*(?P<top>{_ONE}){_POWER}\s*(?P<of>\\?[A-Za-z]{{1,8}})\s*\}}\s*\{{\s*{_BELOW}\s*\}}"
    rf"|(?<![A-Za-z\\])d(?P<plain>[A-Za-z])\s*/\s*d(?P<against>[A-Za-z])(?![A-Za-z])"
)
_ARROW = re.compile(r"->|\\to(?![a-z])|arrow")


@lru_cache(maxsize=1 << 13)
def symbols(text: str) -> str:
    r"""A cleaned answer with an index for a digit right behind a letter, and one name for a derivative.

    Units, chemical formulas, reactions and electron configurations stay as they are.

    >>> symbols("R1 + 2R2"), symbols("5 m2"), symbols("H2O")
    ('R_1 + 2R_2', '5 m2', 'H2O')
    >>> symbols(r"\frac{dy}{dx} = 2x"), symbols("y' = y")
    ('D_{zzydx} = 2x', 'D_{zzyp} = y')
    """
    text = _PRIME.sub(_primed, _DERIVATIVE.sub(_derived, text)) if "d" in text or "'" in text or "p" in text else text
    text = _ONE_SIGN.sub(r"_\1", text) if "_" in text else text
    if _INDEX.search(text) is None or len(text) > 400:
        return text
    measured = parse_quantity(text.rpartition("=")[2].strip())
    unit = measured is not None and measured.known and _LETTER.search(measured.number) is None
    if unit or is_formula(text) or is_configuration(text) or _ARROW.search(text):
        return text
    return _INDEX.sub(_indexed, text)


def _indexed(match: re.Match[str]) -> str:
    if match["letter"] in "eE" and match.string[max(0, match.start("letter") - 1) : match.start("letter")].isdigit():
        return match[0]  # 3e5
    if _ARGUMENT.search(match.string, 0, match.start()):
        return match[0]  # \frac x2
    digits = match["digits"]
    return f"{match['before']}{match['letter']}_{digits if len(digits) == 1 else f'{{{digits}}}'}"


def _primed(match: re.Match[str]) -> str:
    count = len(match["marks"]) if match["marks"] else match["primes"].count("prime")
    return f"{DERIVED}{match['letter']}{'p' * count}}}"


def _derived(match: re.Match[str]) -> str:
    if match["plain"]:
        return f"{DERIVED}{match['plain']}d{match['against']}}}"
    order = re.sub(r"[^23n]", "", match[0].partition("}")[0])[:1]
    sign = "q" if "partial" in match["top"] else "d"
    return f"{DERIVED}{match['of']}{sign}{order}{match['by']}}}".replace("\\", "")
