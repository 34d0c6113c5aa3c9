"""Makers of pairs in which a letter, a yes or a truth is affirmed, judged, or bound to a condition."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind

__all__ = ["KINDS"]  # with the kinds of the other modules

_JUDGED = (
    "({}) is eliminated", "{}. {own} is too small.", "{}) {own} is wrong", "{} is correct for even numbers only",
    "{}. {own} cannot be.", "({}) {own} has the wrong unit", "{}: {own} fails", "{} {own} is too large",
    "({}) does not fit", "{}. {own} leaves out one edge", "{} is correct for even n", "{} is correct when n is even",
    "{} is correct in part", "{} is right about the sign", "{} is the answer to part (a)", "{} is best avoided",
    "{} is correct but incomplete", "{} is correct, if n is even", "Option {}: too small", "({}) {own} (too small)",
    "{} - too small", "{}: false", "The statement {} is correct for squares", "{} is right only in part",
    "Answer: {} (not certain)", "Answer: {}, partly", "Option {}, assuming n > 2",
)  # fmt: skip
_AFFIRMED = (
    "{} is correct", "({}) is correct.", "{} is the correct answer because 3 + 4 = 7", "{}. {own}", "{} {own}",
    "Option {} is correct, since the others fail", "{}. {own} is correct", "{} is the best choice", "{} is the answer.",
    "({}) is the right one", "{} is correct: the others fail", "{}, because the sum fits", "{}. {own} is the answer",
)  # fmt: skip


@kind
def letters_judged(chance: random.Random) -> list[Pair]:
    """What stands behind a letter is its text, an affirmation that ends there, or a reason."""
    options = tuple(str(one) for one in chance.sample(range(10, 99), 4))
    index = chance.randrange(1, 4)
    letter, own = "ABCD"[index], options[index]
    judged = [Pair(letter, text.format(letter, own=own), False, options) for text in chance.sample(_JUDGED, 6)]
    return judged + [Pair(letter, text.format(letter, own=own), True, options) for text in chance.sample(_AFFIRMED, 4)]


_CONDITIONS = (
    "if n is even", "when n is even", "for even n", "for n = {n}", "provided n > {n}", "in some cases",
    "unless n = {n}",
    "in part", "partly", "mostly", "sometimes", "as long as n > {n}", "only for n = {n}", "assuming n > {n}", "almost",
    "with n = {n} only", "it is if n is even", "it can be, when n is even", "but only for n = {n}", "on weekdays",
    "to some extent", "up to a sign", "within limits", "apart from n = {n}", "before {n}", "most of the time",
    "some of them", "it holds for n = {n} only",
)  # fmt: skip
_REASONS = (
    "", ", it is.", ", because the sides are equal.", ", for all n.", ", the lines meet.", " - both are shown.",
    ", since {n} < 90.", ". Both are equal.",
)  # fmt: skip
_ASKED = ("It is {}.", "The statement is {}.", "So the claim is {}.", "Hence it is {}.", "This statement is {}.")
_OTHER = (
    "The converse is {}.", "The negation is {}.", "So the converse is {}.", "Its negation is {}.", "The reverse is {}.",
    "The second statement is {}.", "The first is {}.", "The premise is {}.", "The opposite statement is {}.",
    "Part of it is {}.", "The contrary is {}.",
)  # fmt: skip


@kind
def yes_with_a_condition(chance: random.Random) -> list[Pair]:
    number = chance.randint(2, 80)
    gold = chance.choice(["Yes", "No"])
    joint = chance.choice([", ", " "])
    bound = [f"{gold}{joint}{text.format(n=number)}" for text in chance.sample(_CONDITIONS, 6)]
    stated = [f"{gold}{text.format(n=number)}" for text in chance.sample(_REASONS, 4)]
    return [Pair(gold, text, False) for text in bound] + [Pair(gold, text, True) for text in stated]


@kind
def truth_of_another_statement(chance: random.Random) -> list[Pair]:
    gold, other = chance.sample(["True", "False"], 2)
    asked, again = chance.sample(_ASKED, 2)
    not_asked = chance.sample(_OTHER, 3)
    return [
        *(Pair(gold, text.format(gold.lower()), False) for text in not_asked),
        Pair(gold, asked.format(gold.lower()), True),
        Pair(gold, again.format(gold.lower()), True),
        Pair(gold, asked.format(other.lower()), False),
        Pair(gold, asked.replace("{}", "not {}").format(gold.lower()), False),
    ]


@kind
def negations(chance: random.Random) -> list[Pair]:
    """The tilde of logic is no space; that of LaTeX is."""
    p, q = chance.sample("pqrabc", 2)
    sign = chance.choice(["&", "->", r"\land", r"\to"])
    gold = f"{p} {sign} ~{q}"
    size = chance.randint(2, 99)
    return [
        Pair(gold, f"Final answer: {gold}", True),
        Pair(gold, f"Final answer: {p} {sign} {q}", False),
        Pair(f"{p} {sign} {q}", f"Final answer: {gold}", False),
        Pair(gold, f"Final answer: ~{p} {sign} {q}", False),
        Pair(f"~{p}", rf"Final answer: $\neg {p}$", True),
        Pair(f"~{p}", f"Final answer: {p}", False),
        Pair(p, f"Final answer: ~{p}", False),
        Pair(f"{size} cm", rf"Final answer: ${size}~\text{{cm}}$", True),
    ]


@kind
def moves(chance: random.Random) -> list[Pair]:
    """Names of a letter and a digit in a row keep their order."""
    first, second = (f"{chance.choice('abcdefgh')}{n}" for n in chance.sample(range(1, 9), 2))
    piece = chance.choice(["", "N", "B", "R"])
    return [
        Pair(f"{piece}{first} {second}", f"Final answer: {piece}{first} {second}", True),
        Pair(f"{piece}{first} {second}", f"Final answer: {second} {piece}{first}", False),
    ]


_BACK = ("I was wrong: {}.", "On second thought, {}.", "My mistake, {}.", "Sorry, {}.", "Wait, {}.", "No, {}.")


@kind
def corrected_without_announcement(chance: random.Random) -> list[Pair]:
    first, second = chance.sample(range(11, 300), 2)
    lead = chance.choice(["I get {}. ", "{}. ", "We find {}. ", "x = {}. "]).format(first)
    text = lead + chance.choice(_BACK).format(second)
    alone = chance.choice(_BACK[1:4]).format(second)
    return [Pair(str(second), text, True), Pair(str(first), text, False), Pair(str(second), alone, True)]


@kind
def lists_and_counts_in_words(chance: random.Random) -> list[Pair]:
    first, second = chance.sample(range(3, 90), 2)
    one, two, three = chance.sample("甲乙丙丁", 3)
    year = chance.randint(100, 1999)
    return [
        Pair(f"[{first}, {second}]", f"Final answer: {first} and {second}", True, type="list"),
        Pair(f"[{first}, {second}]", f"Final answer: {second} and {first}", False, type="list"),
        Pair(f"{one}、{two}", f"答案是{one}和{two}。", True),
        Pair(f"{one}、{two}", f"答案是{one}和{three}。", False),
        Pair(f"{one}、{two}", f"答案是{one}或{two}。", False),
        Pair(str(second), f"There are {first + second} objects; after removing {first}, {second} are left.", True),
        Pair(str(first), f"There are {first + second} objects; after removing {first}, {second} are left.", False),
        Pair(str(year), f"It happened in {year} BC.", False, type="integer"),
        Pair(str(first), rf"\boxed{{\text{{exactly }} {first}}}", True),
        Pair(str(first), rf"\boxed{{\text{{at most }} {first}}}", False),
    ]
