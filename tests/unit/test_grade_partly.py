"""Answers that algebra reads in part, lists with repeated values, tiny values, formulas that look like quantities.

The gold answers have the forms of real ones: each was found by changing one number, letter or sign of many.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.types import GradeItem
from tests.support import grade_kinds


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1, timeout_seconds=20.0) as instance:
        yield instance


def verdicts(grader: Grader, gold: str, *said: str, answer_type: str = "", rules: str = "") -> list[str]:
    items = [GradeItem("a", f"\\boxed{{{one}}}", gold, answer_type, (), rules) for one in said]
    return [grade.verdict for grade in grader.grade_many(items)]


PARTS = "①$1.2\\times 10^5 Pa$\u3000②$1.{} m^3$"
STEPS = r"(1) 2; (2) $y={}\frac{{3}}{{5}} x+4 \quad(0<x<8)$"
PARTLY_READ = [  # (gold answer, wrong, right)
    (
        r"T = \frac{\pi L}{2nv_0} (n=1, 2, 3, ...)",
        r"T = \frac{L}{2nv_0} (n=1, 2, 3, ...)",
        r"T=\frac{\pi L}{2nv_0} (n=1, 2, 3, ...)",
    ),
    (
        r"(\frac{3}{2})^{3} \frac{V_{\mathrm{th}}^{2} \epsilon A}{d_{0}^{3}}",
        r"(\frac{3}{2})^{8} \frac{V_{\mathrm{th}}^{2} \epsilon A}{d_{0}^{3}}",
        r"\frac{27}{8} \frac{\epsilon A V_{th}^2}{d_0^3}",
    ),
    (
        r"(\frac{\rho_0}{\rho_{\text{oil}}}-1) \frac{\rho_{0} g h^{2} w}{2}",
        r"(\frac{\rho_0}{\rho_{\text{oil}}}+1) \frac{\rho_{0} g h^{2} w}{2}",
        r"\frac{1}{2}\rho_0gh^2w(\frac{\rho_0}{\rho_{oil}}-1)",
    ),
    (
        r"I=\frac{V_{0} \pi \sigma l}{\ln 3}",
        r"I=\frac{V_{3} \pi \sigma l}{\ln 0}",
        r"\frac{\pi \sigma l V_0}{\ln 3}",
    ),
    (
        r"p(z)=p(0) e^{-\frac{\mu g}{R T_{0}} z}",
        r"p(z)=p(0) e^{+\frac{\mu g}{R T_{0}} z}",
        r"p(z)=p(0) e^{-\frac{\mu g}{R T_0} z}",
    ),
    (
        r"t_{r \rightarrow 0}=\pi \sqrt{\frac{r_{0}^{3}}{8 G m}}",
        r"t_{r \rightarrow 0}=\sqrt{\frac{r_{0}^{3}}{8 G m}}",
        r"t_{r \rightarrow 0} = \pi \sqrt{\frac{r_0^{3}}{8 G m}}",
    ),
    (PARTS.format(5), PARTS.format(3), PARTS.format(5)),
    (STEPS.format("-"), STEPS.format("+"), STEPS.format("- ")),
    (
        r"T(x)=\frac{\sqrt{150^2+x^2}}{50}, [0,300]",
        r"T(x)=\frac{\sqrt{150^2-x^2}}{50}, [0,300]",
        r"T(x)=\frac{\sqrt{150^2+x^2}}{50}, [0,300]",
    ),
    (r"20,000(3-\sqrt 3)", r"20,000(3+\sqrt 3)", r"20000(3-\sqrt{3})"),
    (
        r"n[\log_2 n]+2(n-2^{[\log_2 n]})",
        r"n[\log_2 n]+6(n-2^{[\log_2 n]})",
        r"n[\log_2 n]+2(n-2^{[\log_2 n]})",
    ),
    (r"\frac{2\pi^2mE^2_0}{B^2_0}", r"\frac{2\pi^2mE^2_1}{B^2_0}", r"\frac{2\pi^2mE^2_0}{B^2_0}"),
    (r"(-\infin , -2 ] \cup [5, +\infin)", r"(-\infin , -2 ] \cup [9, +\infin)", r"(-\infty,-2]\cup[5,\infty)"),
    ("\\frac{36mg}{55}\u30000", "\\frac{0mg}{55}\u300036", r"\frac{36mg}{55}, 0"),
    (r"\lfloor\sqrt{n-1}\rfloor", r"\lfloor\sqrt{n+1}\rfloor", r"\lfloor\sqrt{-1+n}\rfloor"),
]
REPEATED = [
    ("402, 401, 401, 401", "401, 402, 402, 402", "401, 401, 402, 401"),
    ("16,3,1,1", "1,3,16,16", "1, 1, 3, 16"),
    ("-2,-2", "-2", "-2, -2"),
    ("a=1，b=1", "a=1", "a=1, b=1"),
    ("0,0", "0", "0, 0"),
    ("x=3 or x=3", "4", "3"),
    (r"6:\pi", r"\frac{\pi}{6}", r"\frac{6}{\pi}"),
    (r"\{1,1,2\}", r"\{1,3\}", r"\{2,1\}"),
]


@pytest.mark.parametrize(("gold", "wrong", "right"), [*PARTLY_READ, *REPEATED])
def test_wrong_and_right(grader: Grader, gold: str, wrong: str, right: str) -> None:
    assert verdicts(grader, gold, wrong, right) == ["wrong", "correct"]


@pytest.mark.parametrize("gold", [r"2.39078 \times 10^{-15}", r"\frac{2^{98}}{99!}", r"3(\sqrt{3}+1)\times 10^{-10} s"])
def test_a_tolerance_says_nothing_of_tiny_values(grader: Grader, gold: str) -> None:
    """OlympiadBench allows a difference of 1e-8, for values about 1."""
    changed = gold.replace("3", "4").replace("8", "1")
    assert verdicts(grader, gold, gold, changed, "0", rules="olympiadbench") == ["correct", "wrong", "wrong"]
    assert verdicts(grader, "0.3333333333", "0.333333333", rules="olympiadbench") == ["correct"]


@pytest.mark.parametrize("gold", ["2mg", "2 L", r"\lambda_{\max}=2 L"])
def test_a_formula_is_no_quantity(grader: Grader, gold: str) -> None:
    assert verdicts(grader, gold, "2", gold, answer_type="Expression") == ["wrong", "correct"]
    assert verdicts(grader, "2 m/s", "2", answer_type="Numerical") == ["correct"]


def test_a_name_that_is_cut_off_within_its_bracket(grader: Grader) -> None:
    assert verdicts(grader, "0.36", "B) = 0.36", "B) = 0.63") == ["correct", "wrong"]


def test_base_ten_is_the_number(grader: Grader) -> None:
    assert verdicts(grader, "9", "9_{10}", "9_2", "9_{12}") == ["correct", "wrong", "wrong"]


STATEMENTS = [  # (gold answer, wrong, right)
    (r"1+3+5+7=4^{2}", r"1+3+2+7=4^{2}", r"1+3+5+7=4^2"),
    (
        r"\frac{7}{\sqrt{5}\sqrt{5}}=\frac{7}{10}",
        r"\frac{7}{\sqrt{5}\sqrt{5}}=\frac{7}{12}",
        r"\frac7{\sqrt5\sqrt5}=0.7",
    ),
    (r"3\times 10^{-29} m^3", "0", r"30 \times 10^{-30} m^3"),
]
LETTERS = [
    (r"\left[1-\frac{R}{r}\right] k", r"\left[1-\frac{r}{R}\right] k", r"k(1-\frac{R}{r})"),
    (r"\frac{qRB^2}{m} (1-\frac{R}{R'})", r"\frac{qRB^7}{m} (1-\frac{R}{R'})", r"\frac{qRB^2}{m}(1-\frac{R}{R'})"),
    (r"\frac{R}{r}[x+1]", r"\frac{r}{R}[x+1]", r"\frac{R(1+x)}{r}"),
]


@pytest.mark.parametrize(("gold", "wrong", "right"), [*STATEMENTS, *LETTERS])
def test_statements_of_numbers_and_letters_that_algebra_confuses(
    grader: Grader, gold: str, wrong: str, right: str
) -> None:
    assert verdicts(grader, gold, wrong, right) == ["wrong", "correct"]


@pytest.mark.parametrize(("said", "wanted"), [("2.29e-3", "wrong"), ("0", "wrong"), ("1.49e-4", "correct")])
def test_a_tolerance_above_the_value_is_one_of_its_mantissa(grader: Grader, said: str, wanted: str) -> None:
    item = GradeItem("a", f"\\boxed{{{said}}}", "1.488e-4", "", (), "olympiadbench", 0.02)
    assert [grade.verdict for grade in grader.grade_many([item])] == [wanted]


def test_a_changed_digit_is_never_rewarded(grader: Grader) -> None:
    """Of all gold answers of the pairs written by hand, with one digit changed in each."""
    chance = random.Random(0)
    lines = Path(grade_kinds.__file__).with_name("grade_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = {  # benchmarks have tolerances
        (p["gold"], p.get("type", "")) for p in map(json.loads, lines) if not p.get("options") and not p.get("rules")
    }
    items = []
    for gold, answer_type in sorted(pair for pair in pairs if re.search("[0-9]", pair[0])):
        place = chance.choice([match.start() for match in re.finditer("[0-9]", gold)])
        other = chance.choice([digit for digit in "123456789" if digit != gold[place]])
        said = f"\\boxed{{{gold[:place]}{other}{gold[place + 1 :]}}}"
        items.append(GradeItem(said, said, gold, answer_type))
    assert len(items) > 1_000
    rewarded = [grade.id for grade in grader.grade_many(items) if grade.verdict == "correct"]
    assert [said for said in rewarded if r"\lfloor" not in said and r"\binom" not in said] == []  # equal all the same


def test_isotopes_have_one_atomic_number(grader: Grader) -> None:
    gold = r"^{235}_{92}\mathrm{U}"
    assert verdicts(grader, gold, r"^{235}_{12}\mathrm{U}", r"^{235}U", r"^{235}_{92}U") == [
        "wrong",
        "correct",
        "correct",
    ]
