"""Makers of pairs that look alike and are different: articles and letters, yes and no, rows, commas, marks, bases."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind, pairs

__all__ = ["KINDS"]  # with the kinds of grade_kinds

_NOT_NOUNS = (
    "tens", "fives", "twelfths", "couples", "twins", "trios", "triples", "centuries", "negatives", "minuses", "googols",
    "bps", "basis points", "percentage points",
)  # fmt: skip


@kind
def articles_and_letters(chance: random.Random) -> list[Pair]:
    options = chance.choice([(), tuple(chance.sample(["red", "green", "blue", "white", "black"], 4))])
    thing, right = chance.choice(["circle", "graph", "cat", "quick look"]), chance.choice("BCD")
    said = [
        f"A {thing} is shown, so it's {right}.", f"A {thing} shows {right} is larger, so {right}.",
        f"A {thing} is visible, so the answer's {right}.", f"A {thing}; it's {right}",
        f"The answer is A. Wait, actually {right}.", f"The answer is A. No, it's {right}.",
    ]  # fmt: skip
    a = ["It's A.", f"A {thing} is shown, so it's A.", "The answer's A.", "The answer is A, as we see."]
    return [
        *(Pair(gold, text, gold == right, options) for gold in ("A", right) for text in said),
        *(Pair("A", text, True, options) for text in a),
        Pair("A", "The answer is A. Wait, that is wrong.", False, options),
    ]


@kind
def yes_then_no(chance: random.Random) -> list[Pair]:
    first, second = chance.choice([("yes", "no"), ("no", "yes"), ("true", "false")])
    word = first.capitalize()
    wrong = [
        f"{word}, but {second}.", f"{word}... actually {second}.", f"{word}, I was wrong: {second}.",
        f"{word}, it is not a prism? {second.capitalize()}.", f"{word}, but not always.", f"{word}, wait, {second}.",
        f"{word}. {second.capitalize()}.",
    ]  # fmt: skip
    right = [f"{word}.", f"{word}, because the line is longer.", f"Answer: {word}", f"{word}, it is so."]
    return [Pair(first, text, text in right) for text in right + wrong]


@kind
def rows_and_commas(chance: random.Random) -> list[Pair]:
    a, b, c = sorted(chance.sample(range(2, 90), 3))
    thousand, rest = chance.randint(1, 999), chance.randint(100, 999)
    return [
        *pairs(f"{a}-{b}-{c}", [f"{a}–{b}–{c}", f"{a} - {b} - {c}"], [str(a - b - c), f"{a}-{c}-{b}"]),
        *pairs(f"{a}:{b}:{c}", [f"{2 * a}:{2 * b}:{2 * c}"], [f"{a}/{b * c}", f"{a}:{c}:{b}"]),
        *pairs(f"{a}/{b}/{c}", [f"{a}/{b}/{c}"], [rf"\frac{{{a}}}{{{b * c}}}"]),
        *pairs(f"{b}-{a}", [f"{b}–{a}"], [str(b - a), f"{a}-{b}"]),
        *pairs(f"{thousand},{rest}", [f"{thousand}{rest}"], [f"{thousand}, {rest}"]),
        *pairs(f"{thousand}, {rest}", [f"{thousand},\\ {rest}"], [f"{thousand},{rest}", f"{thousand}{rest}"]),
    ]


@kind
def marks_and_units(chance: random.Random) -> list[Pair]:
    n = chance.randint(2, 89)
    return [
        *pairs(f"{n}°", [str(n), f"{n} degrees"], [f"{n}'", f"{n} rad", rf"{n} \text{{ radians}}"]),
        *pairs(f"{n}'", [rf"{n}'"], [f"{n}''", f'{n}"', f"{n}°"]),
        *pairs(f"{n} ft", [f"{n}'"], [f"{n}''"]),
        *pairs(f"{n} mM", [f"{n} mM"], [f"{n} MM", f"{n} Mm"]),
        *pairs(str(n), [f"{n} points"], [f"{n} {word}" for word in chance.sample(_NOT_NOUNS, 3)]),
        *pairs(str(n), [f"{n} months"], [rf"{n} \text{{ {chance.choice(_NOT_NOUNS)}}}", rf"{n}\ldots", f"{n}..."]),
        *pairs(str(n), [f"{n}%"], [f"{n}00%"]),
        *pairs(f"-{n}", [f"minus {n}", f"negative {n}"], [f"minus {n + 1}", f"minus -{n}"]),
        *pairs(f"{n}/90", [f"{n} out of 90"], [str(n), f"{n} out of 91"]),
        *pairs(f"{n} km/h", [f"{n}千米/时"], [f"{n}千米", f"{n} m/s"]),
        *pairs(f"0.{n:02d}", [f"{n}%"], [f"0.{n:02d}%"]),
    ]


@kind
def unknowns_and_bases(chance: random.Random) -> list[Pair]:
    n, x = chance.randint(2, 89), chance.choice("xynt")
    digits = "1" + "".join(chance.choice("01") for _ in range(4))
    return [
        *pairs(
            str(n),
            [f"{x} = {n}", rf"\sin A = {n}", f"|AB| = {n}", rf"\lim_{{{x} \to 0}} f({x}) = {n}"],
            [f"|{x}| = {n}", rf"\log {x} = {n}", rf"\sin {x} = {n}", rf"{x} \to {n}", rf"\ln({x}) = {n}"],
        ),
        *pairs(f"{digits}_2", [f"{digits}_{{2}}", f"({digits})_2"], [digits, f"{digits}_3"]),
    ]
