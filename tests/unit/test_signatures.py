"""What a function of the user's own looks like is read from the file, which is not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.errors import UsageError
from sophia_mcore.launch.trial import try_functions
from sophia_mcore.store.user_files import check_user_files
from tests.unit.test_own_functions import config_of
from tests.unit.test_trial import config_of as trial_config

MINE = """
import functools
from math import sqrt
from typing import Literal, Optional

short = lambda episode, question, *, most=10: 1.0 if len(episode.text) < most else 0.0
same = short
bound = functools.partial(short)
async def later(episode, question): return 1.0
def each(episode, question): yield 1.0
def inner(episode, question):
    def numbers():
        yield 1.0
    return sum(numbers()) + sum(x for x in (1.0,))
def all_of(group, question):
    for one in group:
        yield 1.0
class Reward: ...
try:
    def guarded(episode, question): return 1.0
finally:
    pass
def options(episode, question, *, n: int | None = None, kind: Literal["a", "b"] = "a", levels=(1, 2),
            share: "float | str" = 0.5, old: Optional[bool] = None, other: list[int] = (1,), needed: int = 1):
    return 1.0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["short", "same", "inner", "all_of", "guarded"])
def test_forms_that_work(mine: Path, name: str) -> None:
    config = trial_config(mine, "good", environment="mine.py")
    (mine / "mine.py").write_text(MINE)
    config = config.model_copy(update={"rewards": config_of([{"function": f"mine.py:{name}"}]).rewards, "rl": None})
    check_user_files(config)
    assert f"  {name} (weight 1): mean" in "\n".join(try_functions(config, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("later", "rewards.later: mine.py: 'later' is an 'async def', .*: write 'def'"),
        ("each", "rewards.each: mine.py: each is a generator, .*: give the value with 'return'"),
        ("bound", "'bound' is no function whose parameters can be read without running the file: write it with 'def'"),
        ("sqrt", "'sqrt' is imported, not written here: write a function with 'def' that calls it"),
        ("Reward", "'Reward' is a class: name a function"),
        ("alof", r"no function 'alof' \(did you mean 'all_of'"),
    ],
)
def test_forms_that_do_not(mine: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_user_files(config_of([{"function": f"mine.py:{name}"}]))


@pytest.mark.parametrize(
    "given", [{"n": 3}, {"kind": "b"}, {"share": "all"}, {"share": 2}, {"old": True}, {"needed": 2}]
)
def test_options_by_their_annotation(mine: Path, given: dict[str, Any]) -> None:
    check_user_files(config_of([{"function": "mine.py:options", "options": given}]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": "three"}, r"options: option 'n' must be int or None, as its annotation says \(got 'three'\)"),
        ({"n": True}, "option 'n' must be int or None"),
        ({"kind": "c"}, "option 'kind' must be 'a' or 'b', as its annotation says"),
        ({"old": 1}, "option 'old' must be bool or None"),
        ({"needed": 1.5}, "option 'needed' must be int, as its annotation says"),
        (
            {"levels": 3},
            r"option 'levels' cannot be set: its default \(1, 2\) is a tuple, and an option is a number, a",
        ),
        ({"other": 3}, r"option 'other' cannot be set: its default \(1,\) is a tuple"),
    ],
)
def test_options_of_another_type(mine: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_user_files(config_of([{"function": "mine.py:options", "options": given}]))


@pytest.mark.parametrize(("value", "kind"), [([1, 2], "list"), ({"a": 1}, "table")])
def test_an_option_that_no_option_can_be(mine: Path, value: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=f"and not a {kind}") as caught:
        config_of([{"function": "mine.py:options", "options": {"levels": value}}])
    assert str(caught.value).count("and not a") == 1 and "valid boolean" not in str(caught.value)
