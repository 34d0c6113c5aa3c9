"""Makers of pairs of gold answer and response, right and wrong,
for every kind of answer that docs/grading.md names."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """A gold answer, a response to it, and whether a person would call it right."""

    gold: str
    response: str
    right: bool
    options: tuple[str, ...] = ()
    type: str = ""
    rules: str = ""


Maker = Callable[[random.Random], list[Pair]]
KINDS: dict[str, Maker] = {}


def kind(maker: Maker) -> Maker:
    KINDS[maker.__name__] = maker
    return maker


def pairs(gold: str, right: Iterable[str], wrong: Iterable[str], boxed: bool = True, **more: object) -> list[Pair]:
    """Pairs of one gold answer; the answers in a box, or announced."""
    form = "We work it out.\n\nSo it is $\\boxed{{{}}}$." if boxed else "We look.\n\nFinal answer: {}"
    return [
        Pair(gold, form.format(answer), is_right, **more)  # type: ignore[arg-type]
        for is_right, answers in ((True, right), (False, wrong))
        for answer in answers
    ]


@kind
def ranges(chance: random.Random) -> list[Pair]:
    low = chance.randint(0, 3000)
    step = chance.randint(1, 60)
    high, unit = low + step, chance.choice(["", " kg", " years", " cm", "%"])
    low_unit = unit if unit == "%" else ""
    shifted = chance.choice([-1, 1, step])
    return pairs(
        f"{low}{low_unit}-{high}{unit}",
        [f"{low}{low_unit}–{high}{unit}", f"{low}{low_unit} to {high}{unit}", f"from {low}{low_unit} to {high}{unit}"],
        [
            f"{low + shifted}{low_unit}-{high + shifted}{unit}", f"{low}-{high + 1}{unit}", str(-step), str(step),
            f"{high}{unit}", f"{low + step}-{high + step}{unit}",
        ],
        boxed=False,
    )  # fmt: skip


@kind
def letters(chance: random.Random) -> list[Pair]:
    word = "".join(chance.sample("ABCDEGHKLNOPRSTUVWXZ", chance.randint(2, 4)))
    other = list(word)
    while "".join(other) == word:
        chance.shuffle(other)
    roman = chance.choice([("IV", "VI"), ("IX", "XI"), ("XL", "LX"), ("XIV", "XVI"), ("CD", "DC"), ("XC", "CX")])
    formula = chance.choice([("CO2", "CO_2", "OC2"), ("NaCl", r"\text{NaCl}", "ClNa"), ("H2SO4", "H₂SO₄", "H2SO3")])
    return [
        *pairs(word, [word, rf"\text{{{word}}}"], ["".join(other), word[:-1], word + "Q"]),
        *pairs(roman[0], [roman[0]], [roman[1], roman[0] + "I"], boxed=False),
        *pairs(formula[0], formula[:2], formula[2:]),
    ]


@kind
def bounds(chance: random.Random) -> list[Pair]:
    value, other = chance.sample(range(1, 90), 2)
    signs = {r"\le": "≤", r"\ge": "≥", "<": "<", ">": ">"}
    sign = chance.choice(list(signs))
    wrong = [f"{s} {value}" for s in signs if s != sign] + [str(value), f"{sign} {other}", f"= {value}", signs[sign]]
    x, y = chance.sample("abmnxy", 2)
    turned = {r"\le": r"\ge", r"\ge": r"\le", "<": ">", ">": "<"}[sign]
    return [
        *pairs(f"{sign} {value}", [f"{signs[sign]}{value}", f"{sign}{value}.0"], wrong),
        *pairs(f"{x} {sign} {y}", [f"{y} {turned} {x}"], [f"{x} {turned} {y}", f"{y} {sign} {x}", f"{x} = {y}"]),
        *pairs(
            f"{x} {sign} {value}", [f"{value} {turned} {x}"], [f"{x} {turned} {value}", str(value), f"{x} = {value}"]
        ),
    ]


@kind
def words_behind_numbers(chance: random.Random) -> list[Pair]:
    n = chance.randint(2, 19)
    noun = chance.choice(["apples", "students", "red cars", "people", "sides", "units"])
    power = chance.choice([("thousand", 3), ("million", 6), ("billion", 9)])
    multiplied = ["million", "thousand", "dozen", "hundred", "halves", "quarters", "tenths", "squared", "cubed"]
    others = [
        *multiplied, "or more", "or less", "at most", "at least", "more than before", "times as many", "less", "or so",
        "too many", "per hour", "out of 20", "and a half", "in 30", "times larger", "short", "years older",
            "fewer", "- 3",
    ]  # fmt: skip
    before = ["at least", "more than", "less than", "at most", "under", "over", "nearly half of"]
    return [
        *pairs(
            str(n),
            [f"{n} {noun}", f"{n}.0 {noun}"],
            [f"{n} {words}" for words in chance.sample(others, 4)],
            boxed=False,
        ),
        *pairs(str(n), [f"{n} {noun} in total"], [f"{words} {n}" for words in chance.sample(before, 2)], boxed=False),
        *pairs(
            f"{n} {power[0]}",
            [str(n * 10 ** power[1]), f"{n * 10 ** power[1]:,}", f"{n} {power[0]}"],
            [str(n), f"{n}0 {power[0]}", f"{n} dozen", str(n * 10 ** (power[1] - 1))],
        ),
        *pairs(f"{n}/2", [f"{n} halves"], [str(n), f"{n} thirds", f"{n} quarters"], boxed=False),
        *pairs(
            f"{n} minutes", [f"{n} min", str(n)], [f"{n} minutes less", f"{n} minutes late", f"{n} hours"], boxed=False
        ),
    ]


@kind
def money(chance: random.Random) -> list[Pair]:
    n = chance.randint(2, 98)
    sign, word = chance.choice([("€", "euros"), ("£", "pounds"), ("¥", "yen")])
    return [
        *pairs(f"{n} cents", [f"{n}¢", rf"\$0.{n:02d}", f"{n} cents"], [f"${n}", rf"\${n}", f"{n} dollars",
            f"{sign}{n}"],
               boxed=False),
        *pairs(rf"\${n}", [f"${n}.00", f"{n} dollars", f"{n}00 cents", str(n)], [f"{n} cents",
            f"{sign}{n}", f"{n} {word}"],
               boxed=False),
        *pairs(f"{sign}{n}", [f"{n} {word}", f"{sign}{n}.00"], [f"${n}", rf"\${n}", f"{n} cents", f"{sign}{n + 1}"],
               boxed=False),
    ]  # fmt: skip


FORMS = ("{}°", "√{}", "{}π", "x² + {}", "−{}", "≤ {}", "{} cm²", r"${}^{{\circ}}$", r"$\sqrt{{{}}}$",
    "±{}", "{}–99", "½ × {}",
         "“{}”", "{}%", "\\alpha = {}", "∠{}", r"$\dfrac{{1}}{{{}}}$", "{} ∶ 1", "{}th row", "A{}")  # fmt: skip


@kind
def option_texts(chance: random.Random) -> list[Pair]:
    form = chance.choice(FORMS)
    options = tuple(form.format(n) for n in chance.sample(range(2, 90), 4))
    right = chance.randrange(4)
    letter, wrong = "ABCD"[right], [c for i, c in enumerate("ABCD") if i != right]
    texts = [text for i, text in enumerate(options) if i != right]
    gold = options[right]
    return [
        *pairs(gold, [letter, f"({letter})", f"{letter}. {gold}"], wrong, boxed=False, options=options),
        *pairs(gold, [gold], texts, boxed=False, options=options),
        *pairs(letter, [gold, letter], [*texts[:2], f"{letter} or {wrong[0]}"], boxed=False, options=options),
    ]


NAMES = (r"\angle ABC", r"m\angle A", "AB", r"\overline{AB}", "|AB|", r"|\vec{a}|", "x", "x_1", r"\text{Area}", "S",
         r"V_{\text{cone}}", r"S_{\triangle ABC}", r"\sin A", r"\tan\theta", "P(A)", "P(X=2)", "f(3)",
             r"\frac{AB}{CD}",
         r"\frac{dy}{dx}", r"\therefore x", r"\Rightarrow n", "AB = CD", "x = y", "E(X)", "a_{10}")  # fmt: skip


@kind
def named_values(chance: random.Random) -> list[Pair]:
    name, n = chance.choice(NAMES), chance.randint(2, 90)
    x = chance.choice("xyn")
    return [
        *pairs(
            str(n),
            [f"{name} = {n}", f"={n}", f"{x} = \\frac{{{2 * n}}}{{2}} = {n}", f"{n} = {x}",
                rf"\boldsymbol{{{x}={n}}}"],
            [
                f"{name} = {n + 1}", f"2{x} = {n}", f"{x}^2 = {n}", f"AB + CD = {n}",
                    f"{x} = {n} = {n + 1}", f"-{x} = {n}",
                f"\\frac{{{x}}}{{2}} = {n}", f"{x} > {n}", f"{x} = {n}, z = 3", f"{x} \\ne {n}", f"{n} = 2{x}",
            ],
        ),
        *pairs(f"AB = {n}", [str(n), f"AB={n}"], [f"AB = {n + 1}", f"CD = {n + 1}", f"AB > {n}"]),
    ]  # fmt: skip


@kind
def displays(chance: random.Random) -> list[Pair]:
    top, bottom = chance.sample(range(2, 30), 2)
    forms = (
        "**Final Answer**\n\n\\[\n{}\n\\]",
        "Final answer:\n$$\n{}\n$$",
        "The answer is\n\\[\n{}.\n\\]",
        "Hence\n\\[\n{}\n\\]",
    )
    made = []
    for form in forms:
        for text, right in ((rf"\frac{{{top}}}{{{bottom}}}", True), (rf"\frac{{{bottom}}}{{{top}}}", False)):
            made.append(Pair(f"{top}/{bottom}", "We add both.\n\n" + form.format(text), right))
    return made


@kind
def typed_characters(chance: random.Random) -> list[Pair]:
    a, b = chance.sample([2, 3, 5, 7, 11, 13, 17, 19, 23], 2)
    greek = chance.choice(
        [("ρ", r"\rho"), ("σ", r"\sigma"), ("τ", r"\tau"), ("μ", r"\mu"), ("ω", r"\omega"), ("φ", r"\varphi")]
    )
    return [
        *pairs(rf"{a}\sqrt{{{b}}}", [f"{a}√{b}", f"{a}sqrt({b})", f"{a}*sqrt({b})"], [f"{b}√{a}", f"√{b}",
            f"{a}√{b}1"],
               boxed=False),
        *pairs(rf"\frac{{{a}}}{{{b}}}", [f"{a}⁄{b}", f"{a}/{b}"], [f"{b}⁄{a}", f"{a}∶{b}0", str(a)], boxed=False),
        *pairs(f"{a}:{b}", [f"{a}∶{b}", f"{a}：{b}", f"{a} to {b}"], [f"{b}∶{a}", f"{a}{b}",
            f"{a}:{b + 1}"], boxed=False),
        *pairs(rf"{greek[1]} g h^{a}", [f"{greek[0]}gh^{a}"], [f"{greek[0]}gh", f"νgh^{a}"]),
        *pairs(rf"\frac{{\pi}}{{{a}}}", [f"pi/{a}", f"π/{a}"], [f"pi/{b}", f"{a}/pi"], boxed=False),
        *pairs(f"{a}{b}", [f"{a}{b}º", f"{a}{b}˚"], [f"{b}{a}º"], boxed=False),
    ]  # fmt: skip


ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen"]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
CHINESE = "零一二三四五六七八九"


@kind
def numerals(chance: random.Random) -> list[Pair]:
    tens, one = chance.randint(2, 9), chance.randint(2, 9)
    n = 10 * tens + one
    word, chinese = f"{TENS[tens - 2]}-{ONES[one]}", f"{CHINESE[tens]}十{CHINESE[one]}"
    wrong = [TENS[tens - 2], ONES[one], CHINESE[one], f"{CHINESE[tens]}十", f"{word} hundred", f"{chinese}百"]
    small = chance.randint(2, 15)
    return [
        *pairs(str(n), [word, word.replace("-", " "), chinese, f"{chinese}个"], wrong, boxed=False),
        *pairs(word, [str(n), chinese], [str(n + 1), str(tens), str(one)], boxed=False),
        Pair(str(small), f"There are {ONES[small]} birds in the picture.", True),
        Pair(str(small), f"There are at least {ONES[small]} birds in the picture.", False),
        Pair(str(small), f"There are {ONES[small]} birds and {ONES[small - 1]} cats.", False),
        Pair(str(small), f"He has not {ONES[small]} birds.", False),
    ]


@kind
def several_gold_answers(chance: random.Random) -> list[Pair]:
    a, b, c = chance.sample(range(10, 99), 3)
    words = chance.sample(["Porto", "Lisbon", "Faro", "Braga"], 3)
    return [
        *pairs(f"['{a}/7', '{b}']", [f"{a}/7", str(b)], [str(c), f"{a}", f"{a}/7 or {c}"], rules="mmmu_val"),
        *pairs(f"['{words[0]}', '{words[1]}']", words[:2], [words[2], f"not {words[0]}"], rules="MMMU", boxed=False),
        *pairs(f"{a} ## {b}", [str(a), str(b)], [str(c), f"{a}{b}"], rules="mv_math"),
        *pairs(
            f"(1) {a}; (2) {b}", [f"(1) {a} (2) {b}", f"{a}, {b}"], [f"(1) {b} (2) {a}", str(a), f"(1) {a} (2) {c}"]
        ),
        *pairs("①③", ["①、③", "(1), (3)"], ["①②", "①②③", "(1)"]),
    ]


@kind
def sets_of_numbers(chance: random.Random) -> list[Pair]:
    a = chance.randint(-20, 20)
    b = a + chance.randint(1, 20)
    return [
        *pairs(
            rf"\{{x \mid {a} < x \le {b}\}}",
            [f"({a}, {b}]", f"{a} < x \\le {b}", rf"\{{t: {a}<t\le {b}\}}"],
            [f"[{a}, {b}]", f"({a}, {b})", f"[{a},{b})", rf"\{{{a}, {b}\}}", f"({a}, {b + 1}]", f"{a} < x"],
        ),
        *pairs(
            f"x≥{a}且x≠{b}",
            [rf"[{a},{b})\cup({b},+\infty)", rf"x \ge {a} \text{{ and }} x \ne {b}"],
            [rf"[{a},+\infty)", f"x≥{a}", f"x≠{b}", rf"({a},{b})\cup({b},\infty)", f"[{a},{b})"],
        ),
        *pairs(
            rf"\{{{a}, {b}\}}", [f"{b}, {a}", f"x={a} or x={b}"], [f"({a},{b})", str(a), rf"\{{{a}, {b}, {b + 1}\}}"]
        ),
    ]


@kind
def radicals(chance: random.Random) -> list[Pair]:
    a, b, c = chance.sample("abghkmnpqrt", 3)
    n = chance.choice([2, 3, 5, 6, 7])
    return [
        *pairs(
            rf"\sqrt{{{n}{a}{b}}}",
            [rf"\sqrt{{{n}}}\sqrt{{{a}}}\sqrt{{{b}}}", f"({n}{a}{b})^{{1/2}}", rf"\sqrt{{{a}}}\sqrt{{{n}{b}}}"],
            [
                rf"\sqrt{{{a}{b}}}",
                rf"\sqrt{{{n}}}{a}{b}",
                rf"\sqrt{{{a}}}+\sqrt{{{b}}}",
                rf"\sqrt{{{n}{a}}}",
                f"{n}{a}{b}",
            ],
        ),
        *pairs(
            rf"\sqrt{{\frac{{{n}{a}}}{{{b}}}}}",
            [rf"\frac{{\sqrt{{{n}{a}{b}}}}}{{{b}}}", rf"\sqrt{{{n}{a}/{b}}}"],
            [rf"\sqrt{{\frac{{{n}{b}}}{{{a}}}}}", rf"\frac{{\sqrt{{{n}{a}}}}}{{{b}}}", rf"\sqrt{{{n}{a}{b}}}"],
        ),
        *pairs(rf"\ln({a}{b})", [rf"\ln {a}+\ln {b}"], [rf"\ln {a}\ln {b}", rf"\ln({a}+{b})", rf"\ln {a}-\ln {b}"]),
        *pairs(rf"\sqrt{{{c}^2}}", [f"|{c}|"], [f"-{c}", f"{c}^2", f"{c}+1"]),
    ]


@kind
def choices(chance: random.Random) -> list[Pair]:
    options = tuple(chance.sample(["red", "green", "blue", "white", "black", "brown"], 4))
    right = chance.randrange(4)
    gold, others = "ABCD"[right], [c for i, c in enumerate("ABCD") if i != right]
    text, other = options[right], options["ABCD".index(others[0])]
    good = [
        f"Answer: {others[0]}\nNo, I misread it.\nAnswer: {gold}", f"**{gold}. {text}**", f"It must be {gold}.",
        f"{others[0]} is wrong and {others[1]} is wrong, so {gold}.", f"The answer is not ({others[0]}) but ({gold}).",
        f"The answer is {text}.", f"The correct option is {gold} because it fits.", f"I choose ({gold}).",
    ]  # fmt: skip
    bad = [
        f"Answer: {gold}\nNo, I misread it.\nAnswer: {others[0]}", f"{gold} or {others[0]}", f"{gold} is wrong.",
        f"The answer is not {gold}.", f"**{gold}. {other}**", f"The answer is {other}.", "I cannot tell.",
        "A person stands on the street" if gold == "A" else f"{others[0]} because of {gold}",
    ]  # fmt: skip
    return [Pair(gold, response, True, options) for response in good] + [
        Pair(gold, response, False, options) for response in bad
    ]


@kind
def sentences(chance: random.Random) -> list[Pair]:
    n, m = chance.sample(range(11, 99), 2)
    word = chance.choice(["dog", "circle", "prism", "Tuesday", "oxygen"])
    good = [
        f"The fee is ${n},300.",
        f"She pays {n}300 dollars in all.",
        f"The total is **{n}300**.\n\nI hope this helps!",
    ]
    bad = [
        f"The fee is ${n},300 to ${m},300.",
        f"It is not {n}300.",
        f"At least {n}300 came.",
        f"It is {n}300 times as much.",
    ]
    made = [Pair(f"{n}300", text, True) for text in good] + [Pair(f"{n}300", text, False) for text in bad]
    for text, right in (("It is a {}.", True), ("I think it's a {}.", True), ("It is not a {}.", False),
        ("hot {}", False),
                        ("{} or cat", False), ("a {} house", False), ("The answer is {}.", True)):  # fmt: skip
        made.append(Pair(word, text.format(word), right, (), "", chance.choice(["", "mmmu", "dynamath"])))
    return made
