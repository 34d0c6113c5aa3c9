"""Prompt templates: values are data, overrides are checked, the shipped ones hold what the stages need."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia_mcore.data.prompts import NAMES, fill, load_prompt
from sophia_mcore.errors import UsageError

PLACEHOLDERS = {
    "describe": set(),
    "simulate_seeing": {"{caption}", "{question}"},
    "long_thinking": set(),
    "boxed": set(),
    "rethink": set(),
    "judge": {"{question}", "{answer}", "{response}"},
    "extract_answer": {"{question}", "{response}"},
}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_prompts_hold_their_placeholders_and_no_others(name: str) -> None:
    import re

    assert set(re.findall(r"\{[a-z]+\}", load_prompt(name))) == PLACEHOLDERS[name]


def test_long_thinking_asks_for_tags_and_a_box() -> None:
    text = load_prompt("long_thinking")
    assert "<think>" in text and "</think>" in text and r"\boxed{}" in text


def test_values_are_data() -> None:
    """Braces, placeholders and backslashes in a value change nothing else."""
    filled = fill("C={caption} Q={question} {other} {}", caption=r"{question} \1 {0}", question="{caption}")
    assert filled == r"C={question} \1 {0} Q={caption} {other} {}"


def test_override_by_file(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("\nLook at {caption}.\n")
    assert load_prompt("simulate_seeing", file, needs=("caption",)) == "Look at {caption}."
    with pytest.raises(UsageError, match=r"own.txt.*lacks \{question\}"):
        load_prompt("simulate_seeing", file, needs=("caption", "question"))


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"\xff\xfe"])
def test_bad_override_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "own.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"own.txt"):
        load_prompt("describe", file)
