r"""Finding the final answer in a response.

``announcements.RULES`` is tried from top to bottom; within a rule the last match in the text wins, and for multiple
choice the last announcement of all. What follows the last ``</think>`` is searched first, and the thought only when
nothing follows it; a thought that never ends has no answer.
"""

from __future__ import annotations

import re

from sophia_mcore.verify.announcements import (
    ANNOUNCEMENTS,
    ANSWER_CHARACTERS,
    RULES,
    TAIL_CHARACTERS,
    Rule,
)
from sophia_mcore.verify.boxes import cut_off
from sophia_mcore.verify.normalize import TEXT_COMMAND

_AGAIN = tuple(rule for rule in RULES if rule.name in ("final answer", "answer is"))

# ---- tidying

_OPEN, _CLOSE = "<think>", "</think>"
_WRAP = re.compile(
    r"^(?:\*\*|__|`|\$\$?|\\\(|\\\[|[\"'“‘「])(?P<inner>.+?)(?:\*\*|__|`|\$\$?|\\\)|\\\]|[\"'”’」])$", re.DOTALL
)
_CLAUSE = re.compile(
    r"(?:[.。!]\s+(?=[A-Z*])|[,;，；]?\s(?:because|since|as (?:we|required|desired|stated)|which|where we|so that"
    r"|given that|I (?:hope|think|believe|guess))\b|,\s(?:not|rather than|instead of)\b|\s\(not\b|[，。；]).*$",
    re.DOTALL,
)


_DENIED_FIRST = re.compile(r"^\s*not\s[^,.;\n]{1,40}?,?\sbut\s+")  # "not 9 but 10"
_YES_AND_NO = re.compile(
    r"\W*(?:yes|no|true|false)\b.*\b(?:yes|no|true|false|but|actually|wait|however)\b", re.IGNORECASE | re.DOTALL
)
_AMOUNT = re.compile(r"\$\s?\d[\d,.]*(?:\s+[a-z]+)?$")  # a dollar sign, not the beginning of a formula


def tidy(answer: str) -> str:
    """An announced answer without the sentence around it: emphasis, quotes, math signs and the final stop go."""
    answer = _DENIED_FIRST.sub("", answer)
    if len(answer) > 1:
        answer = answer.strip()[:ANSWER_CHARACTERS]
        answer = answer if _YES_AND_NO.match(answer) else _CLAUSE.sub("", answer)
    for _ in range(6):
        before = answer
        answer = answer.strip().rstrip("。")
        if answer.endswith(".") and not answer.endswith(".."):
            answer = answer[:-1]
        answer = answer.strip("*") if answer.count("**") % 2 else answer
        if answer.count("$") % 2 and "\\$" not in answer:
            answer = f"\\{answer}" if _AMOUNT.match(answer) else answer.strip("$")
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
    for _, candidate in reversed(rule.find(text)):
        answer = candidate if rule.name == "boxed" else tidy(candidate)
        if answer:
            return answer
    return ""


_TAKEN_BACK = re.compile(
    r"(?:[.!?…—]|\n)\s*(?:(?:but|oh|no|hmm)\b[\s,]*)?(?:wait|actually|scratch that|sorry|correction)\b", re.IGNORECASE
)
_PLAIN_LETTER = re.compile(r"[(\[]?[A-J](?![A-Za-z])")


def _last_announcement(text: str, lower: str, letters_only: bool = False) -> tuple[str, str] | None:
    """The last announcement of all kinds, or of a letter in plain text, and its rule."""
    lower = lower or text.lower()
    found: list[tuple[int, str, str]] = []
    for rule in RULES:
        if rule.name in ANNOUNCEMENTS and (not rule.words or any(word in lower for word in rule.words)):
            found += [(position, answer, rule.name) for position, answer in rule.find(text)]
    for position, candidate, name in sorted(found, key=lambda one: one[0], reverse=True):
        answer = tidy(candidate)
        if _PLAIN_LETTER.match(answer) and _TAKEN_BACK.search(text, position):
            return "", name  # taken back, and no letter is left
        for inner in _AGAIN:
            answer = _apply(inner, answer, answer.lower()) or answer
        if answer and (not letters_only or _PLAIN_LETTER.match(answer)):
            return answer, name
    return None


def find_answer(text: str, answer_type: str = "") -> tuple[str, str] | None:
    """(final answer, name of the rule that found it), or None; see ``extract``."""
    parts, unfinished = _parts(text)
    for part in parts:
        if cut_off(part):
            return None
        boxed = _apply(RULES[0], part, part)
        if boxed and answer_type == "choice":
            later = _last_announcement(part[part.rfind("\\boxed") :], "", letters_only=True)
            if later is not None:
                return later
        if boxed:
            if "answer" in boxed.lower():  # a whole sentence in the box
                flat = TEXT_COMMAND.sub(r"\1", boxed)
                boxed = next(filter(None, (_apply(inner, flat, flat.lower()) for inner in _AGAIN)), boxed)
            return boxed, RULES[0].name
        lower = part[-TAIL_CHARACTERS:].lower()
        if answer_type == "choice" and not unfinished:
            announced = _last_announcement(part, lower)
            if announced is not None:
                return announced
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
    return found[0] if found and found[0] else None
