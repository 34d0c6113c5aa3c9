"""Answers between marks: <answer> tags and the key "answer" of JSON."""

from __future__ import annotations

import re

from sophia_mcore.verify.reading.boxes import BETWEEN

TAIL_CHARACTERS = 20_000  # marker rules look at this much of the end; \\boxed{} is searched everywhere


def tagged(text: str) -> list[tuple[int, str]]:
    """The last tagged answer; tags joined by nothing but "and", "or" or commas are one answer."""
    parts: list[str] = []
    first = end = len(text)
    while (close := text.rfind("</answer>", 0, end)) >= 0:
        start = text.rfind("<answer>", 0, close)
        if start < 0 or (parts and not BETWEEN.fullmatch(text, close + len("</answer>"), first)):
            break
        parts.append(text[start + len("<answer>") : close].strip())
        first = end = start
    return [(first, ", ".join(reversed(parts)) if len(parts) > 1 else parts[0])] if parts else []


_KEY = (  # "answer", "short answer", "short_answer", "finalAnswer", "answer_text", "answerChoice"
    r"(?:(?:short|final|correct|best|my|model|predicted)[\s_-]?)?answer(?:[\s_-]?(?:text|value|choice|option|letter))?"
)
_OTHER_KEY = (  # they may name another thing where the object holds more than one of them
    r"(?:(?:final|correct|selected|chosen|predicted)[\s_-]?)?(?:result|value|choice|option|prediction)"
    r"(?:[\s_-]?letter)?"
)
_VALUE = (
    r"\s*:\s*(?:\[(?P<list>[^\]\n]{0,400})\]"
    r"|\"(?P<quoted>(?:[^\"\\\n]|\\.){1,2000})\"(?=\s*(?:[,}]|\Z))|[\"']?(?P<answer>[^\"'\n}\[]+))"
)
_JSON = re.compile(rf"[\"']{_KEY}[\"']{_VALUE}", re.IGNORECASE)
_OTHER = re.compile(rf"[\"']{_OTHER_KEY}[\"']{_VALUE}", re.IGNORECASE)
_ANY_ANSWER = re.compile(r"[\"'][^\"'\n:]{0,30}answer[^\"'\n:]{0,30}[\"']\s*:", re.IGNORECASE)
_OBJECT = re.compile(r"\s*(?:```\w*\s*)?\{(?P<inner>.*)\}\s*(?:```\s*)?", re.DOTALL)
_QUOTED = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")
_ESCAPED = re.compile(r"\\([\\\"/])")


def json_values(text: str) -> list[tuple[int, str]]:
    """The value of the key "answer" or of another of its names, its escapes undone; the items of a list between commas.

    "result", "value", "choice" and the like count where the response is one plain object with one such key alone.

    >>> json_values('{"short_answer": "5"}'), json_values('{"result": 5}'), json_values('{"value": 5, "answer": 6}')
    ([(20, '5')], [(12, '5')], [(24, '6')])
    """
    found = [(match.end(), _value(match)) for match in _JSON.finditer(text, max(0, len(text) - TAIL_CHARACTERS))]
    return found or _of_other_key(text)


def _of_other_key(text: str) -> list[tuple[int, str]]:
    found = _OBJECT.fullmatch(text) if len(text) <= TAIL_CHARACTERS and text.lstrip()[:1] in "{`" else None
    if found is None or _ANY_ANSWER.search(text) or set("{}") & set(_QUOTED.sub("", found["inner"])):
        return []
    others = list(_OTHER.finditer(text))
    return [(others[0].end(), _value(others[0]))] if len(others) == 1 else []


def _value(match: re.Match[str]) -> str:
    if match["quoted"] is not None:
        return _ESCAPED.sub(r"\1", match["quoted"])
    listed = match["list"]
    items = [item.strip(" \"'") for item in listed.split(",")] if listed else []
    numbers = all(item.lstrip("-").replace(".", "", 1).isdigit() for item in items)
    return f"[{', '.join(items)}]" if listed and numbers else ", ".join(items) or match["answer"] or ""
