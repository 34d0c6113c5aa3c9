"""A made-up but realistic stream of graded answers: questions of every type, many responses to each."""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction

from sophia_mcore.verify.types import GradeItem

THOUGHT = "Let me look at the picture again. The first part gives one value and the second another, so I add them. "


@dataclass(frozen=True)
class Asked:
    """A gold answer, right ways of writing it, and wrong answers."""

    gold: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    options: tuple[str, ...] = ()


def _integer(r: random.Random) -> Asked:
    n = r.randint(-500, 5000)
    wrong = {str(n + d) for d in (1, -1, 2, 10)} | {str(2 * n + 7), f"{n}.5", rf"\frac{{{n}}}{{7}}"}
    return Asked(str(n), (str(n), f"{n}.", f"x = {n}", rf"\text{{{n}}}", f"{n:,}"), tuple(sorted(wrong)))


def _decimal(r: random.Random) -> Asked:
    value = r.randint(1, 9999) / 100
    right = (f"{value}", f"{value:.2f}", f"{value:.3f}")
    return Asked(f"{value}", right, tuple(f"{value + d:.2f}" for d in (0.01, 0.1, 1.5, -0.03, 7.77)))


def _fraction(r: random.Random) -> Asked:
    f = Fraction(r.randint(1, 60), r.choice((7, 9, 11, 13, 17)))
    a, b = f.numerator, f.denominator
    right = (rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a}}}{{{b}}}", f"{a}/{b}", rf"\frac{{{2 * a}}}{{{2 * b}}}")
    return Asked(right[0], right, (*(rf"\frac{{{a + d}}}{{{b}}}" for d in (1, 2, 3)), f"{a}", f"{b}/{a + b}"))


def _surd(r: random.Random) -> Asked:
    a, b, c = r.randint(2, 9), r.choice((2, 3, 5, 7)), r.randint(1, 9)
    right = (rf"{a}\sqrt{{{b}}}+{c}", rf"{c}+{a}\sqrt{{{b}}}", rf"{c} + \sqrt{{{a * a * b}}}")
    wrong = (rf"{a}\sqrt{{{b}}}-{c}", rf"{a + 1}\sqrt{{{b}}}+{c}", rf"{a}\sqrt{{{b + 6}}}+{c}", f"{a * b + c}")
    return Asked(right[0], right, wrong)


def _pi(r: random.Random) -> Asked:
    a, b = r.randint(1, 30), r.choice((3, 5, 7, 11))
    right = (rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}\pi", rf"{a}\pi/{b}")
    return Asked(right[0], right, (rf"\frac{{{a}\pi}}{{{b + 2}}}", rf"{a}\pi", rf"\frac{{{a + 1}\pi}}{{{b}}}", f"{a}"))


def _polynomial(r: random.Random) -> Asked:
    a, b = r.randint(1, 9), r.randint(1, 9)
    right = (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})", f"{a * b}+{a + b}x+x^{{2}}")
    wrong = (f"x^2-{a + b}x+{a * b}", f"x^2+{a + b}x", f"(x-{a})(x+{b})", f"x^2+{a * b}x+{a + b + 1}")
    return Asked(right[0], right, wrong)


def _equation(r: random.Random) -> Asked:
    a, b = r.randint(2, 9), r.randint(1, 9)
    return Asked(f"y={a}x+{b}", (f"y={a}x+{b}", f"y = {b} + {a}x", f"{a}x+{b}"), (f"y={a}x-{b}", f"y={b + 10}x+{a}"))


def _point(r: random.Random) -> Asked:
    a, b = r.randint(-9, 9), r.randint(-9, 9) or 1
    right = (f"({a}, {b})", rf"\left({a},{b}\right)", f"({a},{b})")
    return Asked(right[0], right, (f"({a + 1}, {b})", f"({a}, {b + 1})", f"({a - 20}, {b - 20})"))


def _interval(r: random.Random) -> Asked:
    a = r.randint(-9, 5)
    b = a + r.randint(1, 9)
    return Asked(f"[{a}, {b})", (f"[{a},{b})", rf"\left[{a}, {b}\right)"), (f"[{a}, {b}]", f"[{a}, {b + 1})", f"{b}"))


def _set(r: random.Random) -> Asked:
    a, b, c = r.sample(range(1, 40), 3)
    right = (rf"\{{{a}, {b}, {c}\}}", f"{c}, {a}, {b}", rf"\{{{b},{c},{a}\}}")
    return Asked(right[0], right, (rf"\{{{a}, {b}\}}", rf"\{{{a}, {b}, {c + 41}\}}", f"{a}, {b}, {c}, {a + 50}"))


def _choice(r: random.Random) -> Asked:
    letter = r.choice("ABCD")
    others = tuple(x for x in "ABCD" if x != letter)
    return Asked(letter, (letter, rf"\text{{{letter}}}", f"({letter})"), others)


MAKERS = (
    (_integer, 38), (_decimal, 9), (_fraction, 8), (_surd, 8), (_pi, 6), (_polynomial, 6), (_equation, 3),
    (_point, 4), (_interval, 3), (_set, 4), (_choice, 11),
)  # fmt: skip


def stream(questions: int, responses: int, seed: int = 0) -> list[GradeItem]:
    """``responses`` answers to each of ``questions``; 55% right, the wrong ones few and repeated, as in sampling."""
    r = random.Random(seed)
    makers, weights = zip(*MAKERS, strict=True)
    items = []
    for q in range(questions):
        asked = r.choices(makers, weights)[0](r)
        for n in range(responses):
            answer = r.choice(asked.right) if r.random() < 0.55 else r.choice(asked.wrong)
            text = f"<think>{THOUGHT * r.randint(3, 15)}</think>The answer is $\\boxed{{{answer}}}$."
            items.append(GradeItem(f"{q}.{n}", text, asked.gold, "", asked.options))
    return items


_TOWER = ("9^{9^{9^9}}", "10000000!", r"\binom{10^8}{5\cdot10^7}", r"\sqrt[1000003]{2^{1000003}+1}")
HANGING = {  # named in the performance notes
    "tower": _TOWER[0], "factorial": _TOWER[1], "binomial": _TOWER[2], "root": _TOWER[3],
    "set of 3000": r"\{" + ",".join(map(str, range(3000))) + r"\}",
    "union of 150": r"\cup".join(f"({2 * i},{2 * i + 1})" for i in range(150)),
    "braces": "{" * 5000 + "9" + "}" * 5000,
}  # fmt: skip
FOUND = {  # found here
    "sum": r"\sum_{n=1}^{10^{9}} \frac{1}{n^2}", "product": r"\prod_{n=1}^{100000} (1+\frac{1}{n})",
    "integral": r"\int_0^{\pi} \frac{x \sin^{3}(x^2+1)}{1+\cos^2 x+e^{x}} dx",
    "limit": r"\lim_{x\to 0} \frac{\sin(\tan x)-\tan(\sin x)}{x^7}", "power of a sum": "(x+y+z+w+1)^{200}",
    "modulus": r"7^{7^{7^7}} \mod 10", "floor": r"\lfloor 9^{9^{9}} \rfloor", "logarithm": r"\log_{2}(3^{10^{9}}+1)",
    "sine": r"\sin(10^{10^{10}})", "gcd": r"\gcd(2^{10^{8}}-1, 3^{10^8}-1)", "factorials": "9!!!!",
    "complex power": "(1+2i)^{10^{9}}", "matrix power": r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{10^{9}}",
    "determinant": r"\det\begin{pmatrix}" + r"\\".join("&".join(f"a_{{{i}{j}}}" for j in range(9)) for i in range(9))
    + r"\end{pmatrix}", "inverse": r"\begin{pmatrix}" + r"\\".join(
        "&".join(f"a_{{{i}{j}}}" for j in range(6)) for i in range(6)) + r"\end{pmatrix}^{-1}",
    "derivative": r"\frac{d^{50}}{dx^{50}} \frac{\sin x}{x^2+1}", "chain of powers": "2^" * 300 + "2",
    "long sum": "+".join(["1"] * 900), "many variables": "+".join(f"x_{{{i}}}^{{{i}}}" for i in range(1, 100)),
    "ratio": r"\frac{" + "".join(f"(x-{i})" for i in range(40)) + "}{" + "".join(f"(x+{i})" for i in range(40)) + "}",
    "nested roots": r"\sqrt{1+" * 60 + "1" + "}" * 60, "signs": "-" * 900 + "9",
    "nearly equal": r"\sqrt[1000003]{2^{1000003}+1}+7", "roots": "+".join(rf"\sqrt{{{p}}}" for p in range(2, 90)),
}  # fmt: skip
