"""Makers of pairs in which an answer is taken back, is told in a sentence, or differs by its letters' case."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind, pairs

__all__ = ["KINDS"]  # with the kinds of the other modules

_BACK = (
    "{a}. Wait, it is {b}.", "{a}. Actually, {b}.", "{a}. No, {b}.", "{a}... sorry, {b}.", "{a}, no, {b}.",
    "{a}. Hold on, it should be {b}.", "{a}.\nCorrection: {b}", "{a}. On second thought, {b}.", "{a}, I mean {b}.",
    "{a}. Scratch that, it's {b}.", "{a}. I made a mistake: it is {b}.", "{a}. That is wrong. The answer is {b}.",
    "{a}. Oops, {b}.", "{a}. Let me recheck. The answer is {b}.", "{a}, or rather {b}.", "{a}. I was wrong: {b}.",
    "{a}. Hmm, the answer is {b}.", "{a} - actually {b}.", "{a}. My mistake, {b}.",
)  # fmt: skip
_ONLY_BACK = ("{a}. That is wrong.", "{a}. Scratch that.", "{a}. I take it back.", "{a}. Hmm, that is not right.")
_SAME = ("{a}. This is correct.", "{a}.", "{a}. Wait, that is correct.")


def _announced(answer: str, text: str, chance: random.Random) -> str:
    lead = chance.choice(["The answer is ", "Answer: ", "Final answer: ", "**Answer:** ", "I get "])
    return lead + text.replace("{a}", answer)


@kind
def taken_back(chance: random.Random) -> list[Pair]:
    a, b = chance.sample(range(2, 500), 2)
    options = tuple(chance.sample(["red", "green", "blue", "grey", "pink"], 4))
    x, y = chance.sample("ABCD", 2)
    found = []
    for text in chance.sample(_BACK, 6):
        found += [
            Pair(str(a), _announced(str(a), text.replace("{b}", str(b)), chance), False, type="integer"),
            Pair(str(b), _announced(str(a), text.replace("{b}", str(b)), chance), True, type="integer"),
            Pair(x, _announced(x, text.replace("{b}", y), chance), False, options),
            Pair(y, _announced(x, text.replace("{b}", y), chance), True, options),
        ]
    for text in _ONLY_BACK:
        found += [
            Pair(str(a), _announced(str(a), text, chance), False, type="integer"),
            Pair(x, _announced(x, text, chance), False, options),
        ]
    return [*found, *(Pair(str(a), _announced(str(a), text, chance), True) for text in _SAME)]


@kind
def yes_and_no_taken_back(chance: random.Random) -> list[Pair]:
    first, second = chance.choice([("Yes", "no"), ("No", "yes"), ("True", "false"), ("False", "true")])
    again = ("{a}. Actually {b}.", "{a}. Wait, {b}.", "{a}. Correction: {b}.", "{a}. Sorry, {b}.", "{a}, I mean {b}.",
             "{a}. On second thought, {b}.", "{a}; sorry, {b}.")  # fmt: skip
    doubt = ("{a}, {b}.", "{a}? {b}.", "{a}... {b}.", "{a} and {b}.", "{a}. Scratch that.", "{a}, but {b}.")
    texts = [text.replace("{a}", first).replace("{b}", second) for text in again]
    return [
        *(Pair(first.lower(), text, False) for text in texts),
        *(Pair(second, text, True) for text in texts),
        *(Pair(first.lower(), text.replace("{a}", first).replace("{b}", second), False) for text in doubt),
        Pair(first.lower(), f"{first}.", True),
    ]


@kind
def told_in_sentences(chance: random.Random) -> list[Pair]:
    n = chance.randint(3, 400)
    thing = chance.choice(["birds", "dots", "cars", "people", "tiles"])
    right = [
        f"There are {n} {thing} in the picture.", f"Tom has {n} {thing}.", f"So the area is {n}.", f"We get {n}.",
        f"In total, {n} {thing} are shown.", f"The triangle has an area of {n}.", f"It costs {n} dollars.",
        f"Adding them gives {n}.", f"The sum comes to {n}.", f"There are a total of {n} {thing}.",
    ]  # fmt: skip
    wrong = [
        f"There are more than {n} {thing}.", f"He lost {n} {thing}.", f"It is a multiple of {n}.", f"We add {n}.",
        f"The square root of {n} is needed.", f"It is {n} less than before.", f"Page {n} shows it.", f"It isn't {n}.",
        f"I doubt that it is {n}.", f"Half of it is {n}.", f"It is anything but {n}.", f"It drops by {n}.",
        f"The other answer is {n}.", f"It is divisible by {n}.", f"At first I thought {n}.", f"Its half equals {n}.",
    ]  # fmt: skip
    return [Pair(str(n), text, text in right, type="integer") for text in right + wrong]


@kind
def letters_by_case(chance: random.Random) -> list[Pair]:
    pair = "".join(chance.choice([letter, letter.lower()]) + letter.lower() for letter in chance.sample("ABDRTY", 2))
    x = chance.choice("rvpq")
    return [
        *pairs(pair, [pair], [pair.swapcase()]),
        *pairs(rf"{x}^2 + 1", [f"1 + {x}^2"], [f"{x.upper()}^2 + 1"]),
        *pairs(r"\pi", ["π"], [r"\Pi"]),
        *pairs("London", ["london", "LONDON"], ["Londo", "Londoner"]),
        *pairs("3rd", ["third", "the 3rd"], ["13th", "4th"]),
        *pairs("on the table", ["It is on the table."], ["under the table", "in the table"]),
    ]
