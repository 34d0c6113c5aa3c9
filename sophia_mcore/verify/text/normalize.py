"""One way of writing what can be written in several: characters, spaces, decorations. Meaning is never changed."""

from __future__ import annotations

import re
import unicodedata

from sophia_mcore.verify.text.characters import program_names, ranges_marked, typed
from sophia_mcore.verify.text.words import magnitudes

MAX_LAYERS = 24  # wrappers around wrappers that are taken off
MAX_DEPTH = 60  # nesting of brackets beyond which nobody states a final answer

_SPACE = re.compile(r"(?:(?<!\\)\\[,;!:\s>]|~|\\(?:q?quad|thinspace|enspace)(?![a-zA-Z])|\s)+")
_DECORATION = re.compile(
    r"\\color\s*\{[a-zA-Z]+\}|\\textcolor\s*\{[a-zA-Z]+\}|\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?)(?![a-zA-Z])"
)
_ACCENT = re.compile(r"\\(vec|hat|bar|overline|mathbf|boldsymbol|tilde|dot)\s+([A-Za-z])(?![A-Za-z])")
_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_ALIASES = re.compile(
    r"\\(leq|leqslant|geq|geqslant|neq|varnothing|lbrace|rbrace|degree|mid|vert|colon|lt|gt|land|lor|langle|rangle|dots|cdots|dotsc|lg|rightarrow|longrightarrow|varepsilon|varphi|vartheta|neg|infin)"
    r"(?![a-zA-Z])"
)
_ALIAS_OF = {
    "leq": r"\le", "leqslant": r"\le", "geq": r"\ge", "geqslant": r"\ge", "neq": r"\ne", "varnothing": r"\emptyset",
    "lbrace": r"\{", "rbrace": r"\}", "degree": r"^\circ", "mid": "|", "colon": ":", "vert": "|",
    "lt": "<", "gt": ">", "land": r"\text{ and }", "lor": r"\text{ or }", "langle": "(", "rangle": ")",
    "dots": r"\ldots", "cdots": r"\ldots", "dotsc": r"\ldots", "lg": r"\log", "rightarrow": r"\to",
    "longrightarrow": r"\to", "varepsilon": r"\epsilon",
    "infin": r"\infty", "varphi": r"\phi", "vartheta": r"\theta", "neg": r"\lnot",
}  # fmt: skip
TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textup|mathrm|mathbf|mathit|mathsf|rm|bf|mbox|hbox|operatorname"
    r"|boldsymbol|bm|ce|emph)\s*"
    r"\{([^{}]*)\}"
)
_DOLLAR = re.compile(r"(?<!\\)\$")
_WRAPPING_COMMAND = re.compile(
    r"\\(?:boxed|text|textbf|textit|textrm|textsf|texttt|textup|mathrm|mathbf|mathit|mathsf|mbox|hbox|boldsymbol|bm|ce"
    r"|emph)\s*(?=\{)"
)
_WRAPPERS = ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_ABOUT = re.compile(
    r"^(?:\\approx|about|approximately|approx\.?|roughly|exactly|precisely"
    r"|\\text\s*\{\s*(?:exactly|precisely|just|only)\s*\}"
    r"|just|only|still|simply|clearly|indeed|(?:the )?number|大?约|恰好?)\s*(?=[-+]?[\d.])",
    re.IGNORECASE,
)
_TWO_UNITS = re.compile(  # "2 hours and 15 minutes"
    r"^(\d+\s*(?:years?|weeks?|days?|hours?|hrs?|h|minutes?|min|feet|ft|pounds?|lbs?)),? and (\d[\d.]*\s*[a-z]+)$"
)
_COUNTED = re.compile(
    r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?=\s*(?:\\text\s*\{\s*)?[^\W\d_]{1,20}[^,]*$)"
)  # "2,500 grams"
_SPACED = re.compile(  # "5 000\\pi", "5 000 + x", "20,000(3 - x)", "\\frac{5 000}{3}": thousands in an expression
    r"(?<![\w.,])\d{1,3}(?: \d{3})+(?=\s*(?:\\[a-z]|[a-z](?![A-Za-z])|[-+*/^(]))"
    r"|(?<![\w.,{(\[])\d{1,3}(?:,\d{3})+(?=\\[a-z]|[a-z](?![A-Za-z])|\()"
    r"|(?:\\(?:frac|sqrt)\{|\}\{)\d{1,3}(?: \d{3})+(?=\})"
)
_BASE_TEN = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)_(?:10|\{10\})(?!\d)")
_WIDE_BLANK = re.compile(r"(?<=[\w$})\]])\u3000+(?=[\w$\\({\[+-])")  # stands between answers in Chinese books
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])[^=]*$")
_BRACED_UNIT = re.compile(
    r"(?<=[\d}])\s*\{\s*((?:square|cubic)?)\s*(degrees?|inch(?:es)?|feet|foot|yards?|miles?|units?)\s*\}$"
)
_SIGNPOST = re.compile(r"^(?:\\(?:therefore|Rightarrow|implies|Longrightarrow|because)(?![a-zA-Z])\s*|=\s*(?=[^\s=]))")
_CHECK_MARK = re.compile(r"(?<=.)\s*\\checkmark$")
_TRAILING_DEGREE = re.compile(
    r"(?:\s?\^\s?(?:\\circ|\{\s?\\circ\s?\}))+(?:\s*(?:\\(?:text|mathrm)\s*\{\s*T\s*\}|T))?$"
)  # a true bearing
DISPLAYS = "equation|align|aligned|gather|gathered|split|eqnarray|multline"  # environments of lines
_ENVIRONMENT = re.compile(
    rf"\\begin\s*\{{(?P<kind>{DISPLAYS})(?P<star>\*?)\}}(?P<inner>.*)"
    r"\\end\s*\{(?P=kind)(?P=star)\}",
    re.DOTALL,
)
_NEW_LINE = re.compile(r"\\\\(?:\[[^\]]*\])?")
_GOES_ON = re.compile(r"=|\\(?:approx|equiv)(?![a-zA-Z])")
DIRECTION = (
    r"(?:to(?:wards?)? the|pointing|directed|due|north|south|east|west|clockwise|counter-?clockwise"
    r"|(?:up|down|left|right)(?:wards?)?|(?:for|back)wards?)(?![a-z])"
)
_DIRECTED = re.compile(rf"^(?P<amount>[-+]?\d[^,]{{0,30}}),\s+(?={DIRECTION})")  # "10 N, to the left"
_NEGATION = re.compile(  # a tilde of logic: first, or behind a connective or bracket; elsewhere it is LaTeX's space
    r"(^\s*|(?:[(&|∧∨→]|->|\\(?:to|land|lor|wedge|vee|rightarrow|Rightarrow|implies)(?![a-z]))\s*)"
    r"~(?=\(|[A-Za-z](?![A-Za-z~]))"
)
_BRACED_CHARACTERS = frozenset("{}\\,")
_OPEN = {"(": ")", "[": "]", "{": "}"}


def clean(answer: str) -> str:
    r"""An answer in the one way of writing that the rules below compare.

    >>> clean(r"$\left( 1 ,\, \dfrac{1}{2} \right)$.")
    '( 1 , \\frac{1}{2} )'
    """
    if "\u3000" in answer:
        answer = _WIDE_BLANK.sub(", ", answer.strip())
    if "~" in answer or not answer.isascii():
        answer = ranges_marked(answer if "\\begin" in answer else _NEGATION.sub(r"\1\\lnot ", answer))
        answer = answer if answer.isascii() else typed(answer)
    answer = program_names(answer)
    if "$" in answer:
        answer = _DOLLAR.sub(" ", answer)
    if "\\begin" in answer:
        answer = lines_joined(answer)
    if "\\" in answer or "~" in answer:
        answer = _FRAC.sub(r"\\frac", _DECORATION.sub("", answer))
        answer = _ACCENT.sub(r"\\\1{\2}", answer)
        answer = _ALIASES.sub(lambda match: _ALIAS_OF[match[1]], answer)
        answer = _SPACE.sub(" ", answer)
    elif answer.isascii() and answer.isalnum():
        return answer
    else:
        answer = " ".join(answer.split())
    if " and " in answer:
        answer = _TWO_UNITS.sub(r"\1 \2", answer)
    if " " in answer or "," in answer:
        answer = _SPACED.sub(lambda match: match[0].replace(" ", "").replace(",", ""), answer)
    if "_" in answer:
        answer = _BASE_TEN.sub(r"\1", answer)
    if "," in answer:
        answer = _COUNTED.sub(lambda match: match[0].replace(",", ""), answer)
    answer = _ABOUT.sub("", _strip(_BRACED_UNIT.sub(r" \\text{\1 \2}", answer)))
    return magnitudes(answer) if answer[-1:].isalpha() or "\\text" in answer or not answer.isascii() else answer


def comma_left_out(answer: str) -> str:
    """A prediction without the comma before its direction.

    >>> comma_left_out("10 N, to the left"), comma_left_out("10 N, 5 N")
    ('10 N to the left', '10 N, 5 N')
    """
    return _DIRECTED.sub(r"\g<amount> ", answer) if "," in answer else answer


def lines_joined(answer: str, nested: int = 2) -> str:
    r"""The inside of a display such as aligned: lines that begin with "=" go on, other relations are a list.

    Lines that are neither stay as they are, and so does a matrix.

    >>> lines_joined(r"\begin{aligned} C &= 2\pi r \\ &= 6\pi \end{aligned}")
    'C = 2\\pi r = 6\\pi'
    """
    display = _ENVIRONMENT.fullmatch(answer.strip())
    if display is None:
        return answer
    inner = display["inner"].strip().strip(".").strip()
    if "\\begin" in inner:
        return lines_joined(inner, nested - 1) if nested else answer
    lines = [line.replace("&", "").strip() for line in _NEW_LINE.split(inner)]
    lines = [line for line in lines if line]
    joined = lines[0] if lines else ""
    for line in lines[1:]:
        if _GOES_ON.match(line):
            joined = f"{joined} {line}"
        elif "=" in line and "=" in joined:
            joined = f"{joined.rstrip(', ')}, {line}"
        else:
            return answer
    return joined


def _strip(answer: str) -> str:
    """Remove what may stand around an answer: mathematics signs, emphasis, a final stop, braces, \text{...}."""
    for _ in range(MAX_LAYERS):
        before = answer
        answer = answer.strip().rstrip(",;:").removesuffix(r"\\")
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
        answer = _CHECK_MARK.sub("", _SIGNPOST.sub("", without_degree(answer)))
        if answer == before:
            break
    return answer


def without_degree(answer: str) -> str:
    """Without a degree sign at the end: angles are compared as numbers."""
    if not answer.endswith(("circ", "}", "T")) or _TRIGONOMETRIC.search(answer):
        return answer
    return _TRAILING_DEGREE.sub("", answer)


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
