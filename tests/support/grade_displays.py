"""Makers of pairs for displays, chains with letters, vectors, doubts behind a box, charges, spoken times."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind, pairs

__all__ = ["KINDS"]  # with the kinds of grade_kinds


def _given(gold: str, right: list[str], wrong: list[str], options: tuple[str, ...] = ()) -> list[Pair]:
    """Pairs of whole responses."""
    return [
        Pair(gold, text, is_right, options) for is_right, texts in ((True, right), (False, wrong)) for text in texts
    ]


@kind
def displays_of_several_lines(chance: random.Random) -> list[Pair]:
    n, m, k = chance.sample(range(2, 60), 3)
    name = chance.choice(["align", "align*", "aligned", "equation", "gather", "split"])

    def display(*lines: str) -> str:
        rows = " \\\\\n".join(lines)
        return f"\\begin{{{name}}}\n{rows}\n\\end{{{name}}}"

    worked = display(f"S &= {n} \\cdot {m}", f"&= {n * m}")
    mistaken = display(f"S &= {n} \\cdot {m}", f"&= {n * m + 1}")
    letters = display("S &= ab", f"&= {n} \\times {m}", f"&= {n * m}")
    two, added = display(f"S &= {n * m}", f"T &= {k}"), display(f"S &= {n * m}", f"&+ {k}")
    one, larger = display(f"S = {n * m}"), display(f"S = {n * m + k}")
    other, both = display(f"x &= {k}", f"y &= {n * m}"), display(f"x &= {n}", f"y &= {m}")
    turned, half = display(f"x &= {m}", f"y &= {n}"), display(f"x &= {n}")
    return [
        *_given(
            str(n * m),
            [f"Final answer:\n{worked}", f"We multiply.\n{one}", f"So \\boxed{{{letters}}}"],
            [
                *(f"Final answer:\n{wrong}" for wrong in (mistaken, two, added)), f"We multiply.\n{larger}",
                f"So \\boxed{{{other}}}",
            ],
        ),
        *_given(
            f"x = {n}, y = {m}",
            [f"Final answer:\n{both}"],
            [
                f"Final answer:\n{turned}", f"Final answer: x = {n} or y = {m}", f"Final answer:\n{half}",
                f"\\boxed{{x = {n} \\text{{ or }} y = {m}}}",
            ],
        ),
    ]  # fmt: skip


@kind
def chains_with_letters(chance: random.Random) -> list[Pair]:
    a, b, other = chance.sample(range(3, 40), 3)
    unit = chance.choice(["N", "J", "cm", "m/s"])
    product, name = a * b, chance.choice(["F", "W", "A", "v"])
    wrong_product = product + other
    return pairs(
        str(product),
        [
            f"{name} = kx = {a} \\cdot {b} = {product}", f"{name} = kx = {product}\\ \\text{{{unit}}}",
            f"{name} = {a} \\times {b} = {product}\\,\\text{{{unit}}}",
        ],
        [
            f"{name} = kx = {a} \\cdot {b} = {wrong_product}", f"{name} = {a} \\cdot {other} = {product}",
            f"{name} = k, x = {product}", f"{name} = {other} \\text{{ or }} y = {product}",
            f"{name} = kx = {product} \\text{{ or }} {other}", f"{name} + k = kx = {product}",
            f"2{name} = kx = {product}",
        ],
    )  # fmt: skip


@kind
def vectors(chance: random.Random) -> list[Pair]:
    x, y, z = chance.sample(range(2, 30), 3)
    hat = chance.choice(["\\hat{%s}", "\\mathbf{%s}", "\\vec{%s}"])
    i, j, k = (hat % letter for letter in "ijk")
    return [
        *pairs(
            f"({x}, -{y}, {z})",
            [
                f"{x}{i} - {y}{j} + {z}{k}", f"-{y}{j} + {x}{i} + {z}{k}",
                rf"\begin{{pmatrix}}{x}\\-{y}\\{z}\end{{pmatrix}}", rf"\langle {x}, -{y}, {z} \rangle",
            ],
            [
                f"{x}{i} + {y}{j} + {z}{k}", f"{x}{j} - {y}{i} + {z}{k}", f"{x}{i} - {y}{j}",
                f"{x}{i} - {y}{j} - {z}{k}",
                rf"\begin{{pmatrix}}{x}\\{y}\\{z}\end{{pmatrix}}", rf"\begin{{pmatrix}}{z}\\-{y}\\{x}\end{{pmatrix}}",
                f"{x}{i} - {y}{j} + {z}{k} + {x}{i}",
            ],
        ),
        *pairs(f"({x}, 0)", [f"{x}{i}"], [f"{x}{j}", f"{x}{k}", f"-{x}{i}"]),
        *pairs(rf"\begin{{pmatrix}}{x}\\{y}\end{{pmatrix}}", [f"({x}, {y})"], [f"({y}, {x})", f"[{x}, {y})"]),
    ]  # fmt: skip


@kind
def doubted_behind_a_box(chance: random.Random) -> list[Pair]:
    n, m = chance.sample(range(3, 90), 2)
    box = f"\\boxed{{{n}}}"
    return _given(
        str(n),
        [
            f"{box}\n\nThis includes both corners.", f"The question asks for the number of dots. There are {box}.",
            f"{box}. The question asks for the count, and the count is {n}.", f"{box}, which counts every edge once.",
        ],
        [
            f"The small square is {box}. The question asks for the large one, whose area is {m}.",
            f"Counting gives {box}, however this counts each pair twice.", f"{box}. But it ignores the hidden face.",
            f"We found {box}, but this includes the two corners twice.", f"{box}. However, we must add {m}.",
            f"{box} is the sum, whereas the mean, which is wanted, is {m}.", f"{box}. The problem wants {m}.",
        ],
    )  # fmt: skip


@kind
def charges_isotopes_and_hydrates(chance: random.Random) -> list[Pair]:
    element, small = chance.choice([("Fe", "³⁺"), ("Cu", "²⁺"), ("Al", "³⁺")])
    charge = "3" if small == "³⁺" else "2"
    mass = chance.randint(12, 240)
    water = chance.randint(2, 10)
    return [
        *pairs(
            f"{element}^{{{charge}+}}",
            [f"{element}{small}", rf"\mathrm{{{element}}}^{{{charge}+}}"],
            [f"{element}^{{{charge}-}}", f"{element}⁺", element, f"{element}^{{{int(charge) + 1}+}}"],
        ),
        *pairs(
            f"^{{{mass}}}{element}",
            [rf"^{{{mass}}}\mathrm{{{element}}}", rf"{{}}^{{{mass}}}{element}"],
            [rf"^{{{mass + 1}}}\mathrm{{{element}}}", rf"^{{{mass}}}\mathrm{{Co}}", element],
        ),
        *pairs(
            f"CuSO4·{water}H2O",
            [rf"\mathrm{{CuSO_4 \cdot {water}H_2O}}"],
            ["CuSO_4", rf"\mathrm{{CuSO_4 \cdot {water + 1}H_2O}}", rf"\mathrm{{CuSO_3 \cdot {water}H_2O}}"],
        ),
        *pairs("Al2(SO4)3", [r"\mathrm{Al_2(SO_4)_3}"], [r"\mathrm{Al_3(SO_4)_2}", r"\mathrm{Al_2(SO_3)_3}"]),
    ]


_TENS = ["", "十", "二十", "三十", "四十", "五十"]
_ONES = ["", "一", "二", "三", "四", "五", "六", "七", "八", "九"]


@kind
def chinese_times_and_money(chance: random.Random) -> list[Pair]:
    hour, minute = chance.randint(1, 9), chance.randint(10, 59)
    spoken = _TENS[minute // 10] + _ONES[minute % 10]
    yuan, jiao = chance.randint(1, 90), chance.randint(1, 9)
    return [
        *pairs(
            f"{hour}:{minute}",
            [f"{_ONES[hour]}点{spoken}分", f"{hour}点{minute}分"],
            [
                f"{_ONES[hour]}点",
                f"{hour}点{minute % 59 + 1}分",
                f"{hour % 12 + 1}点{minute}分",
                f"晚上{hour}点{minute}分",
            ],
            boxed=False,
        ),
        *pairs(f"{hour}:15", [f"{_ONES[hour]}点一刻"], [f"{_ONES[hour]}点三刻", f"{_ONES[hour]}点半"], boxed=False),
        *pairs(
            f"¥{yuan}.{jiao}",
            [f"{yuan}元{jiao}角", f"{yuan}.{jiao}0元"],
            [
                f"{yuan}元{jiao}分",
                f"{yuan}元",
                f"{yuan}{jiao}元",
                f"{jiao}元{yuan % 10}角" if yuan % 10 != jiao else "0元",
            ],
            boxed=False,
        ),
    ]


_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@kind
def shares_pounds_and_places(chance: random.Random) -> list[Pair]:
    top, bottom = sorted(chance.sample(range(1, 11), 2))
    n = chance.randint(2, 80)
    side, other = chance.sample(["north", "south", "east", "west"], 2)
    low = chance.randint(-20, 20)
    high = low + chance.randint(1, 20)
    return [
        *pairs(
            f"{top}/{bottom}",
            [f"{_NUMBERS[top - 1]} in {_NUMBERS[bottom - 1]}", f"{_NUMBERS[top - 1]} out of {_NUMBERS[bottom - 1]}"],
            [f"{_NUMBERS[bottom - 1]} in {_NUMBERS[top - 1]}", f"{_NUMBERS[top - 1]} or {_NUMBERS[bottom - 1]}"],
            boxed=False,
        ),
        *pairs(f"{n} pounds", [f"{n} lb", f"{n} lbs", f"£{n}"], [f"{n} kg", f"{n} oz", f"${n}"], boxed=False),
        *pairs(f"£{n}", [f"{n} pounds"], [f"{n} lb", f"€{n}"], boxed=False),
        *pairs(side, [f"toward the {side}"], [f"toward the {other}", f"away from the {side}"], boxed=False),
        *pairs(f"{n} N {side}", [f"{n} N, {side}"], [f"{n} N, {other}", f"{n} N", f"{n}, {side}"], boxed=False),
        *pairs(
            rf"\{{{low} \le x < {high}\}}",
            [f"[{low}, {high})", rf"\{{x \mid {low} \le x < {high}\}}"],
            [f"({low}, {high}]", f"[{low}, {high}]", rf"\{{{low}, {high}\}}", rf"\{{{low} < x < {high}\}}"],
        ),
        *pairs(
            "III", ["Quadrant III", "the region III"], ["Quadrant II", "not Quadrant III", "Quadrants III and IV"],
            boxed=False,
        ),
        *pairs(f"19{n % 10}0s", [f"the 19{n % 10}0s"], [f"19{n % 10}0", f"the 18{n % 10}0s"], boxed=False),
        *pairs("none", ["None of them"], ["all of them", "none or one", "one of them"], boxed=False),
    ]  # fmt: skip


@kind
def letters_that_are_left(chance: random.Random) -> list[Pair]:
    gold, other, third = chance.sample("ABCD", 3)
    options = ("a cube", "a cone", "a ball", "a rod")
    return _given(
        gold,
        [
            f"{other} contradicts the figure, {third} too. That leaves {gold}.",
            f"My first guess was {other}. It fails. So my final choice is {gold}.", f"Choose {gold} over {other}.",
        ],
        [
            f"{gold} contradicts the figure. That leaves {other}.", f"That leaves {gold} or {other}.",
            f"My first guess was {gold}. It fails. So my final choice is {other}.", f"Choose {other} over {gold}.",
            f"I picked {gold} over {other} earlier, but my final choice is {third}.",
        ],
        options,
    )  # fmt: skip


@kind
def yes_and_no_in_the_last_sentence(chance: random.Random) -> list[Pair]:
    so = chance.choice(["So", "Thus", "Hence", "Therefore", "Therefore,"])
    angle = chance.randint(20, 80)
    first, second = ("yes", "no") if chance.random() < 0.5 else ("no", "yes")
    return _given(
        first,
        [f"The angle is {angle} degrees.\n{so} {first}, that is what the figure shows."],
        [
            f"The angle is {angle} degrees.\n{so} {second}, that is what the figure shows.",
            f"The angle is {angle} degrees.\n{so} {first} and {second}.",
            f"The angle is {angle} degrees.\n{so} {first} or {second} cannot be told.",
        ],
    )
