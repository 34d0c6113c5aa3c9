"""Makers of pairs for letters with digits and marks, derivatives, ratios with names, readings, literals of programs."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind, pairs

__all__ = ["KINDS"]  # with the kinds of grade_kinds


@kind
def digits_behind_letters(chance: random.Random) -> list[Pair]:
    letter = chance.choice("ABDGLQRTXZabdfghknprtuvwz")
    i, j, k = chance.sample(range(1, 10), 3)
    a, b, c = f"{letter}{i}", f"{letter}{j}", f"{letter}{k}"
    low_a, low_b, low_c = f"{letter}_{i}", f"{letter}_{{{j}}}", f"{letter}_{k}"
    return [
        *pairs(a, [low_a], [letter, b, low_b, f"{i}{letter}", f"{letter}^{i}"]),
        *pairs(
            f"{a} + {b}",
            [f"{low_a} + {low_b}", f"{b} + {a}", f"{low_b} + {low_a}"],
            [f"{i + j}{letter}", f"{letter}{i + j}", f"{low_a} + {low_c}", f"{a} - {b}", f"{a}{b}"],
        ),
        *pairs(f"m = {a} F", [f"m = F {low_a}"], [f"M = {a} F", f"m = {b} F"]),
        *pairs(
            f"{a} > {b}",
            [f"{low_a} > {low_b}", f"{low_b} < {low_a}"],
            [f"{b} > {a}", f"{low_a} > {low_c}", f"{c} > {b}"],
        ),
        *pairs(f"{a} = {b}", [f"{low_b} = {low_a}"], [f"{a} = {c}", f"{b} = {c}", f"{a} = {b} + 1"]),
        *pairs(
            rf"\frac{{{a} {b}}}{{{a} + {b}}}",
            [rf"\frac{{{low_a} {low_b}}}{{{low_b} + {low_a}}}"],
            [rf"\frac{{{i * j}{letter}}}{{{i + j}}}", rf"\frac{{{a} + {b}}}{{{a} {b}}}",
             rf"\frac{{{a} {c}}}{{{a}+{c}}}"],
        ),
        *pairs(f"{a} < {b} < {c}", [f"{low_c} > {low_b} > {low_a}"], [f"{c} < {b} < {a}", f"{a} < {c} < {b}"]),
    ]  # fmt: skip


@kind
def derivatives_and_primes(chance: random.Random) -> list[Pair]:
    y, x = chance.choice([("y", "x"), ("x", "t"), ("s", "t"), ("u", "v")])
    n = chance.randint(2, 9)
    first = rf"\frac{{d{y}}}{{d{x}}}"
    return [
        *pairs(first, [first, rf"\frac{{d {y}}}{{d {x}}}"], [rf"\frac{{d{x}}}{{d{y}}}", rf"\frac{{dz}}{{d{x}}}", y]),
        *pairs(
            f"{first} = {n}{x}",
            [rf"\frac{{d{y}}}{{d{x}}} = {n} {x}", rf"{n}{x} = {first}"],
            [rf"\frac{{d{x}}}{{d{y}}} = {n}{x}", rf"\frac{{d^2{y}}}{{d{x}^2}} = {n}{x}", f"{first} = {n + 1}{x}"],
        ),
        *pairs(
            f"{y}' = {n}{y}",
            [f"{y}'={n} {y}", rf"{y}^{{\prime}} = {n}{y}"],
            [f"{y} = {n}{y}'", f"{y}'' = {n}{y}", f"{y}' = {n}"],
        ),
        *pairs(
            f"{first} + {n}{y} = 0",
            [f"{n}{y} + {first} = 0"],
            [f"{first} - {n}{y} = 0", rf"\frac{{d{x}}}{{d{y}}} + {n}{y} = 0"],
        ),
    ]  # fmt: skip


@kind
def ratios_with_names(chance: random.Random) -> list[Pair]:
    p, q = chance.sample([2, 3, 5, 7, 11], 2)
    a, b, c = chance.choice([("v1", "v2", "v3"), ("a", "b", "c"), ("AB", "CD", "EF"), ("S_1", "S_2", "S_3")])
    return pairs(
        f"{a}:{b} = {p}:{q}",
        [f"{b}:{a} = {q}:{p}", f"{a} : {b} = {2 * p}:{2 * q}", f"{p}:{q}"],
        [f"{b}:{a} = {p}:{q}", f"{a}:{b} = {q}:{p}", f"{a}:{c} = {p}:{q}", f"{q}:{p}", f"{a}:{b} = {p + 1}:{q}"],
    )


@kind
def readings_literals_and_nouns(chance: random.Random) -> list[Pair]:
    high, low = chance.randint(100, 180), chance.randint(60, 95)
    n, m = chance.sample(range(2, 30), 2)
    one, other = chance.sample(["cats", "dogs", "boys", "girls", "cars"], 2)
    digits = f"{chance.randint(16, 200):X}"
    turned = digits[::-1] if digits[::-1] != digits else f"{digits}1"
    inside, outside = chance.sample("ABCMN", 2)
    return [
        *pairs(
            f"{high}/{low} mmHg",
            [f"{high}/{low} mm Hg", f"{high}/{low}"],
            [f"{low}/{high} mmHg", f"{high / low} mmHg", f"{2 * high}/{2 * low} mmHg", f"{high} mmHg"],
            boxed=False,
        ),
        *pairs(f"0x{digits}", [f"0x{digits.lower()}"], [f"0x{turned}", "0", f"0x{digits}0", digits], boxed=False),
        *pairs("0", ["0.0"], [f"0x{digits}", "0b1", "0o7"], boxed=False),
        *pairs(
            f"{n} {one} and {m} {other}",
            [f"{n} {one} and {m} {other}", f"{m} {other} and {n} {one}"],
            [f"{n} {one} or {m} {other}", f"{m} {one} and {n} {other}", f"{n} {one}", str(n + m)],
            boxed=False,
        ),
        *pairs(
            rf"{inside} \subset {outside}",
            [rf"{outside} \supset {inside}"],
            [rf"{outside} \subset {inside}", rf"{inside} \supset {outside}", rf"{inside} \not\subset {outside}"],
        ),
        *pairs(f"-{n}", [f"{n} below zero"], [f"{n} above zero", f"{m} below zero", str(n)], boxed=False),
    ]


@kind
def signs_that_algebra_does_not_read(chance: random.Random) -> list[Pair]:
    n, m = chance.sample(range(2, 60), 2)
    modulus = chance.randint(3, 12)
    r = chance.randrange(modulus)
    a, b = chance.sample("abcpqxy", 2)
    sign = chance.choice([r"\oplus", r"\star", r"\to", r"\vdash", r"\otimes"])
    return [
        *pairs(
            rf"{n}\angle {m}^\circ",
            [rf"{n} \angle {m}^{{\circ}}"],
            [rf"{m}\angle {n}^\circ", rf"{n}\angle -{m}^\circ"],
        ),
        *pairs(
            rf"x \equiv {r} \pmod {modulus}",
            [rf"x \equiv {r} \pmod{{{modulus}}}", rf"x \equiv {r + modulus} \pmod {modulus}"],
            [rf"x \equiv {r + 1} \pmod {modulus}", rf"x \equiv {r} \pmod {modulus + 1}", f"x = {r}"],
        ),
        *pairs(rf"{a} {sign} {b}", [rf"{a} {sign} {b}"], [rf"{b} {sign} {a}", f"{a}{b}", f"{a} + {b}"]),
        *pairs(f"{n}^\\circ {m}'", [f"{n}^\\circ{m}'"], [f"{m}^\\circ {n}'", f"{n}^\\circ {m}''", f"{n}^\\circ"]),
        *pairs(
            f"{a} > {n}, {b} < {m}",
            [f"{b} < {m}, {a} > {n}"],
            [rf"{a} > {n} \text{{ or }} {b} < {m}", f"{a} < {n}, {b} > {m}", f"{a} > {n}"],
        ),
    ]  # fmt: skip


@kind
def chinese_numerals_and_rankings(chance: random.Random) -> list[Pair]:
    one, other = chance.sample(range(2, 10), 2)
    spoken = "零一二三四五六七八九"
    word = chance.choice(["倍", "层", "号楼"])
    rank = chance.sample("ABCDE", 4)
    rank = rank if rank != sorted(rank) else rank[::-1]  # letters in order are a set
    turned = [rank[1], rank[0], *rank[2:]]
    return [
        *pairs(
            f"{one}{word}", [f"{spoken[one]}{word}"], [f"{spoken[other]}{word}", f"{spoken[one]}分之一"], boxed=False
        ),
        *pairs(
            f"{spoken[one]}月{spoken[other]}日",
            [f"{one}月{other}日"],
            [f"{other}月{one}日", f"{one}月1{other}日"],
            boxed=False,
        ),
        *pairs(
            "".join(rank), [", ".join(rank)], [", ".join(turned), "".join(turned), ", ".join(rank[:3])], boxed=False
        ),
        *pairs("noon", ["12 noon", "12:00 PM"], ["midnight", "12:00 AM", f"{one} PM"], boxed=False),
    ]


@kind
def codes_and_sentences_with_numbers(chance: random.Random) -> list[Pair]:
    a, b = chance.sample("BDFGHKLMNPQRT", 2)
    n = chance.randint(123, 9876)
    turned = f"{n + 9}"
    parts = chance.sample(range(1, 250), 4)
    address, swapped = ".".join(map(str, parts)), ".".join(map(str, [parts[1], parts[0], *parts[2:]]))
    first, second = chance.sample(range(1, 10), 2)
    team = chance.choice(["Team A", "The blue side", "Brazil"])
    return [
        *pairs(
            f"{a}{b}-{n}",
            [f"{a}{b}-{n}", f"{a}{b}–{n}"],
            [f"{b}{a}-{n}", f"{a}{b}-{turned}", f"{a}{b}{n}"],
            boxed=False,
        ),
        *pairs(f"{a}{b}{n}", [f"{a}{b}{n}"], [f"{b}{a}{n}", f"{a}{b}{turned}", f"{n}{a}{b}"], boxed=False),
        *pairs(address, [address], [swapped, f"{address}0", address.rpartition(".")[0]], boxed=False),
        *pairs(
            f"{team} won {first} to {second}",
            [f"{team} won {first} to {second}"],
            [f"{team} won {second} to {first}", f"{team} lost {first} to {second}", f"{first} to {second} or so"],
            boxed=False,
        ),
        *pairs(f"{first} of {second}", [f"{first} of {second}"], [f"{second} of {first}", str(first)], boxed=False),
    ]  # fmt: skip


@kind
def nouns_of_labels(chance: random.Random) -> list[Pair]:
    noun, other = chance.sample(["figure", "point", "line", "region", "graph", "team"], 2)
    p, q = chance.sample("KLMNPQRST", 2)
    small, large = chance.sample(["II", "III", "IV", "VI"], 2)
    letter = p.lower()
    return [
        *pairs(p, [f"{noun} {p}", f"the {noun} {p}"], [f"{noun} {q}", f"not {noun} {p}", q], boxed=False),
        *pairs(
            f"{noun} ({letter})", [f"({letter})", f"{noun} {letter}"], [f"({q.lower()})", f"{other} ({letter})"]
        ),
        *pairs(f"{noun}s {p} and {q}", [f"{p} and {q}"], [f"{p} or {q}", p, f"{other}s {p} and {q}"], boxed=False),
        *pairs(small, [f"{noun} {small}"], [f"{noun} {large}", f"{small} or {large}"], boxed=False),
        *pairs(f"{small} and {large}", [f"{large}, {small}"], [f"{small} or {large}", small], boxed=False),
        *pairs(f"{small}, {large}", [f"{small} and {large}"], [f"{small} or {large}", small], boxed=False),
    ]  # fmt: skip
