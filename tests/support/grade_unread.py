"""Makers of pairs where something beside the value counts: around a box, directions, functions, names, spellings."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind, pairs

__all__ = ["KINDS"]  # with the kinds of grade_kinds


@kind
def around_a_box(chance: random.Random) -> list[Pair]:
    n = chance.randint(2, 89)
    box = rf"\boxed{{{n}}}"
    right = [
        f"So $x = {box}$ cm.", f"It is about {box} minutes.", f"There are {box} apples.", f"**{box}**", f"- {box}",
        rf"Thus ${box}^\circ$.", rf"${box}\,\text{{m}}^2$", rf"${box}/\text{{min}}$",
        f"It is {box}: that is all.", f"Its value is {box} - as we said.", f"So it is {box}!",
    ]  # fmt: skip
    wrong = [
        f"The value is $-{box}$.", f"So $x > {box}$.", rf"So $x \neq {box}$.", f"${box}^2$", f"${box}x$",
        rf"$\sqrt{{{box}}}$", rf"$\frac{{{box}}}{{2}}$", f"at least {box}", f"It is not {box}.", f"{box} or more",
        rf"{box}\text{{ million}}", f"It costs {box} thousand dollars.", f"It is {box} less than before.",
        rf"${box}\pi$", f"${box}/2$", f"${box}:3$", f"${box}(x+1)$", rf"$\log {box}$", rf"$\ln({box})$",
        f"{box} is too large, so there is none.", f"{box}. But this contradicts the figure.",
        f"{box}, but the options do not contain it.",
    ]  # fmt: skip
    return [Pair(str(n), text, is_right) for is_right, texts in ((True, right), (False, wrong)) for text in texts]


@kind
def taken_from_a_sentence(chance: random.Random) -> list[Pair]:
    n, m = chance.sample(range(3, 90), 2)
    wrong = [
        f"There were {n}, of which {m} left.", f"Let x = {n}. Then 2x = {2 * n}.", f"{n}?",
        f"<answer>{m}</answer> or <answer>{n}</answer>", f"Final answer: {n}\nBut this contradicts the figure.",
    ]  # fmt: skip
    right = [f"I'd say {n}.", f"The answer is simply ${n}$.", f"The answer is {n}, not {m}.", f"<answer>{n}</answer>"]
    return [Pair(str(n), text, is_right) for is_right, texts in ((True, right), (False, wrong)) for text in texts]


@kind
def directions(chance: random.Random) -> list[Pair]:
    n, unit = chance.randint(2, 89), chance.choice(["m/s", "km", "N", "m/s^2"])
    one, other = chance.sample(["north", "south", "east", "west", "upward", "downward"], 2)
    angle = chance.randint(1, 44)
    return [
        *pairs(f"{n} {unit} {one}", [f"{n} {unit} {one}"], [f"{n} {unit} {other}", f"{n} {unit}"], boxed=False),
        *pairs(f"{n} {unit}", [f"{n} {unit}"], [f"{n} {unit} {one}", f"{n} {unit} at {angle}°"], boxed=False),
        *pairs(
            f"N {angle}° E",
            [f"{angle}° east of north", f"{90 - angle}° north of east", f"north {angle}° east"],
            [f"N {angle}° W", f"S {angle}° E", f"{angle}° north of east"],
            boxed=False,
        ),
    ]


@kind
def applied_and_crossed(chance: random.Random) -> list[Pair]:
    f, g = chance.sample("fghu", 2)
    a, b, c = chance.sample("abcdxy", 3)
    a, b = (b, a) if a + b == "by" else (a, b)  # "by" is a word
    m, k = chance.sample("ABPQ", 2)
    vector, second, third = (rf"\vec{{{letter}}}" for letter in (a, b, c))
    return [
        *pairs(f"{f}({g}({a}))", [f"{f}({g}({a}))"], [f"{g}({f}({a}))", f"{f}({a})"]),
        *pairs(f"{f}({a}) + {f}({b})", [f"{f}({b}) + {f}({a})"], [f"{f}({a} + {b})"]),
        *pairs(f"{a} ∘ {b}", [f"{a} ∘ {b}"], [f"{a} {b}"]),
        *pairs(f"{a}{b}", [f"{a} {b}"], [rf"\cancel{{{c}}} {a}{b}", f'"{a}{b}"']),
        *pairs(f"P({m}|{k})", [rf"P({m} \mid {k})"], [f"P({k}|{m})"]),
        *pairs(rf"{vector} \times {second}", [], [rf"{second} \times {vector}", rf"{vector} \cdot {second}"]),
        *pairs(f"{vector} + {second}", [f"{second} + {vector}"], [f"{a} + {b}", f"{vector} + {third}"]),
        *pairs(rf"{m}^{{-1}}{k}", [rf"{m}^{{-1}} {k}"], [rf"{k}{m}^{{-1}}"]),
        *pairs(rf"\langle {a} \rangle", [rf"\langle {a} \rangle"], [a]),
        *pairs(rf"\hat{{{a}}}", [rf"\hat{{{a}}}"], [a, rf"\bar{{{a}}}", rf"\hat{{{b}}}"]),
    ]  # fmt: skip


@kind
def named_parts(chance: random.Random) -> list[Pair]:
    a, b, c = chance.sample(range(-30, 30), 3)
    return [
        *pairs(
            f"({a}, {b})",
            [f"x = {a}, y = {b}", f"y = {b}, x = {a}", rf"\begin{{cases}} x = {a} \\ y = {b} \end{{cases}}"],
            [f"y = {a}, x = {b}", f"x = {b}, y = {a}", f"x = {a}"],
        ),
        *pairs(f"y = {b}, x = {a}", [f"({a}, {b})", f"x = {a}, y = {b}"], [f"({b}, {a})"]),
        *pairs(f"({a}, {b}, {c})", [f"z = {c}, x = {a}, y = {b}"], [f"z = {a}, x = {c}, y = {b}"]),
        *pairs(f"{abs(a) + 1}, {abs(a) + 1}, {abs(a) + 2}", [], [f"{abs(a) + 1}, {abs(a) + 2}"]),
        *pairs("C, A, B", ["C, A, B"], ["A, B, C", "B, C, A"]),
        *pairs(r"p \land q", [r"p \land q"], [r"p \lor q", r"p \land r"]),
    ]


@kind
def exchanged_sides(chance: random.Random) -> list[Pair]:
    a, b, c = chance.sample("ABCDEF", 3)
    x, y, z = chance.sample("xyzuv", 3)
    sign, other = chance.sample([r"\cap", r"\cup"], 2)
    return [
        *pairs(rf"{a} {sign} {b}", [rf"{b} {sign} {a}"], [rf"{a} {other} {b}", rf"{a} {sign} {c}"]),
        *pairs(rf"{a} {sign} {b} = {c}", [rf"{a} {sign} {b} = {c}"], [rf"{b} = {c} {sign} {a}"]),
        *pairs(rf"{a}{b} \perp {b}{c}", [rf"{b}{c} \perp {a}{b}"], [rf"{a}{b} \parallel {b}{c}"]),
        *pairs(f"{x} > {y} > {z}", [f"{z} < {y} < {x}"], [f"{x} > {z} > {y}", f"{x} < {y} < {z}"]),
        *pairs("|x - 2| < 3", ["-1 < x < 5", "(-1, 5)"], ["-5 < x < 1", r"-1 \le x \le 5"]),
        *pairs("x^2 + C", ["x^2 + c", "x^2 + C_1", "C + x^2"], ["x^2", "x^2 + 1", "x^3 + C"]),
        *pairs(r"\frac{\pi}{6}", [r"30^\circ", r"\pi/6"], [r"60^\circ", "30"]),
        *pairs(r"60^\circ", [r"\frac{\pi}{3}", r"\frac{\pi}{3}\text{ rad}"], [r"\frac{\pi}{6}", r"60\text{ rad}"]),
    ]


@kind
def other_spellings(chance: random.Random) -> list[Pair]:
    hour, minute = chance.randint(2, 11), chance.choice([("quarter", 15), ("half", 30), ("twenty", 20)])
    word, past = minute
    day, other = chance.sample(["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"], 2)
    n, m = chance.sample(range(2, 30), 2)
    return [
        *pairs(f"{hour}:{past:02d}", [f"{word} past {hour}"], [f"{word} past {hour + 1}", f"{word} to {hour}"], False),
        *pairs(day, [day[:3]], [other[:3], other], boxed=False),
        *pairs("second quadrant", ["Quadrant II", "2nd quadrant"], ["Quadrant IV", "third quadrant"], boxed=False),
        *pairs("2H2 + O2 -> 2H2O", [r"O_2 + 2H_2 \rightarrow 2H_2O"], ["2H2O -> 2H2 + O2", "H2 + O2 -> H2O"]),
        *pairs(r"x \to x^{2y}", [r"x \rightarrow x^{2y}"], [r"x \to x^2 y"]),
        *pairs(r"Fe^{3+} + e^- \to Fe^{2+}", [r"Fe^{3+} + e^{-} \rightarrow Fe^{2+}", "e^- + Fe^3+ -> Fe^2+"], []),
        *pairs("1s2 2s2 2p4", ["1s^2 2s^2 2p^4"], ["1s^2 2s^2 2p^5"]),
        *pairs(rf"{n} \times {m}", [f"{n} × {m}"], [rf"{m} \times {n}", str(n * m)]),
        *pairs(f"{n}:{m + 60}", [f"{2 * n}:{2 * m + 120}"], [f"{n} out of {m + 60}", f"{m + 60}:{n}"], boxed=False),
        *pairs("¥300", ["300 yuan", "300 yen"], ["$300", "€300", "3000 yuan"], boxed=False),
    ]  # fmt: skip


@kind
def options_beside_words(chance: random.Random) -> list[Pair]:
    options = ("rising", "falling", "unstable", "12 cm")
    right = ["It rises.", "The curve is rising.", "A", "Answer: (A)", "rising, as we see"]
    wrong = [
        "rising, maybe",
        "not rising",
        "A. falling",
        "Choice (A) is incorrect.",
        "A → B",
        "(A) rising and (B) falling",
    ]
    made = [Pair("A", text, text in right, options) for text in right + wrong]
    made += [Pair("C", text, False, options, rules="mathvista") for text in ("stable", "not unstable")]
    return made + [Pair("D", text, text == "D. 12 cm", options) for text in ("D. 12 cm", "D. 13 cm", "D) 120")]
