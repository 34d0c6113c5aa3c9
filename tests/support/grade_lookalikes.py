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


@kind
def spans(chance: random.Random) -> list[Pair]:
    hour, day, month = chance.randint(1, 9), chance.randint(1, 20), chance.choice(["May", "June", "July", "March"])
    bottom, shift = chance.randint(5, 9), chance.randint(1, 2)
    made = []
    for first, second, later, last in (
        (f"{hour}:30", f"{hour + 1}:30", f"{hour + shift}:30", f"{hour + shift + 1}:30"),
        (f"{hour} am", f"{hour + 1} am", f"{hour + 1} am", f"{hour + 2} am"),
        (f"{month} {day}", f"{month} {day + 2}", f"{month} {day + shift}", f"{month} {day + shift + 2}"),
        (f"1/{bottom}", f"3/{bottom}", f"2/{bottom}", f"4/{bottom}"),
    ):
        right = [f"{first} - {second}", f"{first} to {second}", f"from {first} to {second}"]
        wrong = [f"{later}-{last}", f"{later} to {last}", f"{second}-{first}", first]
        made += pairs(f"{first}-{second}", right, wrong)
    return made


@kind
def primes_and_segments(chance: random.Random) -> list[Pair]:
    letter, (a, b, c, d) = chance.choice("fghuvy"), chance.sample("ABCDEFKMN", 4)
    n = chance.randint(2, 9)
    return [
        *pairs(f"{letter}'({n})", [rf"{letter}'\left({n}\right)"], [f"{letter}({n})", f"{letter}''({n})"]),
        *pairs(f"{letter}''", [f" {letter}''"], [f"{letter}'", letter]),
        *pairs(f"{n}x", [f"{letter}'={n}x"], [f"{n}x'"]),
        *pairs(rf"{a}{b} \cdot {c}{d}", [rf"{d}{c} \cdot {a}{b}"], [rf"{a}{c} \cdot {b}{d}"]),
        *pairs(rf"\frac{{{a}{b}}}{{{a}{c}}}", [rf"\frac{{{b}{a}}}{{{a}{c}}}"], [rf"\frac{{{d}{b}}}{{{d}{c}}}"]),
        *pairs(rf"\angle {a}{b}{c}", [rf"\angle {c}{b}{a}"], [rf"\angle {a}{c}{b}", rf"\angle {b}{a}{c}"]),
    ]


@kind
def prices_and_things(chance: random.Random) -> list[Pair]:
    n, thing = chance.randint(2, 99), chance.choice(["apples", "nickels", "students", "points", "weeks", "kg"])
    return [
        *pairs(f"{n} {thing}", [f"{n} {thing}", str(n)], [rf"\${n}", f"{n} dollars"]),
        *pairs(f"${n}", [f"{n} dollars", str(n), f"{n} dollars and 0 cents"], [f"{n} {thing}", f"{n} coins"]),
    ]


@kind
def answers_not_meant(chance: random.Random) -> list[Pair]:
    n = chance.randint(2, 99)
    wrong = [
        f"I don't think the answer is {n}.", f"It is false that the answer is {n}.", rf"\boxed{{{n}}} is incorrect.",
        f"It is tempting to say the answer is {n}.", f"A common mistake is to say the answer is {n}.",
        f"Some would claim that the answer is {n}.", f"If x were 2, the answer would be {n}.",
        f"The answer is {n}. But the correct value is {n + 1}.",
        f"Final answer: {n}. The actual sum is {n + 1}, though.",
    ]  # fmt: skip
    right = [
        f"There is no doubt that the answer is {n}.", f"If we add all of them, the answer is {n}.",
        f"The answer is {n}. Indeed the correct value is {n}.", f"Some would say {n + 1}. So the answer is {n}.",
        f"The answer is {n + 1}. But the correct value is {n}.", rf"\boxed{{{n}}}. The correct answer is {n}.",
    ]  # fmt: skip
    return [Pair(str(n), text, text in right) for text in wrong + right]
