"""Gold answers that hold several: alternatives of which any is right, and numbered parts of which all must be."""

from __future__ import annotations

import ast
import re
from functools import lru_cache

from sophia_mcore.verify.text.normalize import MAX_DEPTH, depth, split_top

MAX_LITERAL = 2_000  # characters of a list that is read
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_NO_LITERAL = re.compile(r"\d[A-Za-z_]|\\")
_AND = re.compile(r"(\d),?\s+and\s+(?=-?\d)")
_OR_ELSE = re.compile(r"\s*(?:\\?#\s*){2}\s*")
_LABEL = re.compile(r"(?:(?<=^)|(?<=[\s;；,，。.、]))[(（]\s*([1-9])\s*[)）](?!\s*[(（]\s*[1-9]\s*[)）])")


@lru_cache(maxsize=4096)
def python_list(text: str) -> tuple[object, ...] | None:
    """A Python list or tuple as literal; nothing is executed."""
    if not text.startswith(("[", "(")) or len(text) > MAX_LITERAL or depth(text) > MAX_DEPTH:
        return None
    if " and " in text and not _QUOTED.search(text):
        text = _AND.sub(r"\1, ", text)  # "3 and 8" in brackets
    if _NO_LITERAL.search(_QUOTED.sub("", text)):
        return None  # Python would warn about it
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return tuple(value) if isinstance(value, (list, tuple)) else None


def alternatives(answer: str) -> tuple[str, ...]:
    """The answers of which any is right: those of a literal list of texts, or those around "##"; () if it is one.

    >>> alternatives("['24/7', '3.429']"), alternatives(r"5 ## 6"), alternatives("[1, 2]")
    (('24/7', '3.429'), ('5', '6'), ())
    """
    if "#" in answer:
        parts = tuple(part for part in _OR_ELSE.split(answer) if part.strip())
        return parts if len(parts) > 1 else ()
    listed = python_list(answer.strip()) if "'" in answer or '"' in answer else None
    if listed is None or not all(isinstance(item, str) and item.strip() for item in listed):
        return ()
    return tuple(str(item) for item in listed)


_FIRST = re.compile(r"[(（]\s*1\s*[)）]")
_CIRCLED = re.compile("[①-⑨]")
_AND_BEHIND = re.compile(r"(?:(?:^|[\s,;])and|,?\s*\\text\s*\{\s*,?\s*and\s*\})$")  # "(1) 48 and (2) 20"


@lru_cache(maxsize=1 << 12)
def numbered_parts(answer: str) -> tuple[str, ...]:
    """The parts of an answer that is numbered from (1), at least two and none empty; () if it is not.

    >>> numbered_parts("(1) 5; (2) (2, 5)"), numbered_parts("(1)(3)"), numbered_parts("(1, 2)")
    (('5', '(2, 5)'), (), ())
    >>> numbered_parts("(1) 48 and (2) 20"), numbered_parts("① 48; ② 20"), numbered_parts("①③")
    (('48', '20'), ('48', '20'), ())
    """
    if ("1" not in answer and "①" not in answer) or len(answer) > MAX_LITERAL:
        return ()
    if "①" in answer and _FIRST.search(answer) is None:
        answer = _CIRCLED.sub(lambda mark: f"({ord(mark[0]) - ord('①') + 1}) ", answer)
    answer = re.sub(r"\\(?:quad|qquad|\\|,|;|\s)|\$", " ", answer.strip())
    labels = list(_LABEL.finditer(answer))
    wanted = 1
    chosen = []
    for label in labels:
        if int(label[1]) == wanted and (wanted > 1 or not answer[: label.start()].strip()):
            chosen.append(label)
            wanted += 1
    if len(chosen) < 2:
        return ()
    ends = [label.start() for label in chosen[1:]] + [len(answer)]
    parts = tuple(
        _AND_BEHIND.sub("", answer[a.end() : b].rstrip()).strip(" \t\n;；,，。.、")
        for a, b in zip(chosen, ends, strict=True)
    )
    return parts if all(parts) else ()


_LABELLED = re.compile(
    r"(?:the\s+)?(?P<label>[a-z]{3,20})\s*(?::|=|\bis\b|\bare\b)\s*(?P<value>\S.*?)"
    r"(?=[,;]?\s*(?:\band\b\s*)?(?:the\s+)?\b[a-z]{3,20}\s*(?::|=|\bis\b|\bare\b)|\s*$)",
    re.IGNORECASE | re.DOTALL,
)


@lru_cache(maxsize=1 << 12)
def labelled_parts(answer: str) -> tuple[tuple[str, str], ...]:
    """(word, value) of an answer that names at least two things in words, by the words; () if it is not of that form.

    >>> labelled_parts("The domain is [1, 2) and the range is (0, 6]")
    (('domain', '[1, 2)'), ('range', '(0, 6]'))
    """
    if len(answer) > 300 or " " not in answer:
        return ()
    found, position = [], 0
    for match in _LABELLED.finditer(answer):
        if answer[position : match.start()].strip(" ,;\n").casefold() not in ("", "and"):
            return ()
        found.append((match["label"].casefold(), match["value"].strip(" ,;.")))
        position = match.end()
    whole = not answer[position:].strip(" .") and len({label for label, _ in found}) == len(found) > 1
    return tuple(sorted(found)) if whole else ()


def in_order(text: str, count: int) -> tuple[str, ...]:
    """``count`` parts of an answer without label, between commas or semicolons; () if it has others."""
    parts = split_top(text, ";") or []
    parts = parts if len(parts) == count else split_top(text, ",") or []
    return tuple(parts) if len(parts) == count and all(parts) else ()
