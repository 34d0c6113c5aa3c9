"""Answers that look right and are not, and answers that once broke the grader; each was seen from outside."""

from __future__ import annotations

import pytest

from sophia_mcore.verify.comparing import exact
from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.reading import extract
from sophia_mcore.verify.types import GradeItem


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=1, timeout_seconds=5.0) as instance:
        yield instance


def verdict(grader, gold, prediction, answer_type="", options=()):
    (grade,) = grader.grade_many([GradeItem("a", f"\\boxed{{{prediction}}}", gold, answer_type, options)])
    return grade.verdict


CITIES = ("Paris", "London", "Rome", "a cat")
WRONG = [
    ("B", "B or C"), ("B", "B and C"), ("B", "B and D"), ("B", "(B) or (C)"), ("B", r"B \text{ or } C"),
    ("Yes", "Yes and No"), ("No", "No or yes"), ("Yes", "Yes. No."), ("是", "是的或不是"),
    ("5", "x=5 or y=5"), ("5", "5_0"), ("5", "5_2"), ("5", "5_{2}"), ("101", "101_2"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1,2],[3,5]]"), ("(1,2)", "A(2,1)"), ("3/2", "1 3/2"), ("3/2", "1 1/3"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1,2],[3,4,5]]"), ("100000000", "10⁷"),
    ("5 Mg", "5mg"), ("5mg", "5 Mg"), ("5 MW", "5 mW"), (r"5 \text{ MJ}", r"5 \text{ mJ}"), ("3 μF", "3 mF"),
    ("$20", "20 yuan"), ("20 yuan", r"\$20"), ("€20", "£20"), (r"20 \text{ euros}", "20 dollars"),
    (r"\lfloor\sqrt{n-1}\rfloor", "1"), (r"\lceil \log_2 n\rceil", "f(n)=2"), (r"\lfloor n\rfloor", "n"),
    ("6", r"\frac{2\sqrt 95}{5}"), ("6", "2 3"), ("4 m/s\u30000.5", "8 m/s"), (r"\frac{5 000\pi}{3}", "0"),
    ("5", r"3: \sqrt{5} (or 3\sqrt{5}: 5)"), (r"5 000\pi，75 000\sqrt{3}", "a=0"),
    (r"5 000\pi，75 000\sqrt{3}", "0, 0"),
]  # fmt: skip
RIGHT = [
    ("B", "Option B"), ("B", "B. a red car"), ("Yes", "Yes, there is"), ("No", "No, and there is none"),
    ("5", "x=5"), ("5", "x=5 or x=5"), ("101_2", "101_2"), ("5 MW", "5000 kW"), ("5 kW", "5000 W"), ("3 μF", "3000 nF"),
    ("100000000", "10⁸"), ("2.5e-12", "2.5×10⁻¹²"), ("5 m^2", "5 m²"), ("3/2", "1 1/2"), ("-2 1/4", "-9/4"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1,2],[3,4]]"), ("(1,2)", "A(1,2)"), ("1 kWh", "3.6 MJ"),
    ("5", r"\text{The answer is } 5"), ("4.7 kΩ", "4700 Ω"),
    ("$20", r"\$20"), ("$20", "20 dollars"), ("20 yuan", "20"), ("$20$", "20 yuan"),
    (r"1+\lfloor\frac{n}{2}\rfloor", r"\lfloor\frac n2\rfloor+1"), (r"\sqrt{95}", r"\sqrt 95"), ("3", r"\sqrt[3]27"),
    (r"\frac{5 000\pi}{3}", r"\frac{5000\pi}{3}"), (r"\frac{5000}{3}", r"\frac{5 000}{3}"), ("7/3", "2 1/3"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "prediction"), WRONG)
def test_nearly_right_is_wrong(grader, gold, prediction):
    assert verdict(grader, gold, prediction) == "wrong"


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        ("0.585", "correct"),
        ("0", "wrong"),
        ("0.00112", "wrong"),
        ("0.00585", "correct"),
        ("0.57%", "correct"),
        ("0.5%", "wrong"),
    ],
)
def test_a_tolerance_of_per_cents_is_one_of_per_cents(grader, prediction, wanted):
    (grade,) = grader.grade_many([GradeItem("a", f"\\boxed{{{prediction}}}", "0.58 %", "", (), "olympiadbench", 0.01)])
    assert grade.verdict == wanted


@pytest.mark.parametrize(("gold", "prediction"), RIGHT)
def test_right_stays_right(grader, gold, prediction):
    assert verdict(grader, gold, prediction) == "correct"


@pytest.mark.parametrize(
    ("gold", "prediction", "wanted"),
    [("A", "A. London", "wrong"), ("B", "A. London", "wrong"), ("A", "(A) Berlin", "wrong"), ("A", "A or B", "wrong"),
     ("A", "A. Paris", "correct"), ("A", "A) Paris, in France", "correct"), ("A", "A is right", "correct"),
     ("A", "Paris", "correct"), ("D", "(D) A cat", "correct"), ("D", "D. a cat", "correct"), ("A", "A, D", "wrong"),
     ("A", "(A) (B)", "wrong"), ("A", "Option A or option B", "wrong")],
)  # fmt: skip
def test_a_letter_beside_the_text_of_another_option(grader, gold, prediction, wanted):
    assert verdict(grader, gold, prediction, "multi_choice", CITIES) == wanted
    assert verdict(grader, gold, prediction, "", CITIES) == wanted


@pytest.mark.parametrize("name", ["tuple", "ordered"])
def test_a_declared_order_counts(grader, name):
    for right in ("2,3", "(2,3)", "2, 3.0", "x=2, y=3"):
        assert verdict(grader, "2,3", right, name) == "correct"
    for other in ("3,2", "(3,2)", r"\{3,2\}", "2", "2,3,4"):
        assert verdict(grader, "2,3", other, name) == "wrong"
    assert verdict(grader, "x=2, y=3", "y=3, x=2", name) == "correct"
    assert verdict(grader, "2,3", "3,2") == "correct"  # nothing declared


ONES = "1" * 5000


@pytest.mark.parametrize("gold", [ONES, rf"\frac{{{ONES}}}{{2}}", f"x={ONES}", f"({ONES}, 2)", rf"{ONES} \text{{ m}}"])
def test_a_number_too_long_for_python_has_a_verdict(grader, gold):
    assert verdict(grader, gold, gold) == "correct"
    assert verdict(grader, gold, "5") in ("wrong", "error")
    assert verdict(grader, "5", gold) == "wrong"


LARGE = ("2^{2022}", "(-2)^{2022}", "10^{400}", "-10^{400}", r"\frac{10^{400}}{3}", "300!", "1e400", "2^{2^{12}}")


@pytest.mark.parametrize(
    "text", ["For n = 2023 this is {0} = {1}.", "So x = {0} = {1}", r"\( V = {0} = {1} \)", "**{0}** = {1}"]
)
def test_a_number_beyond_floats_in_a_sentence_has_a_verdict(grader, text, caplog):
    """An equation of two such numbers once stopped the whole phase."""
    items = [GradeItem("a", text.format(x, y), "5") for x in LARGE for y in LARGE]
    given = {item.response: grade.verdict for item, grade in zip(items, grader.grade_many(items), strict=True)}
    assert set(given.values()) <= {"wrong", "no_answer"} and not caplog.records
    (same,) = grader.grade_many([GradeItem("a", "So x = (-2)^{2022} = 2^{2022}.", "2^{2022}")])
    assert same.verdict == "correct"


def test_a_response_that_breaks_the_reading_costs_only_itself(monkeypatch, caplog):
    def broken(text, *more):
        return 1 / 0 if "odd" in text else original(text, *more)

    original = extract.find_answer
    monkeypatch.setattr(extract, "find_answer", broken)
    items = [GradeItem(str(n), text, "5") for n, text in enumerate((r"\boxed{5}", r"odd \boxed{5}", r"\boxed{5}"))]
    with Grader(workers=1) as grader:
        assert [grade.verdict for grade in grader.grade_many(items)] == ["correct", "no_answer", "correct"]
    assert "by a mistake of the rules: ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("end", ["x", "=", ".5H2X"])
def test_a_formula_of_many_digits_ends(grader, end):
    """A pattern that lets a digit stand in two places would not end on it."""
    serial = "A" + "1" * 12
    for text in (serial * 11 + end, f"CuSO4{serial * 9}{end}"):
        assert verdict(grader, "Al2(SO4)3", text) == "wrong"
        assert verdict(grader, r"CuSO4 \cdot 5H2O", text) == "wrong"


def test_a_gold_answer_that_breaks_the_comparison_costs_only_itself(monkeypatch):
    original = exact.prepare

    def prepare(answer, *more):
        if answer == "odd":
            raise ValueError("a mistake of ours")
        return original(answer, *more)

    monkeypatch.setattr(exact, "prepare", prepare)
    items = [GradeItem(str(n), r"\boxed{5}", gold) for n, gold in enumerate(("5", "odd", "5"))]
    with Grader(workers=1) as grader:
        verdicts = [grade.verdict for grade in grader.grade_many(items)]
    assert verdicts[::2] == ["correct", "correct"]
    assert verdicts[1] in ("wrong", "error")


PETS = ("cat", "dog", "cow", "pig")


@pytest.mark.parametrize(
    ("gold", "response", "options", "wanted"),
    [
        *[("B", text, PETS, "wrong") for text in ("B or C", "B and C", "B, C", "选B或C", "不选B", "A dog barks.")],
        *[("A", text, PETS, "wrong") for text in ("A or B", "A person stands next to a cow", "A is wrong")],
        ("I", "I am not sure.", PETS, "wrong"),
        ("I", "I am not sure.", (), "wrong"),
        ("C", "B or C is correct", PETS, "wrong"),
        *[("B", text, PETS, "correct") for text in ("B", "B. dog", "B dog", "B is correct", "B because it barks")],
        *[("B", text, PETS, "correct") for text in ("B, as it barks", "正确选项为B", r"\boxed{B is correct}")],
        *[("B", f"Look at the picture.\n{text}", PETS, "correct") for text in ("B dog", "**B**", "B the dog")],
        *[("A", f"Look at it.\n{text}", PETS, "wrong") for text in ("A person is standing there", "A or B")],
        ("C", "答案是B吗？不，答案是C", PETS, "correct"),
        ("A, C", "选A、C", PETS, "correct"),
        *[("12", text, (), "correct") for text in ("Therefore, x = 12.", "So x + y = 12", "Ans: 12")],
        *[("12", f"The answer is 12{text}", (), "correct") for text in (", I hope.", ", as required.")],
        *[("12", text, (), "no_answer") for text in ("Answer: ", "The answer is", "答案：")],
    ],
)
def test_responses_of_a_line(grader, gold, response, options, wanted):
    (grade,) = grader.grade_many([GradeItem("a", response, gold, "", options)])
    assert grade.verdict == wanted, grade


@pytest.mark.parametrize(
    ("gold", "prediction", "wanted"),
    [
        ("3.14", r"\approx 3.14", "correct"), ("5", "about 5", "correct"), ("5", "about 6", "wrong"),
        ("5", "约5", "correct"), ("5", "大约 5", "correct"),
        ("5e-6 m", r"5 \mu m", "correct"), ("0.005 mg", r"5\,\mu\text{g}", "correct"), (r"5 \mu m", "5 μm", "correct"),
        (r"5000 \Omega", "5 kΩ", "correct"), ("5000 Ω", r"5\ \text{k}\Omega", "correct"), ("1 dm^3", "1 L", "correct"),
        ("12 months", "1 year", "correct"), ("1 MB", "1 Mb", "wrong"), ("1 MB", "8 Mb", "correct"),
        ("5 m", "5米", "correct"), ("4 m^2", "4 平方米", "correct"), ("4 m^2", "4米", "wrong"),
        (r"\mu", r"\mu", "correct"),
    ],
)  # fmt: skip
def test_units_as_they_are_written(grader, gold, prediction, wanted):
    assert verdict(grader, gold, prediction) == wanted
