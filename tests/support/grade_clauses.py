"""Makers of pairs in which a number stands in a clause that states nothing of its own, or beside another value."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind

__all__ = ["KINDS"]  # with the kinds of the other modules

_STATED = (
    "So the speed is {n} m/s.", "Since the sides are equal, the radius is {n}.", "We find that the sum is {n}.",
    "According to the table we add 2 and 3, so the total is {n}.", "The number that solves it is {n}.",
    "We know that both are even; hence the count is {n}.", "The force is {n} N, which is small.",
    "In total, {n} people are shown.", "Therefore, x = {n}.", "When we add all of them, the sum is {n}.",
    "The area is {n} because the base is one.", "The share of those that are red is {n}.",
)  # fmt: skip
_NOT_STATED = (
    "So the speed doubles when the force is {n} N.", "When the force is {n} N, the speed doubles.",
    "The side is {n}, so the area grows.", "The side is {n}, hence it is a square.", "Once he has {n} coins, he stops.",
    "The question says that the radius is {n}.", "According to the problem, the mass is {n} kg.",
    "We are told that it has {n} sides.", "The figure shows that the radius is {n}.", "He claims the sum is {n}.",
    "The area of a square whose side is {n} must be found.", "The train, which takes {n} hours, arrives late.",
    "The man who bought {n} apples is happy.", "It depends on the number of coins, of which he has {n}.",
    "The line that measures {n} cm is the shortest.", "This holds as long as the sum is {n}.", "The trap is {n}.",
    "The original price was {n}.", "The given length is {n}.", "The most common mistake is {n}.", "Let x = {n}.",
    "The answer has {n} digits.", "The units digit of the answer is {n}.", "I needed {n} attempts.", "Take x = {n}.",
    "Now set k = {n}.", "There is a hole at x = {n}.", "The equation has no solution for k = {n}.", "Here r = {n}.",
    "The maximum is attained when x = {n}.", "Starting from x = {n}.", "where r = {n}.", "This would imply x = {n}.",
    "x is an even integer and y is {n}.", "Suppose the answer is {n}.", "The upper limit is {n}.",
)  # fmt: skip


@kind
def clauses(chance: random.Random) -> list[Pair]:
    number = chance.randint(11, 99)
    lead = chance.choice(["", "We look at the figure.\n", "Both parts are read off the figure. "])
    stated = [Pair(str(number), lead + text.format(n=number), True) for text in chance.sample(_STATED, 6)]
    other = [Pair(str(number), lead + text.format(n=number), False) for text in chance.sample(_NOT_STATED, 9)]
    return stated + other


@kind
def values_together(chance: random.Random) -> list[Pair]:
    """Two named values at the end are one answer; neither of them is it alone."""
    first, second = chance.sample(range(2, 60), 2)
    lead = chance.choice(["So", "Hence", "Therefore,", "We get", "Thus we obtain"])
    joint = chance.choice([" and ", ", ", ", and "])
    text = f"{lead} x = {first}{joint}y = {second}."
    premise = f"Since x = {first}, we get y = {second}."
    return [
        Pair(f"({first}, {second})", text, True),
        Pair(f"x = {first}, y = {second}", text, True),
        Pair(f"({second}, {first})", text, False),
        Pair(str(first), text, False),
        Pair(str(second), text, False),
        Pair(str(second), premise, True),
        Pair(str(first), premise, False),
    ]


@kind
def lines_by_their_name(chance: random.Random) -> list[Pair]:
    number, name = chance.randint(-9, 9), chance.choice("xyz")
    other = chance.choice([one for one in "xyz" if one != name])
    text = chance.choice(
        [
            "The axis of symmetry is the line {}.",
            "So the vertical asymptote is {}.",
            "Hence the directrix has the equation {}.",
        ]
    ).format(f"{name} = {number}")
    return [
        Pair(f"{name} = {number}", text, True),
        Pair(f"{other} = {number}", text, False),
        Pair(f"{name} = {number + 1}", text, False),
    ]


@kind
def compass(chance: random.Random) -> list[Pair]:
    ways = {"NE": "northeast", "NW": "northwest", "SE": "southeast", "SW": "southwest"}
    gold, other = chance.sample(sorted(ways), 2)
    return [
        Pair(ways[gold], f"Final answer: {gold}", True),
        Pair(gold, f"Final answer: {gold}", True),
        Pair(ways[gold], f"Final answer: {other}", False),
        Pair(gold, f"Final answer: {gold[::-1]}", False),
    ]


_SPOKEN_OF = (
    "The worst choice is {}.", "The second best option is {}.", "I was going to choose {}.", "Never pick {}.",
    "Option {} is correct only if x > 0.", "Option {} is correct except for the sign.", "Suppose {} is correct.",
    "The incorrect option is {}.", "Had we doubled it, the answer would be {}.", "My friend's answer is {}.",
    "I don't choose {}.", "Only a fool would choose {}.", "I could choose {}.", "They say the answer is {}.",
)  # fmt: skip
_CHOSEN = ("So I choose {}.", "The best option is {}.", "Option {} is correct.", "The answer is {}.", "I pick {}.")


@kind
def letters_spoken_of(chance: random.Random) -> list[Pair]:
    options = tuple(str(one) for one in chance.sample(range(10, 99), 4))
    letter = chance.choice("BCD")
    other = [Pair(letter, text.format(letter), False, options) for text in chance.sample(_SPOKEN_OF, 5)]
    return other + [Pair(letter, text.format(letter), True, options) for text in chance.sample(_CHOSEN, 3)]


@kind
def programs_and_rows_of_names(chance: random.Random) -> list[Pair]:
    number = chance.randint(1, 9)
    pairs = [(f"x += {number}", f"x -= {number}"), (f"x << {number}", f"x >> {number}"), ("a & b", "a | b")]
    pairs += [("5'-TACG-3'", "5'-ATGC-3'"), ("I-IV-V", "I-V-IV"), ("H-O-H", "H-H-O")]
    gold, other = chance.choice(pairs)
    return [
        Pair(gold, f"Final answer: {gold}", True),
        Pair(gold, f"Final answer: {other}", False),
        Pair(other, f"Final answer: {gold}", False),
    ]
