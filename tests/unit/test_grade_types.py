"""Verdicts by answer type, seen from outside: a response, a gold answer, a verdict."""

from __future__ import annotations

import pytest

from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.types import GradeItem


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=1, timeout_seconds=5.0) as instance:
        yield instance


def verdict(grader, gold, prediction, answer_type="", options=(), rules="", tolerance=None, boxed=True):
    response = f"\\boxed{{{prediction}}}" if boxed else prediction
    item = GradeItem("a", response, gold, answer_type, options, rules, tolerance)
    (grade,) = grader.grade_many([item])
    return grade.verdict


EQUAL = {
    "integer": [("5", "5"), ("5", "5.0"), ("5", "+5"), ("1234567", "1,234,567"), ("-5", "−5"), ("7", "007"),
                ("1000", "10^3"), ("12", r"3 \times 4"), ("120", "5!"), ("10", r"\binom{5}{2}"),
                ("8", r"\sqrt[3]{512}"),
                ("5", "$5$."), ("5", r"\text{5}"), ("5", "x = 5"), ("x = 5", "5"), ("42", r"\mathbf{42}")],
    "decimal": [("0.5", ".5"), ("2.50", "2.5"), ("0.333333", "1/3"), ("0.5", r"\frac{1}{2}"), ("3.14", "3.140"),
                ("6.283185", r"2\pi"), ("0.000012", "1.2e-5")],
    "percent": [("50%", r"50\%"), ("50%", "0.5"), ("50%", "50"), ("12.5%", "12.5"), ("1/2", r"50\%"),
                (r"25\%", "25 percent")],
    "fraction": [("1/2", r"\frac{1}{2}"), (r"\frac{1}{2}", r"\dfrac12"), ("-1/2", r"-\frac{1}{2}"), ("1/2", "2/4"),
                 ("3/2", r"1\frac{1}{2}"), ("1/2", r"\frac{-1}{-2}"), (r"\frac{2}{3}", "4/6"),
                 ("2/11", r"0.\overline{18}"), ("2/11", r"0.\dot{1}\dot{8}"), ("1/7", r"0.\dot14285\dot7"),
                 ("1/6", r"0.1\dot{6}"), ("-2/11", "-0.(18)"), ("2/11", "0.1\u03078\u0307")],
    "scientific": [("1.5e3", "1500"), ("1e-3", "0.001"), (r"3\times10^8", "300000000"),
                   (r"6.02\times 10^{23}", "6.02e23"),
                   (r"10^{-2}", "0.01")],
    "quantity": [("5 cm", "5 cm"), (r"5\text{ cm}", "5 cm"), ("5 cm", "5"), ("5", "5 cm"), ("500 cm", "5 m"),
                 ("1 km/h", r"\frac{1}{3.6} \text{ m/s}"), ("72 km/h", "20 m/s"), ("1 hour", "60 minutes"),
                 (r"2 \text{ m}^2", r"20000 \text{ cm}^2"), ("100 °C", r"100^\circ C"),
                 ("32 degrees Fahrenheit", r"0^\circ C"),
                 ("2 kg", "2000 grams"), ("3 apples", "3"), ("3", "3 apples"), ("30^\\circ", "30"),
                 ("5 square meters", r"5 m^2"),
                 ("2 L", "2000 mL")],
    "expression": [("x+1", "1+x"), ("(x+1)^2", "x^2+2x+1"), (r"\sqrt{8}", r"2\sqrt{2}"),
                   (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
                   (r"\sin^2 x + \cos^2 x", "1"), (r"2\sin x\cos x", r"\sin 2x"), (r"\log_2 8", "3"),
                   (r"\ln(e^2)", "2"),
                   (r"\frac{x^2-1}{x-1}", "x+1"), ("2^{100}", "1267650600228229401496703205376"), (r"e^{i\pi}", "-1"),
                   (r"\pi r^2", r"r^2\pi"), ("x_1+x_2", "x_2 + x_1"), ("ab", "ba"), (r"\sqrt{x^2}", "|x|"),
                   (r"1+\sqrt{2}", r"\sqrt 2 + 1")],
    "equation": [("y=2x+1", "y = 1+2x"), ("y=2x+1", "2x+1"), ("2x+3y=6", "4x+6y=12"), ("x+y=1", "y = 1 - x"),
                 ("f(x)=x^2", "x^2"), (r"x \ne 2", r"x\neq 2")],
    "interval": [("(1,2)", "(1, 2)"), ("[1,2)", r"\left[1,2\right)"), (r"(-\infty, 3]", r"(-\infty,3]"),
                 ("x > 3", "3 < x"),
                 ("(3, \\infty)", "x > 3"), ("1 \\le x < 2", "[1,2)"), (r"(1,2)\cup(3,4)", r"(3,4) \cup (1,2)"),
                 (r"(1,2]\cup(2,4)", "(1,4)"), (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ or } x>2"),
                 (r"[0, \infty]", r"[0,\infty)"), (r"(0, \sqrt{4})", "(0,2)"), (r"x\in[1,2]", "[1,2]")],
    "tuple": [("(1,2)", "(1.0, 2)"), ("(1,2,3)", "(1, 2, 3)"), (r"(\frac12, 3)", "(0.5, 3)"), ("(1,2)", "1, 2"),
              ("(x, y) = (1, 2)", "(1,2)"), ("(a+b, 1)", "(b+a, 1)")],
    "set": [(r"\{1,2,3\}", r"\{3,1,2\}"), (r"\{1,2\}", "1, 2"), (r"\{1,2\}", "2 and 1"),
            (r"\emptyset", r"\varnothing"),
            (r"\{\frac12\}", r"\{0.5\}"), ("1, 2, 3", r"\{2, 1, 3\}"), (r"\{1\}\cup\{2\}", r"\{1,2\}")],
    "matrix": [(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}"),
               (r"\begin{pmatrix}\frac12\\x+1\end{pmatrix}", r"\begin{pmatrix}0.5\\1+x\end{pmatrix}")],
    "yes_no": [("yes", "Yes"), ("Yes", "yes, it is larger"), ("no", "No."), ("True", "true"), ("是", "是的"),
               ("yes", "True")],
    "date": [("2021-03-05", "March 5, 2021"), ("March 5, 2021", "5 March 2021"), ("2021年3月5日", "2021-03-05"),
             ("March 2021", "Mar 2021")],
    "time": [("3:45 pm", "15:45"), ("3:45 p.m.", r"3:45 \text{ p.m.}"), ("7 pm", "19:00")],
    "list": [("['a', 'b']", '["A", "b"]'), ("[1, 2, 3]", "[1,2,3]"), ("[0.5, 2]", "[1/2, 2]")],
    "text": [("blue", "Blue"), ("the red car", "red car"), ("New York", r"\text{New York}"),
             ("isosceles triangle", "Isosceles  triangle."),
             ("等腰三角形", "等腰三角形。"), ("Mary", "**Mary**")],
    "several": [("1, 2", "2, 1"), ("x=1, x=2", "x=2 or x=1"), (r"\pm 3", "3, -3"),
                (r"1\pm\sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
                ("(1,2), (3,4)", "(3,4), (1,2)"), ("2; 3", "2 and 3"), ("a=1, b=2", "b=2, a=1")],
}  # fmt: skip

DIFFERENT = {
    "integer": [("5", "6"), ("5", "-5"), ("5", "5.1"), ("5", "five times"), ("5", "4 of five cats"), ("5", "x"),
                ("1", r"1\frac{1}{2}"),
                ("12", "1, 2"),
                ("5", "x > 5"), ("5", "[5, 6]"), ("5", r"\infty"), ("5", "yes"), ("1234", "1.234"),
                ("16", "4 squared")],
    "decimal": [("0.5", "0.51"), ("0.333", "1/3"), ("3.14", r"\pi"), ("0.000012", "0.000013"),
                (r"6.63\times10^{-34}", r"1.6\times10^{-19}")],
    "percent": [("50%", "5%"), ("50%", "0.05"), ("12.5%", "12")],
    "fraction": [("1/2", "1/3"), ("1/2", "-1/2"), ("1/2", "2"), ("2/11", r"0.1\dot{8}"), ("9/50", "0.(18)"),
                 ("2/11", r"0.\dot{1}\dot{8}4")],
    "scientific": [("1.5e3", "1.5e4"), (r"3\times10^8", r"3\times10^7")],
    "quantity": [("5 cm", "5 m"), ("5 cm", "6 cm"), ("5 m", "5 s"), ("72 km/h", "72 m/s"), ("100 °C", r"100^\circ F"),
                 ("3 apples", "4")],
    "expression": [("x+1", "x-1"), ("x+1", "y+1"), (r"\sqrt{8}", r"2\sqrt{3}"), (r"\sin x", r"\cos x"),
                   ("x^2", "x^3"),
                   (r"\sqrt{x^2}", "x"), (r"2\pi", "6.28"), ("a-b", "b-a"),
                   ("1", r"\int_0^1 2x\,dx"),
                   ("6", r"\sum_{k=1}^{3} k")],
    "equation": [("y=2x+1", "y=2x-1"), ("2x+3y=6", "2x+3y=7"), ("x=1", "y=1"), (r"x \ne 2", r"x \ne 3")],
    "interval": [("(1,2)", "(1,3)"), ("[1,2)", "[1,2]"), ("x > 3", r"x \ge 3"), ("x > 3", "x < 3"), ("(1,2)", "1.5"),
                 (r"(1,2)\cup(3,4)", "(1,4)"), ("x > 3", "y > 3")],
    "tuple": [("(1,2)", "(2,1)"), ("(1,2)", "(1,2,3)"), ("(1,2)", "1"), ("(1,2)", "2, 1")],
    "set": [(r"\{1,2\}", r"\{1,3\}"), (r"\{1,2\}", r"\{1,2,3\}"), (r"\{1,2\}", "1"), (r"\emptyset", r"\{0\}")],
    "matrix": [(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
               (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}")],
    "yes_no": [("yes", "no"), ("no", "yes"), ("yes", "5"), ("yes", "maybe")],
    "date": [("2021-03-05", "2021-03-06"), ("March 5, 2021", "March 5, 2020")],
    "time": [("3:45 pm", "3:45 am"), ("3:45 pm", "3:46 pm")],
    "list": [("['a', 'b']", "['b', 'a']"), ("[1, 2, 3]", "[1, 2]")],
    "text": [("blue", "red"), ("New York", "New Jersey"), ("blue", "5")],
    "several": [("1, 2", "1"), ("1, 2", "1, 3"), ("1, 2", "1, 2, 3"), (r"\pm 3", "3"), ("a=1, b=2", "a=2, b=1")],
}  # fmt: skip


def cases(table):
    return [pytest.param(gold, p, id=f"{kind}: {gold} | {p}") for kind, pairs in table.items() for gold, p in pairs]


@pytest.mark.parametrize(("gold", "prediction"), cases(EQUAL))
def test_equal(grader, gold, prediction):
    assert verdict(grader, gold, prediction) == "correct"


@pytest.mark.parametrize(("gold", "prediction"), cases(DIFFERENT))
def test_different(grader, gold, prediction):
    assert verdict(grader, gold, prediction) == "wrong"


GIVEN = {  # types as data sets name them
    "integer": "integer", "decimal": "float", "percent": "percentage", "fraction": "fraction",
    "expression": "Expression",
    "equation": "Equation", "interval": "Interval", "set": "set", "matrix": "matrix", "yes_no": "yes_no",
    "text": "text",
    "tuple": "Tuple", "date": "date", "time": "time", "list": "list",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(GIVEN))
def test_a_given_type_agrees_with_the_inferred_one(grader, kind):
    for table, wanted in ((EQUAL, "correct"), (DIFFERENT, "wrong")):
        for gold, prediction in table[kind]:
            assert verdict(grader, gold, prediction, GIVEN[kind]) == wanted, (gold, prediction)


@pytest.mark.parametrize("name", ["FigureQA", "open-ended question", "计算题", "TQA"])
def test_an_unknown_type_is_inferred(grader, name):
    assert verdict(grader, "5", "5.0", name) == "correct"
    assert verdict(grader, "B", "(B)", name) == "correct"


OPTIONS = ("12 cm", "a red car", r"$\frac{1}{2}$", "none of these")


@pytest.mark.parametrize(
    ("gold", "prediction", "wanted"),
    [("A", "A", "correct"), ("A", "(a)", "correct"), ("A", "A. 12 cm", "correct"), ("A", "12 cm", "correct"),
     ("A", "12", "correct"), ("A", "0.12 m", "correct"), ("12 cm", "A", "correct"), ("B", "red car", "correct"),
     ("B", "The red car.", "correct"), ("C", "0.5", "correct"), ("C", r"\frac12", "correct"),
     ("D", "None of these", "correct"),
     ("A", "B", "wrong"), ("A", "B. a red car", "wrong"), ("A", "13 cm", "wrong"), ("B", "a blue car", "wrong"),
     ("C", "1/3", "wrong"), ("A", "E", "wrong"), ("A, C", "A and C", "correct"), ("A, C", "AC", "correct"),
     ("A, C", "A", "wrong"), ("AC", "C, A", "correct")],
)  # fmt: skip
def test_options(grader, gold, prediction, wanted):
    assert verdict(grader, gold, prediction, "multi_choice", OPTIONS) == wanted
    assert verdict(grader, gold, prediction, "", OPTIONS) == wanted


@pytest.mark.parametrize(
    ("rules", "gold", "prediction", "answer_type", "wanted"),
    [("", "3.14", "3.14159", "float", "wrong"), ("mathvista", "3.14", "3.14159", "float", "correct"),
     ("MathVista", "3.14", "3.15", "float", "wrong"), ("mathvista", "5", "5.9", "integer", "wrong"),
     ("", "5", "5.9", "integer", "wrong"), ("dynamath", "2.5", "2.5009", "float", "correct"),
     ("dynamath", "2.5", "2.502", "float", "wrong"), ("OlympiadBench", "2.5", "2.500001", "", "wrong"),
     ("OlympiadBench", "2.5", "2.500000001", "", "correct"), ("MMMU", "2.5", "2.501", "", "correct"),
     ("MMMU-Pro", "2.5", "2.51", "", "wrong"), ("some data set", "2.5", "2.501", "", "wrong")],
)  # fmt: skip
def test_precision_of_a_benchmark(grader, rules, gold, prediction, answer_type, wanted):
    assert verdict(grader, gold, prediction, answer_type, rules=rules) == wanted


def test_mathvista_takes_the_most_similar_option(grader):
    options = ("isosceles", "equilateral", "scalene")
    assert verdict(grader, "isosceles", "it is isoceles", "multi_choice", options, rules="mathvista") == "correct"
    assert verdict(grader, "isosceles", "it is isoceles", "multi_choice", options) == "wrong"


def test_a_tolerance_given_with_the_answer(grader):
    assert verdict(grader, "9.8", "9.81", tolerance=0.05) == "correct"
    assert verdict(grader, "9.8", "9.9", tolerance=0.05) == "wrong"
    assert verdict(grader, r"2\pi", "6.28", tolerance=0.01) == "correct"


@pytest.mark.parametrize(  # what math-verify documents, in our words
    ("gold", "prediction", "wanted"),
    [(r"{1,3} \cup {2,4}", "{1,2,3,4}", "correct"), ("1/3", r"\frac13", "correct"), ("10", "10 cm", "correct"),
     ("1", "x = 1", "correct"), ("0.1", r"10\%", "correct"), ("a < 2", "2 > a", "correct"),
     ("7425000", "7,425,000", "correct"),
     (r"\sqrt{3}", r"\sqrt3", "correct"), (r"\frac{1}{3}", "0.333333", "correct"), ("0.333", "1/3", "wrong"),
     ("β", r"\beta", "correct"), ("[0,1)", "[0,1)", "correct"), ("[0,9)", "[0,1)", "wrong"),
     ("(0,9)", "[0,9)", "wrong"),
     (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{bmatrix}1&2\end{bmatrix}", "correct"),
     ("2x = 4", "x = 2", "correct")],
)  # fmt: skip
def test_documented_behaviour_of_math_verify(grader, gold, prediction, wanted):
    assert verdict(grader, gold, prediction) == wanted


def test_nothing_found_is_no_answer_and_not_wrong(grader):
    assert verdict(grader, "5", "I see two cats\nand nothing else to add up here", boxed=False) == "no_answer"
    assert verdict(grader, "5", "<think>3+2 is 5", boxed=False) == "no_answer"
    assert verdict(grader, "5", "", boxed=False) == "no_answer"


def test_the_grade_says_what_was_done(grader):
    (grade,) = grader.grade_many([GradeItem("q", r"\boxed{1+x}", "x+1")])
    assert (grade.id, grade.extracted, grade.answer_type) == ("q", "1+x", "expression")
    assert grade.verifier == "sophia_mcore.score"
    assert "math-verify-" in grade.verifier_version
    assert grade.seconds >= 0.0
