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


_JSON = re.compile(
    r"[\"'](?:short |final[_ ])?answer[\"']\s*:\s*(?:\[(?P<list>[^\]\n]{0,400})\]"
    r"|\"(?P<quoted>(?:[^\"\\\n]|\\.){1,2000})\"(?=\s*(?:[,}]|\Z))|[\"']?(?P<answer>[^\"'\n}\[]+))",
    re.IGNORECASE,
)
_ESCAPED = re.compile(r"\\([\\\"/])")


def json_values(text: str) -> list[tuple[int, str]]:
    """The value of the key "answer", its escapes undone; the items of a list between commas."""
    found = []
    for match in _JSON.finditer(text, max(0, len(text) - TAIL_CHARACTERS)):
        if match["quoted"] is not None:
            found.append((match.end(), _ESCAPED.sub(r"\1", match["quoted"])))
            continue
        listed = match["list"]
        items = [item.strip(" \"'") for item in listed.split(",")] if listed else []
        numbers = all(item.lstrip("-").replace(".", "", 1).isdigit() for item in items)
        found.append((match.end(), f"[{listed}]" if listed and numbers else ", ".join(items) or match["answer"] or ""))
    return found
