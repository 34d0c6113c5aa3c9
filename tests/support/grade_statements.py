"""Makers of pairs in which a sentence states the answer: equations, counts, letters beside their text, JSON."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind

__all__ = ["KINDS"]  # with the kinds of the other modules

_LETTERS = "ABCDE"
_HEDGES = (
    "close to", "near to", "not far from", "far from", "similar to", "different from", "not", "unlike", "almost",
    "compared to", "less than", "above", "not equal to", "next to",
)  # fmt: skip
_THINGS = ("balls", "red cars", "small cubes", "students", "birds", "blue spheres")


def _prices(chance: random.Random) -> tuple[tuple[str, ...], int, int]:
    """Options that are prices, and the places of two of them."""
    options = tuple(f"${one:,}" for one in chance.sample(range(1_100, 99_000, 100), 5))
    right, other = chance.sample(range(5), 2)
    return options, right, other


@kind
def hedged_letters(chance: random.Random) -> list[Pair]:
    options, right, other = _prices(chance)
    value, gold, letter = options[right], _LETTERS[right], _LETTERS[other]
    found = []
    for hedge in chance.sample(_HEDGES, 3):
        for text in (
            f"The income is {value}, which is {hedge} option {letter}.",
            f"My result, {value}, is {hedge} option {letter}.",
        ):
            found.append(Pair(letter, text, False, options))
        found.append(Pair(gold, f"We add.\nThe income is {value}, which is {hedge} option {letter}.", True, options))
    found += [
        Pair(letter, f"The correct option {cannot} be option {letter}.", False, options)
        for cannot in ("cannot", "must not", "might")
    ]
    others = (
        "Students often pick",
        "A common mistake is to choose",
        "I started with",
        "It is hardly",
        "We argue against",
    )
    found += [Pair(letter, f"{say} option {letter}.", False, options) for say in chance.sample(others, 2)]
    found.append(Pair(letter, f"{value} would be option {letter}, but we add the tax.", False, options))
    remark = f"The income is {value} (option {letter} {chance.choice(['is the tax', 'leaves out the tax'])})."
    closest = f"About {value} is what we read, so it is closest to option {gold}."
    return [
        *found,
        *(Pair(wanted, remark, wanted == gold, options) for wanted in (gold, letter)),
        Pair(gold, f"I choose option {gold}.", True, options),
        Pair(gold, f"So it would be option {gold}.", True, options),
        Pair(gold, f"There are 12 students, so option {gold}.", True, options),
        Pair(gold, f"We add.\nThis leads to option {gold}.", True, options),
        Pair(gold, closest, True, options),
    ]


_NO_NAMES = (
    "{x}^2", "2{x}", "\\sqrt{{{x}}}", "{x} - 1", "3{x} + 2", "\\frac{{{x}}}{{2}}", "\\log {x}", "{x}^3", "-{x}",
    "{x}^{{-1}}", "5 - {x}",
)  # fmt: skip


@kind
def values_of_something_else(chance: random.Random) -> list[Pair]:
    value, x = str(chance.randint(3, 900)), chance.choice("xhrnkt")
    lead = chance.choice(["Thus, ", "So we get ", "Therefore ", "Hence ", "We find that "])
    found = []
    for formula in chance.sample(_NO_NAMES, 5):
        left = formula.format(x=x)
        found += [
            Pair(value, f"We look.\n{lead}${left} = {value}$.", False, type="integer"),
            Pair(value, f"{lead}${left}$ is {value}.", False, type="integer"),
        ]
    made = chance.choice(["half", "twice", "the square of", "the cube of", "the reciprocal of", "half of", "double"])
    noun = chance.choice(["height", "area", "radius", "number", "perimeter"])
    found += [Pair(value, f"{lead}{made} the {noun} is {value}.", False, type=one) for one in ("integer", "")]
    a, b = chance.sample(["AB", "CD", "EF", "GH"], 2)
    return [
        *found,
        *(Pair(value, f"{lead}${left} = {value}$.", True) for left in (x, f"{x}_1", a, f"\\angle {a}C", f"{a} + {b}")),
        *(Pair(value, f"{lead}the {noun} is {value}{end}", True, type="integer") for end in (".", "", " cm.")),
        Pair(value, f"We see that ${x} = 4$. {lead}${x}^2 + 1 = {value}$.", True),
        Pair(value, f"The area of the square is {value}.", True, type="integer"),
        Pair(value, f"Let the {noun} be {value}.", False, type="integer"),
        Pair(value, f"Hence the fourfold, $4{x}$, is {value}.", False, type="integer"),
    ]


@kind
def json_values(chance: random.Random) -> list[Pair]:
    top, bottom = chance.sample([2, 3, 5, 7, 11, 13], 2)
    n = chance.choice([2, 3, 5, 6, 7, 10])
    form = chance.choice(
        ['{"solution": "s", "short answer": "@"}', '```json\n{"short answer": "@", "why": "s {a}"}\n```']
    )
    found = []
    for slash in ("\\", "\\\\"):
        for dollar in ("", "$"):
            texts = {
                f"\\frac{{{top}}}{{{bottom}}}": f"{dollar}{slash}frac{{{top}}}{{{bottom}}}{dollar}",
                f"\\sqrt{{{n}}}": f"{dollar}{slash}sqrt{{{n}}}{dollar}",
            }
            turned = {
                f"\\frac{{{top}}}{{{bottom}}}": f"{dollar}{slash}frac{{{bottom}}}{{{top}}}{dollar}",
                f"\\sqrt{{{n}}}": f"{dollar}{slash}sqrt{{{n + 1}}}{dollar}",
            }
            for right, answers in ((True, texts), (False, turned)):
                found += [Pair(gold, form.replace("@", text), right) for gold, text in answers.items()]
    return found


@kind
def letters_in_mathematics(chance: random.Random) -> list[Pair]:
    options = tuple(map(str, chance.sample(range(10, 99), 5)))
    right, other = chance.sample(range(5), 2)
    gold, letter, value, wrong = _LETTERS[right], _LETTERS[other], options[right], options[other]
    command = chance.choice(["textbf", "mathrm", "text", "mathbf"])
    noun = chance.choice(["matches", "tiles", "squares", "ways"])
    lead = chance.choice(["So it takes", "Thus, we need", "Hence there are", "This gives"])

    def texts(one: str, said: str) -> list[str]:
        return [
            f"{lead} $\\{command}{{({one})}}\\ {said}$ {noun}.", f"{lead} ${said}$ {noun}, $\\{command}{{({one})}}$.",
            f"We count.\n{lead} $\\{command}{{({one})}}~{said}$.", f"The length is ${said}$ ({one}).",
            f"The length of the arc is {said}, i.e. {one}: {said}.", f"The number is {said} (option {one}).",
            f"The length is {said}, that is, ({one}).",
        ]  # fmt: skip

    mixed = [f"{lead} $\\{command}{{({letter})}}\\ {value}$ {noun}.", f"The length is {wrong} ({gold})."]
    hedged = [f"It is not $\\{command}{{({gold})}}\\ {value}$.", f"The value might be {value} ({gold})."]
    return [
        *(Pair(gold, text, True, options) for text in texts(gold, value)),
        *(Pair(gold, text, False, options) for text in texts(letter, wrong)),
        *(Pair(gold, text, False, options) for text in [*mixed, *hedged]),
    ]


@kind
def worked_equations(chance: random.Random) -> list[Pair]:
    a, b = chance.randint(3, 60), chance.randint(3, 60)
    total, times = a + b, a * b
    noun = chance.choice(_THINGS)
    texts = (
        "${a} \\cdot {b} = {v}$ " + noun + " in total", "Total: ${a}\\times {b} = {v}$.", "{a} \\cdot {b} = {v}",
        "So there are ${a} \\cdot {b} = {v}$ " + noun + ".", "By counting, $N = {a} \\cdot {b} = {v}$",
    )  # fmt: skip
    fill = [text.replace("{a}", str(a)).replace("{b}", str(b)) for text in texts]
    return [
        *(Pair(str(times), text.replace("{v}", str(times)), True, type="integer") for text in fill),
        *(Pair(str(total), text.replace("{v}", str(times)), False, type="integer") for text in fill),
        Pair(str(times), f"${a} \\cdot {b} = {times}$ {noun} minus 2", False, type="integer"),
        Pair(str(times), f"So there are ${a} \\cdot {b} = {times}$ {noun} minus 2.", False, type="integer"),
        Pair(str(a), f"${a} \\cdot {b} = {times}$ {noun} in total", False, type="integer"),
        Pair(str(times), f"${a} \\cdot {b} = {times}$ of which half are red", False, type="integer"),
    ]


@kind
def counts_behind_other_numbers(chance: random.Random) -> list[Pair]:
    left, taken = chance.sample(range(2, 30), 2)
    total, noun = left + taken, chance.choice(_THINGS)
    texts = (
        f"There are {total} {noun} at first; after removing {taken} there are {left} left.",
        f"Of the {total} {noun}, {left} remain.",
        f"We begin with {total} {noun}. Removing all {taken} of one kind leaves {left} {noun}.",
        f"{total} - {taken} = {left}, so {left} {noun} are left.",
        f"{taken} of the {total} {noun} are removed, so {left} {noun} are left.",
    )
    unsure = (
        f"Of the {total} {noun}, not {left} remain.", f"If {taken} of the {total} {noun} go, {left} remain.",
        f"Of the {total} {noun}, {left} or {taken} remain.", f"Of the {total} {noun}, at least {left} remain.",
        f"Of the {total} {noun}, would {left} remain?", f"{left} of the {total} {noun} are removed.",
    )  # fmt: skip
    return [
        *(Pair(str(left), text, True, type="integer") for text in texts),
        *(Pair(str(total), text, False, type="integer") for text in texts),
        *(Pair(str(left), text, False, type="integer") for text in unsure),
    ]


@kind
def last_clause_behind_a_formula(chance: random.Random) -> list[Pair]:
    small, high = chance.choice([(6, 10), (5, 13), (9, 15), (8, 17), (12, 20)])
    value = round((high**2 - small**2) ** 0.5)
    noun = chance.choice(["height", "radius", "length of AB", "side"])
    form = f"Let it be $h$. Then $h^2={high**2}-{small**2}={value**2}$, {{}} the {noun} is {{}} cm."
    so = chance.choice(["so", "hence", "therefore", "thus"])
    return [
        Pair(str(value), form.format(so, value), True),
        Pair(str(value**2), form.format(so, value), False),
        Pair(str(value), form.format(so, value + 1), False),
        Pair(str(value), f"Then $h^2={value**2}$, {so} half the {noun} is {value} cm.", False),
        Pair(str(value), f"Then $h^2={value**2}$, {so} $h={value}$ cm.", True),
    ]


@kind
def numbers_said_twice(chance: random.Random) -> list[Pair]:
    top, bottom = chance.choice([(1, 2), (3, 5), (3, 4), (1, 4), (7, 10), (9, 20), (3, 8)])
    share, noun = top / bottom, chance.choice(["fraction", "ratio", "probability"])
    join = chance.choice(["that is", "i.e.", "equivalently", "or"])
    found = []
    for gold in (f"{share:g}", f"{top}/{bottom}"):
        found += [
            Pair(gold, f"The {noun} of women is {top}/{bottom}, {join} {share:g}.", True),
            Pair(gold, f"The {noun} of women is {share:g}, {join} {top}/{bottom}.", True),
            Pair(gold, f"The {noun} of women is {top}/{bottom}, {join} {share + 0.1:g}.", False),
            Pair(gold, f"The {noun} of women is {share + 0.1:g}, {join} {top}/{bottom}.", False),
        ]
    return found


@kind
def words_that_end_a_sentence(chance: random.Random) -> list[Pair]:
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    day, other = chance.sample(days, 2)
    said = chance.choice(["yes", "no"])
    letter, wrong = ("A", "B") if said == "yes" else ("B", "A")
    text = f"The {{}} of the first {chance.choice(['bar', 'line'])} is {chance.choice(['higher', 'lower'])}, so {said}."
    forms = ("It falls on a {}.", "The date falls on {}.", "It is a {}", "It lands on a {}.", "It will be a {}.")
    unsure = ("The day before {}", "It does not fall on a {}.", "It falls on a {} or another day.", "Not a {}.")
    return [
        *(Pair(day, form.format(day), True, rules="dynamath") for form in forms),
        *(Pair(day, form.format(other), False, rules="dynamath") for form in forms),
        *(Pair(day, form.format(day), False, rules="dynamath") for form in unsure),
        Pair(letter, text.format("value"), True, ("yes", "no")),
        Pair(wrong, text.format("value"), False, ("yes", "no")),
        Pair(said, text.format("height"), True),
        Pair(letter, f"If the value were higher, so {said}.", False, ("yes", "no")),
    ]
