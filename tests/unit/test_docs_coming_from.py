"""Every name of ours in docs/coming_from.md is a setting of the schema, or a command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sophia_mcore.config.reference import explain_setting
from sophia_mcore.errors import UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming_from.md"


def rows() -> list[list[str]]:
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line[:1] == "|"
    ]
    return [cells for cells in found if cells[1] != "here" and set(cells[0]) - {"-"}]


def ours() -> list[str]:
    """Code in the second column of all tables, and names with a dot in the third."""
    found = [name for cells in rows() for name in re.findall(r"`([^`]+)`", cells[1])]
    found += [n for cells in rows() for n in re.findall(r"`([a-z]\w*(?:\.\w+)+)`", cells[2])]
    return sorted(set(found))


def test_the_page_has_all_three_tables() -> None:
    assert len(rows()) > 90 and all(len(cells) == 3 for cells in rows())


@pytest.mark.parametrize("name", ours())
def test_a_name_of_ours_is_there(name: str) -> None:
    if name.startswith("sophia "):
        from sophia_mcore.cli import app

        commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None}
        assert name.removeprefix("sophia ") in commands
    else:
        assert explain_setting(name.replace("[]", ""))


def test_a_wrong_name_would_be_found() -> None:
    with pytest.raises(UsageError, match=r"rl\.groups"):
        explain_setting("rl.groups")
