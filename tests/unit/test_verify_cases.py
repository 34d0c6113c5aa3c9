"""The verifier alone: the table of its README, and an interpreter that may not import the rest of the package."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sophia_mcore.verify
from sophia_mcore.verify import GradeItem, Grader, grade_one

README = Path(sophia_mcore.verify.__file__).with_name("README.md")
_ROW = re.compile(r"\| `(?P<gold>[^`]*)` \| (?P<type>\w*) *\| `(?P<response>[^`]*)` \| (?P<verdict>\w+) \|")
MODULES = [module.name for module in pkgutil.walk_packages(sophia_mcore.verify.__path__, "sophia_mcore.verify.")]
CASES = [match.groupdict() for match in map(_ROW.fullmatch, README.read_text().splitlines()) if match]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1, timeout_seconds=5.0) as instance:
        yield instance


def test_the_table_is_read_whole() -> None:
    table = README.read_text().partition("## Cases")[2]
    assert len(CASES) == sum(line.startswith("| `") for line in table.splitlines()) > 10


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['gold']}-{case['response']}")
def test_cases_of_the_readme(grader: Grader, case: dict[str, str]) -> None:
    (grade,) = grader.grade_many([GradeItem("x", case["response"], case["gold"], case["type"])])
    assert grade.verdict == case["verdict"], grade


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_functions(name: str) -> None:
    """Every example in a docstring of the verifier is true, in its rooms too."""
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_one_answer() -> None:
    assert grade_one(r"\boxed{\frac{1}{2}}", "0.5").verdict == "correct"
    assert grade_one("The correct option is (B).", "4", options=("3", "4")).verdict == "correct"
    assert grade_one("I do not know.\nNobody does.", "4").verdict == "no_answer"
    assert grade_one(r"\boxed{3.02}", "3", tolerance=0.05).verdict == "correct"


ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("sophia_mcore.") and name.split(".")[1] not in ("verify", "records", "errors"):
            raise ImportError(name)
        if name.split(".")[0] in ("pydantic", "pyarrow", "torch", "openai"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
from sophia_mcore.verify import grade_one
print(grade_one(r"\\boxed{100 \\text{ cm}}", "1 m").verdict, grade_one(r"\\boxed{(x+1)^2}", "x^2+2x+1").verdict)
"""


def test_it_needs_nothing_of_the_rest_of_the_package() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["correct", "correct"]
