r"""Control characters in texts of benchmarks that were the beginnings of LaTeX commands: "\f" of "\frac" was read."""

from __future__ import annotations

import re
from typing import Any

_NEVER_WORDS = {  # character -> its letter, and what is left of commands; none of it begins a word or is one
    "\x07": ("a", "lpha|ngle|pprox|rc(?:sin|cos|tan)|leph|malg|symp"),
    "\x08": ("b", r"eta|eth|egin(?=\{)|ar(?=\s*[{\\])|inom|oxed|ullet|ecause|igcup|igcap|igcirc|oldsymbol|mod"),
    "\t": ("t", r"imes|heta|riangle(?:q|left|right)?|herefore|ext(?:bf|it|rm)?(?=\s*\{)|anh|frac|binom|ilde(?=\{)"),
    "\x0b": ("v", "ec|ee|ert|arphi|artheta|arepsilon|arnothing|dots"),
    "\x0c": ("f", r"rac|orall|box(?=\{)"),
    "\r": ("r", r"ight(?:arrow|leftharpoons)?(?=\s*[\W_]|\Z)|ho(?=\s*[\W_\d]|\Z)|floor|ceil"),
}  # fmt: skip
_WORDS_TOO = {"\t": ("t", "an|au|o"), "\r": ("r", "angle|m")}  # real white space may stand before these: in maths only
_CONTROL = re.compile("[\x07\x08\t\x0b\x0c\r]")
_MATHS_FOLLOWS = re.compile(r"[({^_]|\s?\\[A-Za-z]|\s?[A-Za-z\d]{1,2}\Z")
_REST = {c: re.compile(f"(?:{rest})(?![A-Za-z])") for c, (_, rest) in _NEVER_WORDS.items()}
_UNSURE = {c: re.compile(f"(?:{rest})(?![A-Za-z])") for c, (_, rest) in _WORDS_TOO.items()}


def restored(value: Any) -> Any:
    r"""A text, or the texts of a list or an object, with eaten commands put back; a real tab or line end stays.

    >>> restored("\x0crac{36}{13}"), restored("$3\times 4$"), restored("x\tis\r\nangle")
    ('\\frac{36}{13}', '$3\\times 4$', 'x\tis\r\nangle')
    """
    if isinstance(value, str):
        return _CONTROL.sub(_put_back, value) if _CONTROL.search(value) else value
    if isinstance(value, (list, tuple)):
        return [restored(item) for item in value]
    return {key: restored(item) for key, item in value.items()} if isinstance(value, dict) else value


def _put_back(control: re.Match[str]) -> str:
    text, end, char = control.string, control.end(), control[0]
    letter = _NEVER_WORDS[char][0]
    if _REST[char].match(text, end):
        return f"\\{letter}"
    unsure = _UNSURE[char].match(text, end) if char in _UNSURE else None
    inside = text.count("$", 0, control.start()) % 2 == 1
    maths = inside or (unsure and char == "\t" and _MATHS_FOLLOWS.match(text, unsure.end()))
    return f"\\{letter}" if unsure and maths else char
