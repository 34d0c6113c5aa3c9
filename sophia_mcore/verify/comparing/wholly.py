r"""Whether algebra has read an answer to its end. It drops what it cannot read, and equals what is left.

math-verify reads "T = \frac{\pi L}{2nv} (n=1, 2, 3, ...)" as 3, "(\frac{3}{2})^{3} \frac{V_{\mathrm{th}}^2}{d}" as 3/2.
A number or letter that may be changed without changing what was read has not been read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Parse = Callable[[str], list[Any]]

_GREEK = "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|ell|hbar"
_NAME = re.compile(rf"(?i)(?:{_GREEK})(?![a-z])")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_NO_LETTERS = re.compile(  # words for operations: in LaTeX behind a backslash, in the tree as they are
    r"(?i)(?<![a-z])(?:sin|cos|tan|cot|sec|csc|arc\w+|a(?:sin|cos|tan)|sinh|cosh|tanh|exp|log|ln|lg|sqrt|and|or|pi|oo"
    r"|eq|interval|open|lopen|ropen|union|finiteset|emptyset|true|false|matrix|abs|factorial|binomial|floor|ceiling|re|im)"
    r"(?![a-z])"
)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_LETTER = re.compile(r"[A-Za-z]")
_OTHERS = "qwzkhj"  # letters to try in place of one
MOST_PROBES = 40  # an answer with more places that may be unread is not decided by algebra


def wholly_read(text: str, parse: Parse) -> bool:
    r"""Whether every number and letter of a cleaned answer counts in what ``parse`` makes of it.

    ``parse`` gives a list that begins with the tree, or has no tree at all.

    >>> wholly_read("3 + x (n=1, 2)", lambda text: [2, text]), wholly_read("2", lambda text: [2, text])
    (False, True)
    """
    tree = _tree(parse(text))
    if tree is None:
        return False
    there, places = _counted(str(tree)), _places(text)
    asked = Counter(token for token, _ in places)
    doubtful = [place for token, place in places if asked[token] > there[token]]
    return len(doubtful) <= MOST_PROBES and all(_matters(text, place, tree, parse) for place in doubtful)


def _tree(parsed: list[Any]) -> Any:
    """What was read; None if nothing was, or a list of equations and intervals, which is compared loosely."""
    tree = parsed[0] if parsed and not isinstance(parsed[0], str) else None
    members = tree.args if tree is not None and getattr(tree, "is_FiniteSet", False) else ()
    return None if any(getattr(one, "is_Relational", False) for one in members) else tree


def _places(text: str) -> list[tuple[str, re.Match[str]]]:
    """Numbers, Greek and Latin letters of LaTeX with where they stand; names of functions are none."""
    blank = _NO_LETTERS.sub(lambda match: " " * len(match[0]), _COMMAND.sub(_kept_if_greek, text))
    found = [(_value(match[0]), match) for match in _NUMBER.finditer(blank)]
    names = list(_NAME.finditer(blank))
    found += [(match[0].lower(), match) for match in names]
    bare = _NAME.sub(lambda match: " " * len(match[0]), blank)
    return found + [(match[0].lower(), match) for match in _LETTER.finditer(bare)]


def _kept_if_greek(match: re.Match[str]) -> str:
    name = match[0][1:].removeprefix("var")
    return match[0].replace("\\", " ") if _NAME.fullmatch(name) else " " * len(match[0])


def _value(digits: str) -> str:
    return str(Fraction(digits))


def _counted(tree: str) -> Counter[str]:
    """Numbers and letters of a tree as it is printed; "exp" stands for the letter e."""
    plain = _NO_LETTERS.sub(" ", re.sub(r"exp(?=\()", " e ", tree).replace("_", " "))
    counted = Counter(_value(match) for match in _NUMBER.findall(plain))
    counted.update(match.lower() for match in _NAME.findall(plain))
    counted.update(_LETTER.findall(_NAME.sub(" ", plain).lower()))
    return counted


def _matters(text: str, place: re.Match[str], tree: Any, parse: Parse) -> bool:
    """Whether something else is read when the number or letter is another."""
    start, end = place.span()
    if place[0][0].isdigit():
        other = "7" + place[0]
    else:
        other = next((letter for letter in _OTHERS if letter not in text.lower()), "")
        start -= text[start - 1 : start] == "\\"  # of a Greek letter
    try:
        changed = _tree(parse(f"{text[:start]}{other}{text[end:]}"))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # not to be read with another letter: then it was read with this one
        return True
    return bool(changed != tree)
