"""One way of writing what can be written in several: characters, spaces, decorations. Meaning is never changed."""

from __future__ import annotations

import re
import unicodedata

MAX_LAYERS = 24  # wrappers around wrappers that are taken off
MAX_DEPTH = 60  # nesting of brackets beyond which nobody states a final answer

_CHARACTERS: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width forms
_CHARACTERS |= str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "﹣": "-", "‐": "-", "‑": "-", "\u3000": " ", "\xa0": " ", "\u202f": " ",
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "√": r"\sqrt ",
        "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "±": r"\pm ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "≈": r"\approx ",
        "½": r"\frac12 ", "⅓": r"\frac13 ", "¼": r"\frac14 ", "¾": r"\frac34 ", "、": ",", "。": ".",
        "“": '"', "”": '"', "‘": "'", "’": "'", "α": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "λ": r"\lambda ",
        "\u200b": "", "\ufeff": "", "\u2061": "", "【": "[", "】": "]",
    }
)  # fmt: skip
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SPACE = re.compile(r"(?:(?<!\\)\\[,;!:\s>]|~|\\(?:q?quad|thinspace|enspace)(?![a-zA-Z])|\s)+")
_DECORATION = re.compile(r"\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?)(?![a-zA-Z])")
_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_ALIASES = re.compile(r"\\(leq|leqslant|geq|geqslant|neq|varnothing|lbrace|rbrace|degree|mid|colon)(?![a-zA-Z])")
_ALIAS_OF = {
    "leq": r"\le", "leqslant": r"\le", "geq": r"\ge", "geqslant": r"\ge", "neq": r"\ne", "varnothing": r"\emptyset",
    "lbrace": r"\{", "rbrace": r"\}", "degree": r"^\circ", "mid": "|", "colon": ":",
}  # fmt: skip
TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathit|mathsf|rm|bf|mbox|hbox|operatorname)\s*"
    r"\{([^{}]*)\}"
)
_DOLLAR = re.compile(r"(?<!\\)\$")
_WRAPPING_COMMAND = re.compile(
    r"\\(?:boxed|text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathit|mathsf|mbox|hbox)\s*(?=\{)"
)
_WRAPPERS = ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_ABOUT = re.compile(r"^(?:\\approx|about|approximately|approx\.?|roughly|大?约)\s*(?=[-+]?[\d.])", re.IGNORECASE)
_TRAILING_DEGREE = re.compile(r"(?:\s?\^\s?(?:\\circ|\{\s?\\circ\s?\}))+$")
_BRACED_CHARACTERS = frozenset("{}\\,")
_OPEN = {"(": ")", "[": "]", "{": "}"}


def clean(answer: str) -> str:
    r"""An answer in the one way of writing that the rules below compare.

    >>> clean(r"$\left( 1 ,\, \dfrac{1}{2} \right)$.")
    '( 1 , \\frac{1}{2} )'
    """
    if not answer.isascii():
        answer = _SUPERSCRIPT.sub(_raised, unicodedata.normalize("NFC", answer)).translate(_CHARACTERS)
    if "$" in answer:
        answer = _DOLLAR.sub(" ", answer)
    if "\\" in answer or "~" in answer:
        answer = _FRAC.sub(r"\\frac", _DECORATION.sub("", answer))
        answer = _ALIASES.sub(lambda match: _ALIAS_OF[match[1]], answer)
        answer = _SPACE.sub(" ", answer)
    elif answer.isascii() and answer.isalnum():
        return answer
    else:
        answer = " ".join(answer.split())
    return _ABOUT.sub("", _strip(answer))


def _raised(match: re.Match[str]) -> str:
    power = match[0].translate(_RAISED)
    return f"^{power}" if len(power) == 1 else f"^{{{power}}}"


def _strip(answer: str) -> str:
    """Remove what may stand around an answer: mathematics signs, emphasis, a final stop, braces, \text{...}."""
    for _ in range(MAX_LAYERS):
        before = answer
        answer = answer.strip().rstrip(",;:")
        if answer.endswith(".") and not answer.endswith(".."):
            answer = answer[:-1]
        for left, right in _WRAPPERS:
            inner = answer[len(left) : -len(right)]
            wrapped = len(answer) >= len(left) + len(right) and answer.startswith(left) and answer.endswith(right)
            if wrapped and left not in inner and right not in inner:
                answer = inner
        if answer.startswith("{"):
            answer = _without_braces(answer)
        if answer.startswith("\\"):
            command = _WRAPPING_COMMAND.match(answer)
            if command:
                argument = answer[command.end() :]
                inner = _without_braces(argument, lists_too=True)
                answer = answer if inner == argument else inner
        answer = without_degree(answer)
        if answer == before:
            break
    return answer


def without_degree(answer: str) -> str:
    """Without a degree sign at the end: angles are compared as numbers."""
    return _TRAILING_DEGREE.sub("", answer) if answer.endswith(("circ", "}")) else answer


def _without_braces(answer: str, lists_too: bool = False) -> str:
    """Without the pairs of braces that enclose all of it; braces around a list stay, they may mean a set."""
    core = answer.strip("{}")
    around = (len(answer) - len(core)) // 2
    if core and _BRACED_CHARACTERS.isdisjoint(core) and answer == "{" * around + core + "}" * around:
        return core  # the usual case, and one of thousands of braces
    depths: list[int] = []  # positions of the open braces
    closes: dict[int, int] = {}
    escaped = False
    for position, character in enumerate(answer):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depths.append(position)
        elif character == "}":
            if not depths:
                return answer
            closes[depths.pop()] = position
    start, end = 0, len(answer) - 1
    while start < end and closes.get(start) == end:
        start, end = start + 1, end - 1
    inner = answer[start : end + 1]
    if start == 0 or (not lists_too and "," in inner and len(split_top(inner, ",") or ()) > 1):
        return answer
    return inner


def depth(text: str) -> int:
    """Deepest nesting of (, [ and {."""
    deepest = level = 0
    for character in text:
        if character in "([{":
            level += 1
            deepest = max(deepest, level)
        elif character in ")]}":
            level -= 1
    return deepest


def plain_text(answer: str) -> str:
    """Words for comparison: case, emphasis, text commands, articles, outer punctuation and extra spaces do not count.

    >>> plain_text("The **Red** car.")
    'red car'
    """
    if "\\" in answer:
        for _ in range(MAX_LAYERS):
            before, answer = answer, TEXT_COMMAND.sub(r"\1", answer)
            if answer == before:
                break
    answer = answer.replace("*", "").replace("_", " ").replace("$", "").replace("\\ ", " ")
    words = unicodedata.normalize("NFKC", answer).casefold().split()
    answer = " ".join(words).strip(" .,:;!?\"'`()[]{}")
    for article in ("the ", "a ", "an "):
        if answer.startswith(article) and len(answer) > len(article) + 1:
            return answer[len(article) :]
    return answer


def split_top(text: str, separators: str) -> list[str] | None:
    """Parts of ``text`` between ``separators`` (single characters) outside all brackets; None if brackets do not match.

    Round and square brackets may close each other, as those of half-open intervals do.

    >>> split_top("(1,2), 3", ",")
    ['(1,2)', '3']
    """
    parts, start, stack = [], 0, 0
    position, length = 0, len(text)
    while position < length:
        character = text[position]
        if character == "\\":
            following = text[position + 1 : position + 2]
            stack += {"{": 1, "}": -1}.get(following, 0)
            position += 2
            continue
        if character in "([{":
            stack += 1
        elif character in ")]}":
            stack -= 1
            if stack < 0:
                return None
        elif stack == 0 and character in separators:
            parts.append(text[start:position].strip())
            start = position + 1
        position += 1
    if stack:
        return None
    return [*parts, text[start:].strip()]
