r"""One thing in several spellings that no algebra knows: weekdays, bearings, reactions, electrons, X \perp Y."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache

from sophia_mcore.verify.text.normalize import TEXT_COMMAND

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_SHORT = {name[:3]: name for name in _DAYS + _MONTHS} | {
    "tues": "tuesday", "thur": "thursday", "thurs": "thursday", "sept": "september", "dne": "does not exist",
}  # fmt: skip
_COMPASS = {  # one letter may be a unit or a name
    f"{way[0]}{side[0]}": f"{way}{side}" for way in ("north", "south") for side in ("east", "west")
}
_NONE = frozenset({"none of them", "none of these", "none of those", "none of the above"})
_QUADRANT = re.compile(r"(?:the )?(?:quadrant (?P<behind>iv|i{1,3}|[1-4])|(?P<before>\w+) quadrant)")
_WHICH = {
    "i": "1", "ii": "2", "iii": "3", "iv": "4", "first": "1", "second": "2", "third": "3", "fourth": "4",
    "1st": "1", "2nd": "2", "3rd": "3", "4th": "4", "1": "1", "2": "2", "3": "3", "4": "4",
}  # fmt: skip


def spelled(plain: str) -> str:
    """Plain words in one of their spellings.

    >>> spelled("mon"), spelled("quadrant ii"), spelled("second quadrant"), spelled("cat")
    ('monday', 'quadrant 2', 'quadrant 2', 'cat')
    """
    if plain in _SHORT:
        return _SHORT[plain]
    if plain in _COMPASS:
        return _COMPASS[plain]
    if plain in _NONE:
        return "none"
    match = _QUADRANT.fullmatch(plain)
    if match and (number := _WHICH.get(match["behind"] or match["before"])):
        return f"quadrant {number}"
    year = re.fullmatch(r"(?:in )?(?:the )?year (\d{4})", plain)
    return year[1] if year else plain.removesuffix("了")


# ---- bearings

_SIDES = {"n": 0, "north": 0, "e": 90, "east": 90, "s": 180, "south": 180, "w": 270, "west": 270}
_SIDE = "(north|south|east|west|[NSEW])"
_ANGLE = r"\s*(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|degrees?)\s*"
_BEARING = re.compile(rf"{_SIDE}{_ANGLE}{_SIDE}", re.IGNORECASE)
_TURNED = re.compile(rf"{_ANGLE}{_SIDE} of {_SIDE}", re.IGNORECASE)


def bearings_equal(gold: str, text: str) -> bool | None:
    r"""Whether two directions such as "N 30^\circ E" and "30 degrees east of north" are the same; None if not both are.

    >>> bearings_equal(r"N 30^\circ E", r"60^\circ north of east"), bearings_equal(r"N 30^\circ E", r"S 30^\circ E")
    (True, False)
    """
    first, second = _bearing(gold), _bearing(text)
    return None if first is None or second is None else first == second


@lru_cache(maxsize=1 << 12)
def _bearing(text: str) -> Fraction | None:
    if not 4 < len(text) < 60:
        return None
    flat = " ".join(TEXT_COMMAND.sub(r" \1 ", text).split())
    match = _BEARING.fullmatch(flat)
    if match:
        start, angle, side = match.groups()
    elif match := _TURNED.fullmatch(flat):
        angle, side, start = match.groups()
    else:
        return None
    away = (_SIDES[side.lower()] - _SIDES[start.lower()]) % 360
    if away not in (90, 270):
        return None
    return (_SIDES[start.lower()] + Fraction(angle) * (1 if away == 90 else -1)) % 360


# ---- reactions and electrons

_ARROW = re.compile(r"\\(?:long)?rightarrow(?![A-Za-z])|\\to(?![A-Za-z])|-+>")
_CONFIGURATION = re.compile(r"(?:\[[A-Z][a-z]\]\s*)?(?:[1-7]\s*[spdf]\s*\^?\s*\{?\s*\d{1,2}\s*\}?\s*)+")


def reactions_equal(gold: str, text: str) -> bool | None:
    """Whether two answers with one arrow each have the same sides, those of a reaction in any order; None without.

    >>> reactions_equal("2H2 + O2 -> 2H2O", r"O_2 + 2H_2 \\to 2H_2O"), reactions_equal("A -> B", "B -> A")
    (True, False)
    """
    if ">" not in gold and "arrow" not in gold and r"\to" not in gold:
        return None
    sides = [_ARROW.split(one) for one in (gold, text)]
    if any(len(side) != 2 or side[0].count("{") != side[0].count("}") for side in sides):
        return None
    first, second = ([_terms(side) for side in both] for both in sides)
    return first == second


_INDEX = re.compile(r"_\s*\{\s*(\w+)\s*\}|(?<=\^)\s*\{\s*(\w|\d*[-+])\s*\}|\{\s*\}|[_$]")


def _terms(side: str) -> Counter[str]:
    """The terms between signs of addition; a charge is no such sign. Braces around one sign, charge or index go."""
    flat = _INDEX.sub(lambda match: match[1] or match[2] or "", TEXT_COMMAND.sub(r"\1", side))
    return Counter(re.sub(r"\s", "", term) for term in re.split(r"\s\+\s|(?<=\w)\+(?=\s*\d*[A-Z(])", flat))


def is_configuration(text: str) -> bool:
    """Whether an answer is an electron configuration."""
    return len(text) > 4 and _CONFIGURATION.fullmatch(text) is not None


def configurations_equal(gold: str, text: str) -> bool | None:
    """Whether two electron configurations are the same; None if not both are.

    >>> configurations_equal("1s2 2s2 2p4", "1s^2 2s^2 2p^{4}"), configurations_equal("1s2 2s1", "1s^2 2s^2")
    (True, False)
    """
    if not all(map(is_configuration, (gold, text))):
        return None
    first, second = (re.sub(r"[\s^{}]", "", one) for one in (gold, text))
    return first == second


# ---- relations and operations whose sides may be exchanged

_EXCHANGED = re.compile(r"\\(perp|parallel|cap|cup|sim|cong|iff|Leftrightarrow)(?![A-Za-z])")
_HOLDS = re.compile(r"^(?P<whole>[^\\=<>,]+)\\sup(?P<sign>set(?:eq)?)(?![a-z])(?P<part>[^\\=<>,]+)$")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in|subset|subseteq)(?![A-Za-z])")


def contained_equal(gold: str, text: str) -> bool:
    r"""Whether two answers say that one set holds another, from either side.

    >>> contained_equal(r"A \subset B", r"B \supset A"), contained_equal(r"A \subset B", r"A \supset B")
    (True, False)
    """
    first, second = ("".join(_HOLDS.sub(_within, one).split()) for one in (gold, text))
    return r"\su" in gold and first == second


def _within(match: re.Match[str]) -> str:
    return rf"{match['part']} \sub{match['sign']} {match['whole']}"


def exchanged(gold: str, text: str) -> bool:
    r"""Whether two answers are X \perp Y and Y \perp X, or the like for any sign whose sides may be exchanged.

    >>> exchanged(r"A \cap B", r"B \cap A"), exchanged(r"A \cap B", r"B \cup A")
    (True, False)
    """
    first, second = _EXCHANGED.split(gold), _EXCHANGED.split(text)
    if len(first) != 3 or len(second) != 3 or first[1] != second[1]:
        return False
    if first[1] in ("cap", "cup") and _RELATION.search(gold):
        return False  # A \cap B = C is not B = C \cap A
    sides = [["".join(side.split()) for side in (one[0], one[2])] for one in (first, second)]
    return sides[0] == sides[1][::-1]
