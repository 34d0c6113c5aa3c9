"""Properties of the exact path: an answer equals itself and its other ways of writing, and nothing near it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sophia_mcore.verify.comparing import exact
from sophia_mcore.verify.rules import rule_for
from sophia_mcore.verify.text.normalize import clean

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def decide(gold, prediction, answer_type="", options=()):
    return exact.decide(exact.prepare(gold, answer_type, options, rule_for("")), prediction)


integers = st.integers(-(10**12), 10**12)
fractions = st.fractions(-100_000, 100_000, max_denominator=10_000)
decimals = st.decimals(-(10**6), 10**6, places=4)
names = st.sampled_from(["x", "y", "n", r"\theta"])
SPACINGS = [
    "{}",
    " {} ",
    "${}$",
    r"\({}\)",
    r"\[{}\]",
    "**{}**",
    "{}.",
    r"\text{{{}}}",
    r"\boxed{{{}}}",
    "{{{}}}",
    "$ {} $",
]
spacings = st.sampled_from(SPACINGS)


@st.composite
def expressions(draw, depth=2):
    if depth == 0:
        return str(draw(st.integers(1, 20))) if draw(st.booleans()) else draw(names)
    a, b = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    forms = [
        "({}) + ({})",
        "({}) - ({})",
        r"({}) \cdot ({})",
        r"\frac{{{}}}{{{}}}",
        r"\sqrt{{{}}} + {}",
        "({}) ^ 2 + {}",
    ]
    return draw(st.sampled_from(forms)).format(a, b)


answers = st.one_of(
    integers.map(str),
    decimals.map(str),
    fractions.map(str),
    expressions(),
    st.tuples(integers, fractions).map(lambda t: f"({t[0]}, {t[1]})"),
    st.lists(integers, min_size=1, max_size=5).map(lambda v: r"\{" + ", ".join(map(str, v)) + r"\}"),
    st.sampled_from(
        ["blue", "yes", "B", "New York", "2021-03-05", "3:45 pm", "5 cm", r"(-\infty, 2]", "x > 3", "y = 2x + 1"]
    ),
)


@given(answers, spacings)
@settings(max_examples=150)
def test_an_answer_equals_itself_in_any_dress(answer, dress):
    assert decide(answer, answer) is True
    assert decide(answer, dress.format(answer)) is True


@given(answers, answers)
@settings(max_examples=150)
def test_equality_is_symmetric(a, b):
    kinds = {exact.prepare(a, "", (), rule_for("")).type, exact.prepare(b, "", (), rule_for("")).type}
    assume(not kinds & {"choice", "yes_no", "text", "date", "time", "tuple", "interval", "list"})  # gold decides there
    assert decide(a, b) == decide(b, a)


@given(integers)
@example(1_000)
@example(-1_234_567)
def test_ways_of_writing_an_integer(value):
    for other in (
        f"{value:,}",
        f"{value}.0",
        f"{value}.000",
        rf"\frac{{{value * 3}}}{{3}}",
        f"{value * 7}/7",
        f"{value}.",
        f"x = {value}",
        rf"{value} + 0",
        rf"1 \cdot {value}",
        f"({value})",
        f"\\${value}",
        f"{value} cm",
        f"{value:_}".replace("_", "{,}"),
    ):
        assert decide(str(value), other) is True, other
    for wrong in (value + 1, value - 1, -value if value else 1, value * 10 or 10):
        assert decide(str(value), str(wrong)) is False


@given(fractions)
def test_ways_of_writing_a_fraction(value):
    top, bottom = value.numerator, value.denominator
    gold = f"{top}/{bottom}"
    for other in (
        rf"\frac{{{top}}}{{{bottom}}}",
        rf"\dfrac{{{top * 2}}}{{{bottom * 2}}}",
        rf"\frac{{{-top}}}{{{-bottom}}}",
        rf"{top} \div {bottom}",
        f"{top} / {bottom}",
    ):
        assert decide(gold, other) is True, other
    if abs(value) > Fraction(1, 100):
        assert decide(gold, f"{float(value):.9f}") is True
    assert decide(gold, f"{top + 1}/{bottom}") is False
    assert decide(gold, f"{float(value) + 0.001:.9f}") is False


@given(decimals)
def test_ways_of_writing_a_decimal(value):
    gold = str(value)
    for other in (
        f"{value}00",
        f"{value:,}",
        f"{float(value):.6e}" if abs(value) < 1000 else gold,
        f"{value} \\text{{ m}}",
    ):
        assert decide(gold, other) is True, other
    assert decide(gold, str(float(value) + 0.01)) is False


@given(decimals)
def test_percent_is_a_hundredth_or_the_number_itself(value):
    percent = rf"{value}\%"
    assert decide(percent, f"{value}%") is True
    assert decide(percent, str(value)) is True
    assert decide(percent, str(value / 100)) is True


@given(st.lists(integers, min_size=2, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_order_counts_in_tuples_and_not_in_sets(values, random):
    other = values[:]
    random.shuffle(other)
    as_set, as_tuple = r"\{" + ", ".join(map(str, values)) + r"\}", "(" + ",".join(map(str, values)) + ")"
    assert decide(as_set, r"\{" + ",".join(map(str, other)) + r"\}") is True
    assert decide(as_set, " and ".join(map(str, other))) is True
    assert decide(as_tuple, "(" + ", ".join(map(str, other)) + ")") is (values == other)
    assert decide(as_set, r"\{" + ",".join(map(str, [*other, max(values) + 1])) + r"\}") is False


@given(expressions(), st.integers(1, 9))
@settings(max_examples=200)
def test_an_expression_equals_its_rearrangements_and_not_its_neighbours(text, number):
    for other in (f"{number} + ({text}) - {number}", rf"\frac{{{number} \cdot ({text})}}{{{number}}}", f"-(-({text}))"):
        assert decide(text, other) in (True, None)
    for wrong in (f"({text}) + {number}", f"-({text}) - 1000"):
        assert decide(text, wrong) in (False, None)


@given(
    st.text(max_size=60),
    st.text(max_size=60),
    st.sampled_from(["", "integer", "choice", "list", "date", "interval", "set"]),
)
@settings(max_examples=150)
def test_any_two_texts_are_decided_or_left(gold, prediction, answer_type):
    assert decide(gold, prediction, answer_type) in (True, False, None)
    if prediction:
        assert decide(prediction, prediction, answer_type) is True


@given(
    st.text(alphabet=r"0123456789+-*/^(){}[]\, .%x=<>|!$ae", max_size=40),
    st.text(alphabet=r"0123(){}[]\,x+^", max_size=40),
)
@settings(max_examples=150)
def test_any_formula_is_decided_or_left(gold, prediction):
    assert decide(gold, prediction) in (True, False, None)


@given(st.text(max_size=200))
@example("\\\r0")
def test_cleaning_is_idempotent(text):
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    "prediction",
    [
        "9^{9^{9^9}}",
        "10000000!",
        r"\binom{10^8}{5\cdot10^7}",
        r"\{" + ",".join(map(str, range(3000))) + r"\}",
        r"\cup".join(f"({i},{i + 1})" for i in range(150)),
        "{" * 5000 + "8" + "}" * 5000,
        r"\sqrt[1000003]{2^{1000003}+1}",
        "2^{2^{2^{2^{2^2}}}}",
        "(10^{10})!",
        "9!!!!!",
        r"\frac{1}{9^{-9^{9}}}",
        "(x+1)^{10^9}",
        "e^{e^{e^{e^e}}}",
        "9" * 5000,
        "1" + "0" * 10_000,
        "0." + "3" * 5000,
        r"\sqrt{" * 50 + "2" + "}" * 50,
        "(" * 900 + "1" + ")" * 900,
        r"\frac{1}{" * 200 + "2" + "}" * 200,
        "x" * 1900,
        "1e999999999",
        "10^{999999999}",
        "2^" * 300 + "2",
        r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{10^{9}}",
        r"\begin{bmatrix}a&b\\c&d\end{bmatrix}^{-1}",
    ],
    ids=lambda text: text[:20],
)
def test_monsters_are_seen_through_at_once(prediction):
    assert decide("9", prediction) is False
    assert decide("9", "{" * 5000 + "9" + "}" * 5000) is True


@pytest.mark.parametrize("gold", ["x^2+1", "y=3x+4", "(3, -4)", "[-2, 5)", "7"])
def test_a_long_union_is_none_of_these(gold):
    assert decide(gold, r"\cup".join(f"({2 * i},{2 * i + 1})" for i in range(150))) is False


def test_a_union_of_neighbours_is_one_interval():
    assert decide("(1,3)", r"(1,2]\cup(2,3)") is True
    assert decide(r"\begin{pmatrix}1&2\end{pmatrix}^{2}", r"\begin{pmatrix}1&2\end{pmatrix}^{2}") is True
    assert decide("x^2", "x^2") is True and decide("2^{2^2}", "16") is True


@pytest.mark.parametrize(
    ("prediction", "hopeless"),
    [
        (r"\sin(10^{10^{10}})", True),
        (r"\cos(9^{9^{10}})+1", True),
        (r"\sin((10^{12})!)", True),
        (r"\sin(10^{10})", False),
        (r"\sin(x^{10^{10}})", False),
        (r"\sqrt{2}", False),
        ("9" * 5000, False),
    ],
)
def test_algebra_that_could_not_end_is_known_beforehand(prediction, hopeless):
    assert exact.endless(prediction) is hopeless
