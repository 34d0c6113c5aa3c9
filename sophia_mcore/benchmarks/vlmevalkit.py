"""The rules by which VLMEvalKit (e8e78f0) reads and compares answers, written anew from their description.

Each rule says what its own code would say, wrong or not, so that numbers agree; docs/benchmarks.md lists where it is
wrong. Text of models is never run: only arithmetic on numbers is read. OlympiadBench is not here: its judger there
calls a function that is missing, so this project's grader takes its place.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sophia_mcore.records import END_OF_THOUGHT, THOUGHT

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILED = "Failed to obtain answer via API"
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_SENTENCE = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_NO_OPTION = "Z"
_LAST_WORDS = 5
_CLOSE = 1e-6


@dataclass(frozen=True, slots=True)
class Ruled:
    """What a rule says of an answer. ``right`` None: only an LLM could tell; without one it counts as wrong.

    ``found``: the answer as read. ``direct``: read without an LLM (its tables call that prefetched).
    ``guessed``: an LLM is asked all the same, and ``right`` only counts where there is none.
    """

    right: bool | None
    found: str = ""
    direct: bool = False
    guessed: bool = False

    @property
    def open(self) -> bool:
        """Whether it asks an LLM."""
        return self.right is None or self.guessed


def split_thought(response: str) -> tuple[str, str]:
    """(answer, thought) of a response: what follows </think>, and what stands between the tags; else all of it.

    >>> split_thought("<think>two and two</think> 4")
    ('4', 'two and two')
    """
    thought, mark, answer = response.rpartition(END_OF_THOUGHT)
    return (answer.strip(), thought.replace(THOUGHT, "", 1).strip()) if mark else (response, "")


# ---- letters


def infer_letter(answer: str, choices: Mapping[str, str]) -> str:
    """The option that an answer names by letter or by text; "Z" for a refusal; "" where no rule reads one.

    >>> infer_letter("The answer is B.", {"A": "red", "B": "blue"}), infer_letter("blue", {"A": "red", "B": "blue"})
    ('B', 'B')
    """
    return _letter(answer, choices) or _by_text(answer, choices)


def _letter(answer: str, choices: Mapping[str, str]) -> str:
    if _FAILED in answer:
        return ""
    if any(refusal in answer for refusal in _REFUSALS):
        return _NO_OPTION
    words = answer.translate(_PUNCTUATION).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - _LAST_WORDS:
        return named[0]
    if not named and _NO_OPTION in words:
        return _NO_OPTION
    sentence = _SENTENCE.search(answer)  # no word end: "answer is Binary" is B there
    letter = sentence[1].upper() if sentence else ""
    return letter if letter in choices else ""


def _by_text(answer: str, choices: Mapping[str, str]) -> str:
    lowered = answer.lower()
    if len(lowered) > 2 * sum(len(text) for text in choices.values()):
        return ""
    held = [letter for letter, text in choices.items() if text.lower() in lowered]
    return held[0] if len(held) == 1 else ""


def letters(values: Mapping[str, Any], answer: str, reply: str | None) -> Ruled:
    """MMMU: the letter of the right option. An open question has two options: the gold answer, and any other."""
    choices = dict(values["options"]) or {"A": values["answer"], "B": "Other Answers"}
    key = values["answer"] if len(values["answer"]) == 1 and values["answer"].isupper() else "A"
    found = infer_letter(answer, choices)
    if found:
        return Ruled(found == key, found, True)
    found = infer_letter(reply, choices) if reply is not None else ""
    return Ruled(found == key if found else None, found)


def answer_line(values: Mapping[str, Any], answer: str, reply: str | None) -> Ruled:
    """MMMU-Pro: the letter after the last line that begins with "Answer:"; else as ``letters``."""
    lines = [line.strip() for line in answer.strip().split("\n")]
    marked = [line.removeprefix("Answer:") for line in lines if line.startswith("Answer:")]
    if marked:
        capitals = {character for character in marked[-1] if "A" <= character <= "Z"}
        answer = capitals.pop() if len(capitals) == 1 else marked[-1]
    return letters(values, answer, reply)


# ---- MathVista, MathVision, MathVerse


def mathvista(values: Mapping[str, Any], answer: str, reply: str | None) -> Ruled:
    """MathVista: letters for a choice; integers and floats as Python reads them, unrounded; lists are never right.

    Zero is not read without an LLM there: Python takes it for "nothing found".
    """
    if values["question_type"] == "multi_choice":
        choices, key = dict(values["options"]), values.get("answer_option", "")
        found = infer_letter(answer, choices)
        if found:
            return Ruled(found == key, found, True)
        found = infer_letter(reply, choices) if reply is not None else ""
        return Ruled(found == key if reply is not None else None, found)
    if _same_number(answer, values) and float(answer) != 0:
        return Ruled(True, answer, True)
    return Ruled(None if reply is None else _same_number(reply, values), reply or "")


def _same_number(text: str, values: Mapping[str, Any]) -> bool:
    read: dict[str, Callable[[str], float]] = {"integer": int, "float": float}
    if values["answer_type"] not in read:
        return False
    try:
        return read[values["answer_type"]](text) == read[values["answer_type"]](values["answer"])
    except (ValueError, OverflowError):
        return False


def mathvision(values: Mapping[str, Any], answer: str, reply: str | None) -> Ruled:
    """MathVision: letters for a choice; else equal text, or rational numbers within 1e-6 (no roots, no pi)."""
    choices = dict(values["options"])
    if choices:
        found = infer_letter(answer, choices)
        if not found and reply is not None:
            read = infer_letter(reply, choices)
            return Ruled(read == values["answer"], read)
        return Ruled(found == values["answer"] if found else None, found, bool(found))
    if _equal(answer, values["answer"]):
        return Ruled(True, answer, True)
    return Ruled(None if reply is None else _equal(reply, values["answer"]), reply or "")


def _equal(text: str, gold: str) -> bool:
    text, gold = text.lower().strip(), gold.lower().strip()
    if text == gold:
        return True
    values = rational(text), rational(gold)
    return None not in values and abs(values[0] - values[1]) < _CLOSE  # type: ignore[operator]


def mathverse(values: Mapping[str, Any], answer: str, reply: str | None) -> Ruled:
    """MathVerse: an LLM extracts; the extraction equals the gold text, or an LLM decides."""
    if reply is None:
        return Ruled(None)
    return Ruled(True if reply.strip() == values["answer"].strip() else None, reply)


# ---- DynaMath


def dynamath(values: Mapping[str, Any], answer: str, reply: str | None) -> Ruled:
    """DynaMath: "short answer" of the JSON in the response; else the whole text, read by its answer type."""
    kind, gold = values["answer_type"], values["answer"]
    first, last = answer.find("{"), answer.rfind("}")
    text = (answer[first : last + 1] if 0 <= first < last else answer).replace("\\", "")
    short = _short_answer(text)
    found = _parse(short, kind) if short is not None else None
    direct = found is not None
    if found is None:
        found = _parse(text, kind)
    if found is None and reply is not None:
        found = _parse(reply, kind)
    if found is None:
        guessed = kind == "multiple choice" and gold in text[:3].upper()  # "The" holds an E there
        return Ruled(True if guessed else None if reply is None else False, guessed=guessed and reply is None)
    if isinstance(found, float):
        return Ruled(abs(found - float(gold)) <= 0.001, str(found), direct)
    right = found == gold if kind == "multiple choice" else found.lower() in gold.lower()
    return Ruled(right, found, direct)


def _short_answer(text: str) -> str | None:
    try:
        read = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    short = read.get("short answer") if isinstance(read, dict) else None
    return short if isinstance(short, str) else None  # a number fails there too


def _parse(text: str, kind: str) -> float | str | None:
    if not text.strip():
        return None  # there an empty text is contained in every gold answer
    if kind == "float":
        head, pi, _ = (text if text.isdigit() else text.split(" ")[0]).partition("π")
        try:
            return float(head) * (math.pi if pi else 1.0)  # "2π/3" is 2π there
        except ValueError:
            return None
    if kind == "multiple choice":
        if len(text) == 1:
            return text.upper()
        named = [letter for letter in "ABCDE" if letter in text.upper()]
        return named[0] if len(named) == 1 else None
    return text


# ---- numbers

_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LARGEST_POWER = 64
_LONGEST = 200


def rational(text: str) -> float | None:
    r"""The value of arithmetic on numbers, as Python or as LaTeX; None for any other text.

    >>> rational("\\frac{1}{4}"), rational("$2 \\cdot 3$"), rational("\\sqrt{2}")
    (0.25, 6.0, None)
    >>> rational("1\\frac{1}{2}"), rational("25\\%"), rational("1{,}000"), rational("\\(007\\)")
    (1.5, 0.25, 1000.0, 7.0)
    """
    if len(text) > _LONGEST:
        return None
    text = _bare(text)
    for _ in range(4):
        text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
    text = re.sub(r"\^\{?\\circ\}?", "", text)
    text = re.sub(r"(?<=\d)\s*:\s*(?=\d)", "/", text)  # a ratio
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/").replace("^", "**")
    text = text.replace("{", "(").replace("}", ")")
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    return float(value) if math.isfinite(value) else None


_WRAPPED = re.compile(r"\\(?:boxed|text|mathrm|mathbf)\{([^{}]*)\}")
_SPACE = re.compile(r"\\[,;:! ]|\\(?:quad|displaystyle|left|right)(?![a-zA-Z])|~")


def _bare(text: str) -> str:
    """Arithmetic without what only sets it: signs of formulas and boxes, spaces, digit groups, signs of percent."""
    text = text.strip().strip("$").strip().removeprefix(r"\$")
    text = re.sub(r"^\\\((.*)\\\)$", r"\1", text, flags=re.DOTALL)
    boxed = re.fullmatch(r"\\boxed\{(.*)\}", text)
    text = _SPACE.sub("", _WRAPPED.sub(r"\1", boxed[1] if boxed else text)).replace("{,}", ",")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    text = re.sub(r"(\d+(?:\.\d+)?)\s*\\?%", r"(\1/100)", text)
    return re.sub(r"(?<![\d.])(\d+)(\\[dt]?frac\{\d+\}\{\d+\})", r"(\1+\2)", text).strip()


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) <= _LARGEST_POWER and (left >= 0 or right.is_integer()):
            return float(left**right)
        if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](left, right)
    raise ValueError("not arithmetic on numbers")


Rule = Callable[[Mapping[str, Any], str, "str | None"], Ruled]
RULES: dict[str, Rule] = {
    "letters": letters,
    "answer_line": answer_line,
    "mathvista": mathvista,
    "mathvision": mathvision,
    "mathverse": mathverse,
    "dynamath": dynamath,
}
