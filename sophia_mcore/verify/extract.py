r"""Finding the final answer in a response.

``RULES`` is the whole table, tried from top to bottom; within a rule the last match in the text wins. Every rule
carries examples, which are its tests. What follows the last ``</think>`` is searched first, and the thought only when
nothing follows it; a thought that never ends has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sophia_mcore.verify.normalize import TEXT_COMMAND
from sophia_mcore.verify.rules import NUMBER_TYPES

TAIL_CHARACTERS = 20_000  # marker rules look at this much of the end; \boxed{} is searched everywhere
BOX_CHARACTERS = 20_000  # a box longer than this is not an answer
ANSWER_CHARACTERS = 2_000  # an announced answer is cut off here
LINE_CHARACTERS = 200  # a line of at most this length may itself be the answer
MAX_BOXES = 16
Find = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One way in which answers are announced.

    ``find`` returns the candidates in the order of the text. ``words``: the rule is skipped unless the text holds one
    of them (lower case). ``types``: the answer types it is meant for; None: all. ``examples``: (response, answer).
    """

    name: str
    find: Find
    examples: tuple[tuple[str, str], ...]
    words: tuple[str, ...] = ()
    types: frozenset[str] | None = None


# ---- boxes

_BRACE = re.compile(r"\\.|\{+|\}+", re.DOTALL)
_UNBRACED = re.compile(r"\s*([^\s$.,;{}\\]+)")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s,;$、，和或及]|\\[()\[\]]|\band\b|\bor\b|\\(?:text|quad)\s*(?:\{\s*(?:and|or)\s*\})?)*"
)


def _closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the one at ``start``, or -1. A backslash escapes the next character."""
    depth = 0
    for match in _BRACE.finditer(text, start, start + BOX_CHARACTERS):
        run = match.group()
        if run[0] == "{":
            depth += len(run)
        elif run[0] == "}":
            if len(run) >= depth:
                return match.start() + depth - 1
            depth -= len(run)
    return -1


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, content) of the complete, non-empty boxes, from the last to the first."""
    end = len(text)
    for _ in range(MAX_BOXES):
        start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if start < 0:
            return
        inside = text.find("x", start) + (3 if text.startswith("\\boxed", start) else 1)
        brace = inside + (len(text[inside : inside + 8]) - len(text[inside : inside + 8].lstrip()))
        if text[brace : brace + 1] == "{":
            close = _closing_brace(text, brace)
            if close > 0 and text[brace + 1 : close].strip():
                yield start, close + 1, text[brace + 1 : close].strip()
        else:
            bare = _UNBRACED.match(text, inside)
            if bare:
                yield start, bare.end(), bare[1]
        end = start


def _boxed(text: str) -> list[str]:
    """The last boxed answer; boxes joined by nothing but "and", "or" or commas are one answer."""
    parts: list[str] = []
    next_start = 0
    for start, end, content in _boxes(text):
        if parts and not _BETWEEN_BOXES.fullmatch(text, end, next_start):
            break
        parts.append(content)
        next_start = start
    return [", ".join(reversed(parts))] if parts else []


# ---- announcements

_SAY = r"(?:\s*(?:is|are|was|would be|should be|must be|will be)\b(?!\s+not\b)\s*:?|\s*[:：=])"
_STAR = r"[*_`\"']*"
_REST = r"(?P<answer>\S[^\n]*)"


def _pattern(expression: str, flags: int = re.IGNORECASE) -> Find:
    compiled = re.compile(expression, flags)
    return lambda text: [match["answer"] for match in compiled.finditer(text, max(0, len(text) - TAIL_CHARACTERS))]


def _tagged(text: str) -> list[str]:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end)
    return [text[start + len("<answer>") : end]] if 0 <= start < end else []


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2].strip()


_SENTENCE = re.compile(r"(?:[^\W\d_]{2,}[\s,]+){3}", re.IGNORECASE)
_CONCLUDES = re.compile(r"(?:so|thus|hence|therefore|then)\b[\s,]|因此|所以", re.IGNORECASE)
_NOTHING = re.compile(r"(?:(?:the|final)\s+)*answer(?:\s+is)?\s*[:：]?|答案是?[:：]?", re.IGNORECASE)
_YES_NO_START = re.compile(r"(?:yes|no|true|false)\b", re.IGNORECASE)


def _short(text: str) -> list[str]:
    """A response of one line that is an answer rather than a sentence."""
    line = text.strip()
    if "\n" in line or len(line) > LINE_CHARACTERS or "\\boxed" in line:
        return []
    if _CONCLUDES.match(line) or _NOTHING.fullmatch(line):
        return []
    return [line] if _YES_NO_START.match(line) or not _SENTENCE.search(line) else []


_CONCLUSION = re.compile(r"(?:\b(?:is|are|equals|gives|get|was)\b|=|≈|\\approx)\s*(?P<answer>[^\s=≈][^=≈]{0,80})$")


def _conclusion(text: str) -> list[str]:
    found = _CONCLUSION.search(_last_line(text)[-LINE_CHARACTERS:])
    return (
        [found["answer"]]
        if found and "\\boxed" not in found["answer"] and not _SENTENCE.search(found["answer"])
        else []
    )


_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?![\w])")


def _only_number(text: str) -> list[str]:
    line = _last_line(text)
    numbers = _NUMBER.findall(line) if len(line) <= 2 * LINE_CHARACTERS else []
    return [numbers[0].rstrip(",")] if len(numbers) == 1 else []


def _line(text: str) -> list[str]:
    line = text.strip()
    too_much = "\n" in line or len(line) > LINE_CHARACTERS or "\\boxed" in line
    return [] if too_much or _NOTHING.fullmatch(line) else [line]


_CHOICE = frozenset({"choice"})
_ONE = r"[(（\[]?[A-J][)）\]]?(?![A-Za-z'’])"
_LETTER = rf"(?P<answer>{_ONE}(?:\s*(?:[,/&、，和或]|\band\b|\bor\b)+\s*{_ONE})*+)"  # "B or C" is not B
RULES: tuple[Rule, ...] = (
    Rule(
        "boxed",
        _boxed,
        (
            (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
            (r"first \boxed{3}, no, \boxed{4}", "4"),
            (r"\boxed{3} was a mistake; it is \boxed{4}", "4"),
            (r"$x = \boxed{1}$ or $\boxed{2}$", "1, 2"),
            (r"\boxed 7", "7"),
            (r"\fbox{B}", "B"),
            (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
            (r"\boxed{\text{The answer is } 5}", "5"),
        ),
        ("\\boxed", "\\fbox"),
    ),
    Rule(
        "tag",
        _tagged,
        (("I think so.\n<answer> 12 </answer>", "12"),),
        ("<answer>",),
    ),
    Rule(
        "hashes",
        _pattern(r"^####[ \t]*(?P<answer>\S[^\n]*)", re.MULTILINE),
        (("6*7=42\n#### 42", "42"),),
        ("####",),
    ),
    Rule(
        "JSON",
        _pattern(r"[\"'](?:short |final[_ ])?answer[\"']\s*:\s*[\"']?(?P<answer>[^\"'\n}]+)"),
        (('{"solution": "2+3", "short answer": "5"}', "5"),),
        ("answer",),
    ),
    Rule(
        "final answer",
        _pattern(rf"\bfinal answer\b(?:\s+to\b[^\n:：]{{1,80}}?)?{_STAR}(?:{_SAY}|\s*\n){_STAR}\s*{_STAR}{_REST}"),
        (
            ("**Final answer**\n\n12", "12"),
            ("**Final Answer:** $x=3$.", "x=3"),
            ("The final answer is 7.", "7"),
            ("**Final Answer**\nThe final answer is 42.", "42"),
        ),
        ("final answer",),
    ),
    Rule(
        "Chinese",
        _pattern(
            r"(?:最终|正确)?(?:答案|结果)(?:选项)?】?[*_]*\s*(?:应该是|应为|应选|是|为|选)?[*_]*\s*[:：]?[*_]*\s*(?P<answer>[^\s。？:：][^\n。？]*)"
        ),
        (
            ("所以答案是 12。", "12"),
            ("**最终答案**：$\\frac{1}{2}$", r"\frac{1}{2}"),
            ("故答案为：B。", "B"),
            ("正确答案是C", "C"),
            ("答案：是", "是"),
            ("【答案】B", "B"),
            ("答案是B吗？不，答案是C", "C"),
        ),
        ("答案", "结果"),
    ),
    Rule(
        "Chinese choice",
        _pattern(rf"(?<![不别])(?<!不[能应该])选(?:择|项)?\s*(?:应为|是|为)?\s*[:：]?\s*{_LETTER}", 0),
        (("综上，故选：D。", "D"), ("所以选 B", "B"), ("因此选项C正确", "C"), ("正确选项为B", "B"), ("选A、C", "A、C")),
        ("选",),
    ),
    Rule(
        "answer is",
        _pattern(rf"\bans(?:wer\b|\b\.?)(?:\s+(?:to|for)\b[^\n:：]{{1,80}}?)?{_STAR}{_SAY}{_STAR}\s*{_STAR}{_REST}"),
        (
            ("Hence the answer is 5 because 2+3=5.", "5"),
            ("The answer to the question is: **blue**.", "blue"),
            ("Answer: (B) 12 cm", "(B) 12 cm"),
            ("**Answer:** 3/4", "3/4"),
            ("**Answer**: $5$", "5"),
            ("The correct answer is $5$, which is odd.", "5"),
            ("Answer:\n12", "12"),
            ("Ans: 12", "12"),
            ("The answer is not 5. The answer is 6.", "6"),
        ),
        ("ans",),
    ),
    Rule(
        "option is",
        _pattern(rf"\b(?:correct|right|best)\s+(?:option|choice|one|statement){_STAR}{_SAY}{_STAR}\s*{_STAR}{_REST}"),
        (("So the correct option is C.", "C"), ("The best choice is **(B)**", "(B)")),
        ("correct", "right", "best"),
    ),
    Rule(
        "is correct",
        _pattern(
            rf"(?:\b[Oo]ption|\b[Cc]hoice|^|[\s*(（]){_STAR}\s*{_LETTER}{_STAR}\s+is\s+(?:the\s+)?(?:correct|right|best|answer)",
            0,
        ),
        (("Therefore, option B is correct.", "B"), ("(C) is the right one", "(C)")),
        (" is ",),
        _CHOICE,
    ),
    Rule(
        "letter",
        _pattern(
            r"(?:\b(?:[Oo]ption|[Cc]hoice|[Cc]hoose|[Ss]elect|[Pp]ick|go with)\s+"
            rf"{_STAR}|^{_STAR}){_LETTER}(?=[).:,*]|\s*$|\s+(?:because|since|as)\b)",
            re.MULTILINE,
        ),
        (
            ("I would choose (A).", "(A)"),
            ("Thinking about it...\n**D**", "D"),
            ("Both fit.\nB. 12", "B"),
            ("B or C", "B or C"),
        ),
        (),
        _CHOICE,
    ),
    Rule(
        "letter and text",
        _pattern(rf"^{_STAR}(?P<answer>{_ONE}[ \t]+\S[^\n]{{0,60}})\s*\Z", re.MULTILINE),
        (("Both fit.\nB 12 cm", "B 12 cm"),),
        (),
        _CHOICE,
    ),
    Rule("short", _short, (("42", "42"), ("x = 5", "x = 5"), ("Yes, it is larger", "Yes, it is larger"))),
    Rule(
        "conclusion",
        _conclusion,
        (
            ("The sum of both numbers is 7.", "7"),
            ("We add them.\n3 + 4 = 7", "7"),
            ("So we get $x=\\frac12$.", r"\frac12"),
            ("Therefore, x = 12.", "12"),
        ),
    ),
    Rule(
        "only number",
        _only_number,
        (("We count them one by one.\nHe has 7 apples left.", "7"),),
        (),
        NUMBER_TYPES,
    ),
    Rule("line", _line, (("The cat sat on the mat", "The cat sat on the mat"),)),
)
_AGAIN = tuple(rule for rule in RULES if rule.name in ("final answer", "answer is"))

# ---- tidying

_OPEN, _CLOSE = "<think>", "</think>"
_WRAP = re.compile(
    r"^(?:\*\*|__|`|\$\$?|\\\(|\\\[|[\"'“‘「])(?P<inner>.+?)(?:\*\*|__|`|\$\$?|\\\)|\\\]|[\"'”’」])$", re.DOTALL
)
_CLAUSE = re.compile(
    r"(?:[.。!]\s+(?=[A-Z*])|[,;，；]?\s(?:because|since|as (?:we|required|desired|stated)|which|where we|so that"
    r"|given that|I (?:hope|think|believe|guess))\b|[，。；]).*$",
    re.DOTALL,
)


def tidy(answer: str) -> str:
    """An announced answer without the sentence around it: emphasis, quotes, math signs and the final stop go."""
    answer = _CLAUSE.sub("", answer.strip()[:ANSWER_CHARACTERS]) if len(answer) > 1 else answer
    for _ in range(6):
        before = answer
        answer = answer.strip().rstrip("。")
        if answer.endswith(".") and not answer.endswith(".."):
            answer = answer[:-1]
        answer = answer.strip("*") if answer.count("**") % 2 else answer
        answer = answer.strip("$") if answer.count("$") % 2 and "\\$" not in answer else answer
        wrapped = _WRAP.match(answer)
        if wrapped and "$" not in wrapped["inner"]:
            answer = wrapped["inner"]
        if answer == before:
            break
    return answer.strip()


def _parts(text: str) -> tuple[list[str], bool]:
    """The parts of a response to search, best first, and whether its last thought is unfinished."""
    thought, mark, after = text.rpartition(_CLOSE)
    if _OPEN in after:
        return [after[: after.index(_OPEN)]] if mark else [], True
    return [after, thought] if mark else [after], False


def _apply(rule: Rule, text: str, lower: str) -> str:
    if rule.words and not any(word in lower for word in rule.words):
        return ""
    for candidate in reversed(rule.find(text)):
        answer = candidate if rule.name == "boxed" else tidy(candidate)
        if answer:
            return answer
    return ""


def find_answer(text: str, answer_type: str = "") -> tuple[str, str] | None:
    """(final answer, name of the rule that found it), or None; see ``extract``."""
    parts, unfinished = _parts(text)
    for part in parts:
        boxed = _apply(RULES[0], part, part)
        if boxed:
            if "answer" in boxed.lower():  # a whole sentence in the box
                flat = TEXT_COMMAND.sub(r"\1", boxed)
                boxed = next(filter(None, (_apply(inner, flat, flat.lower()) for inner in _AGAIN)), boxed)
            return boxed, RULES[0].name
        lower = part[-TAIL_CHARACTERS:].lower()
        for rule in RULES[1:]:
            if (rule.types is not None and answer_type not in rule.types) or (unfinished and not rule.words):
                continue
            answer = _apply(rule, part, lower)
            if answer:
                for inner in _AGAIN:  # "**Final answer** The answer is 5"
                    answer = _apply(inner, answer, answer.lower()) or answer
                return answer, rule.name
        if part.strip():
            break
    return None


def extract(text: str, answer_type: str = "") -> str | None:
    r"""The final answer of a response as text, or None.

    ``answer_type`` (one of ``rules.TYPES`` or "") switches on the rules that are meant for one type.

    >>> extract(r"<think>1+1</think>The answer is \boxed{2}.")
    '2'
    """
    found = find_answer(text, answer_type)
    return found[0] if found else None
