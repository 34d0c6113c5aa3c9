"""The parts of which the patterns of announcements are made, and how such a pattern finds its answers."""

from __future__ import annotations

import re
from collections.abc import Callable

from sophia_mcore.verify.reading.endings import not_meant
from sophia_mcore.verify.reading.tagged import TAIL_CHARACTERS
from sophia_mcore.verify.text.chosen import not_chosen
from sophia_mcore.verify.text.normalize import DISPLAYS

Find = Callable[[str], list[tuple[int, str]]]

SAY = (
    r"(?:['’]s\s+(?=[(\[*$\\\d]|[A-J](?![\w'’]))|\s*(?:is|are|was|would be|should be"
    r"|must be|will be)\b(?!\s+not\b)\s*:?|\s*(?:→|⇒|-+>|=>)|\s*[:：=])"
)
NOT_ANOTHER = "".join(
    f"(?<!{word} )"
    for word in (
        "of the",
        "of an",
        "twice the",
        "half the",
        "double the",
        "not the",
        "other",
        "wrong",
        "incorrect",
        "old",
        "first",
        "no",
    )
)
STAR = r"[*_`\"']{0,6}"  # bounded, so that thousands of them end
_DISPLAY = r"(?:\\\[|\$\$)\s*\n[^\n]*(?:\n[^\n]*){0,4}?\n?\s*(?:\\\]|\$\$)"  # a formula on lines of its own
_LINES = rf"(?:{DISPLAYS})\*?"
ENVIRONMENT = rf"\\begin\{{{_LINES}\}}[^\n]{{0,300}}?(?:\n[^\n]{{0,300}}?){{0,8}}?\\end\{{{_LINES}\}}"
REST = rf"(?P<answer>{_DISPLAY}|{ENVIRONMENT}|\S[^\n]*)"


def pattern(expression: str, flags: int = re.IGNORECASE, unless: Callable[[str, int], bool] = not_meant) -> Find:
    compiled = re.compile(expression, flags)

    def find(text: str) -> list[tuple[int, str]]:
        found, position = [], max(0, len(text) - TAIL_CHARACTERS)
        while match := compiled.search(text, position):
            if unless(text, match.start()):
                position = max(match.start("answer"), match.start() + 1)  # another may follow on the line
            else:
                found.append((match.start("answer"), match["answer"]))
                position = max(match.end(), position + 1)
        return found

    return find


def unchosen(text: str, start: int) -> bool:
    return not_meant(text, start) or not_chosen(text, start)


ONE = r"[(（\[]?[A-J][)）\]]?+(?![A-Za-z'’])"
_AMOUNT_BESIDE = r"(?:,\s+\\?[-−$€£]?\d[\d.,/]*\s?[A-Za-zµΩ°%]{0,6}(?=[\s.*]*$))?"
LETTER = rf"(?P<answer>{ONE}(?:\s*(?:[,/&、，和或]|\band\b|\bor\b)+\s*{ONE}){{0,12}}+)"  # "B or C" is not B
LETTER_AND_AMOUNT = f"{LETTER[:-1]}{_AMOUNT_BESIDE})"  # "option C, 12 N": not C where that is another's
LETTERS = LETTER.replace(">", ">[A-J]{2,8}(?![A-Za-z])|", 1)  # "ACD" too
LEAVES = r"[Tt](?:his|hat)\s+leaves(?:\s+(?:us\s+with|only))?"
