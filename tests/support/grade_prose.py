"""Makers of pairs in freer prose: options and letters in sentences, bold values, JSON keys, money per something."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind

__all__ = ["KINDS"]  # with the kinds of the other modules

_STATE = (
    "So the net force must be {}.", "Hence the force on the block has to be {}.",
    "Adding both parts, the force becomes {}.",
    "The scale therefore reads {}.", "So the engineer should choose {}.", "Consequently, the answer has to be {}.",
    "This works out to {}.", "It follows that the force is {}.", "Therefore the spring exerts a force of {}.",
    "The force equals **{}** here.", "We are left with this: the force turns out to be {}.", "So {} it is.",
    "This makes {} the best match.", "Thus {} is the correct answer.", "This can only be {}.",
)  # fmt: skip
_DO_NOT_STATE = (
    "So the force cannot be {}.", "The force must be less than {}.", "The force must be {} or more.",
    "It has to be twice {}.",
    "If it moved, the force would have to be {}.", "This does not make {} the best match.", "So {} it is not.",
    "This makes {} the second best match.", "This makes anything but {} the best match.", "The force should not be {}.",
    "Students often think that it must be {}.", "The force must be {} in the first case.", "It must be near {}.",
    "The trap is {}.", "It could be {}.", "Some would choose {}.", "The force must be {}, unless it slides.",
    "The rejected value is {}.", "That leaves out {}.", "Must it be {}?", "The force must be {} before it moves.",
)  # fmt: skip


@kind
def option_in_a_free_sentence(chance: random.Random) -> list[Pair]:
    """A sentence that states one option's text or value chooses it; one that doubts, compares or names two does not."""
    values = sorted(chance.sample(range(11, 99), 4))
    options = tuple(f"{value} N" for value in values)
    index = chance.randrange(4)
    letter, own, other = "ABCD"[index], options[index], options[index - 1]
    return [
        *(Pair(letter, text.format(own), True, options) for text in chance.sample(_STATE, 5)),
        *(Pair(letter, text.format(own), False, options) for text in chance.sample(_DO_NOT_STATE, 6)),
        *(Pair(letter, text.format(other), False, options) for text in chance.sample(_STATE, 2)),
        Pair(letter, f"So it must be {own}, and {other} is the weight.", False, options),
        Pair(letter, f"Of the two, the tension is {other} and the weight must be {own}.", False, options),
    ]


_STYLES = ("Baroque", "Gothic", "Rococo", "Romanesque", "Cubist")


@kind
def words_of_an_option(chance: random.Random) -> list[Pair]:
    options = tuple(chance.sample(_STYLES, 4))
    index = chance.randrange(4)
    letter, own, other = "ABCD"[index], options[index], options[index - 1]
    right = (
        "The painting belongs to the {} period.", "These features are typical of the {} style.", "Answer: {} style",
        "This makes the {} period the best match.", "That is why {} is the best answer.",
        "The work is classified as {}.",
    )  # fmt: skip
    wrong = (
        "The painting belongs to a time before the {} period.", "These features are not typical of the {} style.",
        "Answer: anti-{} style", "This makes the {} period the worst match.", "Nothing here is {}.",
        "Answer: no {} style",
        "The frame, unlike the painting, belongs to the {} period.", "It is the opposite of the {} style.",
    )  # fmt: skip
    return [
        *(Pair(letter, text.format(own), True, options) for text in chance.sample(right, 3)),
        *(Pair(letter, text.format(own), False, options) for text in chance.sample(wrong, 3)),
        Pair(letter, chance.choice(right).format(other), False, options),
        Pair(letter, f"Answer: {own} or {other} style", False, options),
    ]


@kind
def letter_beside_its_own_text(chance: random.Random) -> list[Pair]:
    values = sorted(chance.sample(range(11, 99), 4))
    options = tuple(f"{value} N" for value in values)
    index = chance.randrange(1, 4)
    letter, own, other = "ABCD"[index], options[index], options[index - 1]
    arrow = chance.choice(["→", "->", "⇒", r"$\rightarrow$", "=>"])
    right = (
        "The right choice is {0}, {1}.", "The answer is {0}, i.e. {1}.", "The answer is {0}, namely {1}.",
        "It is option {0}, {1}.", "The total is {1} {2} {0}", "So we get {1} {2} **{0}**", "The answer is {0} – {1}",
    )  # fmt: skip
    wrong = (
        "The right choice is not {0}, {1}.", "The answer is {0}, {1}, or A.", "If it slides, {1} {2} {0}", "A {2} {0}",
        "Reject {1} {2} {0}", "Move from A {2} {0}", "{0}, {1}, is excluded.", "The path is A {2} {0}",
        "Step 3 {2} {0}",
        "That rules out {0}, {1}.",
        "The answer might be {0}, {1}.",
    )  # fmt: skip
    return [
        *(Pair(letter, text.format(letter, own, arrow), True, options) for text in chance.sample(right, 4)),
        *(Pair(letter, text.format(letter, own, arrow), False, options) for text in chance.sample(wrong, 4)),
        *(Pair(letter, text.format(letter, other, arrow), False, options) for text in chance.sample(right, 2)),
    ]


@kind
def only_one_of_several(chance: random.Random) -> list[Pair]:
    """A name alone is "only" that one; with another name, a denial or a hedge it is not."""
    first, second, third = chance.sample(["Ana", "Ben", "Clara", "Dora", "Emil"], 3)
    options = (f"only {first}", f"only {second}", f"only {third}", f"{first} and {second}")
    return [
        Pair("A", f"Answer: {first}", True, options),
        Pair("C", rf"\boxed{{\text{{{third}}}}}", True, options),
        Pair("D", f"Answer: {second} and {first}", True, options),
        Pair("D", f"Answer: {first}", False, options),
        Pair("A", f"Answer: {first} and {third}", False, options),
        Pair("A", f"Answer: not {first}", False, options),
        Pair("A", f"Answer: all but {first}", False, options),
        Pair("A", f"Answer: {first}", False, (*options[:3], f"at least {first}")),
    ]


@kind
def bold_in_a_sentence(chance: random.Random) -> list[Pair]:
    first, second = chance.sample(range(11, 99), 2)
    right = (
        "Of the {1} students, **{0}** take the bus.", "This means **{0}** students take the bus.", "Total: **{0}**",
        "The area equals **{0}** square units", "The missing side has length **{0}**.",
        "We add them, which gives **{0}**.",
        "There are **{0}** ways to arrange them.", "That leaves us with **{0}**.", "In total there are **{0}** cubes.",
    )  # fmt: skip
    wrong = (
        "Of the **{0}** students, {1} take the bus.", "At least **{0}** students take the bus.", "Step **{0}**",
        "The area is not **{0}** square units.", "Half of the side has length **{0}**.",
        "If we add them, **{0}** is left.",
        "There are **{0}** ways more than before.", "**{0}** is wrong.", "There are **{0}** cubes in each stack.",
        "It is **{0}** for n = 2 and **{1}** for n = 3.", "There are **{0}** squares, of which {1} are red.",
    )  # fmt: skip
    chain = f"{first} = {first - 4} + 4" if chance.random() < 0.5 else f"x = {first - 4} + 4 ="
    return [
        *(Pair(str(first), text.format(first, second), True) for text in chance.sample(right, 4)),
        *(Pair(str(first), text.format(first, second), False) for text in chance.sample(wrong, 4)),
        Pair(str(first), f"x = {first - 4} + 4 = **{first}**", True),
        Pair(str(first), f"Thus $x = {first - 4} + 4 =$ **{first}**.", True),
        Pair(str(first), f"2x = {first - 4} + 4 = **{first}**", False),
        Pair(str(second), f"{chain.rstrip(' =')} = **{first}**", False),
    ]


_ANSWER_KEYS = (
    "answer", "short answer", "short_answer", "final_answer", "finalAnswer", "answer_text", "answer_value",
    "Short-Answer",
)  # fmt: skip
_OTHER_KEYS = ("result", "value", "final_result", "prediction")
_NO_KEYS = ("wrong_answer", "first_answer", "confidence", "step", "excluded_value", "old_result", "answers_checked")


@kind
def keys_of_json(chance: random.Random) -> list[Pair]:
    first, second = chance.sample(range(11, 99), 2)
    key, other, none = chance.choice(_ANSWER_KEYS), chance.choice(_OTHER_KEYS), chance.choice(_NO_KEYS)
    written = chance.choice(['"{}"', "{}"])
    one, two = written.format(first), written.format(second)
    gold = str(first)
    return [
        Pair(gold, f'{{"solution": "We add.", "{key}": {one}}}', True),
        Pair(gold, f'```json\n{{\n  "solution": "We add.",\n  "{key}": {one}\n}}\n```', True),
        Pair(gold, f'{{"solution": "We add.", "{other}": {one}}}', True),
        Pair(gold, f'{{"{other}": {two}, "{key}": {one}}}', True),
        Pair(gold, f'{{"{other}": {one}, "{key}": {two}}}', False),
        Pair(gold, f'{{"{key}": {two}, "{other}": {one}}}', False),
        Pair(gold, f'{{"solution": "We add.", "{none}": {one}}}', False),
        Pair(gold, f'{{"rows": [{{"value": {one}}}, {{"value": {two}}}], "size": 2}}', False),
        Pair(gold, f'{{"wrong_answers": [{two}], "{other}": {one}}}', False),
        Pair(gold, f'{{"{key}": null, "{other}": {one}}}', False),
    ]


@kind
def money_per_something(chance: random.Random) -> list[Pair]:
    price, other = (f"{value * 50 + 1050:,}" for value in chance.sample(range(1, 90), 2))
    what, else_ = chance.sample(["year", "month", "week", "person", "student"], 2)
    options = (f"${other}", f"${price}")
    a_year = "a year" if what == "year" else f"per {what}"
    return [
        Pair("B", f"The cost is ${price} per {what}.", True, options),
        Pair("B", rf"\boxed{{\${price} \text{{ per {what}}}}}", True, options),
        Pair(f"${price}", f"Answer: ${price}/{what}", True),
        Pair(price, f"The cost is \\${price} per {what}.", True),
        Pair(f"${price} per {what}", f"Answer: ${price} {a_year}", True),
        Pair(f"${price} per {what}", f"Answer: ${price} per {else_}", False),
        Pair("B", f"The cost is ${other} per {what}.", False, options),
        Pair(f"${price}", f"Answer: €{price} per {what}", False),
        Pair(price.partition(",")[0], f"The cost is ${price} per {what}.", False),
        Pair(f"${price}", f"Answer: more than ${price} per {what}", False),
        Pair(price, f"Answer: {price} per {what}", False),
    ]


@kind
def brackets_of_latex(chance: random.Random) -> list[Pair]:
    first, second = chance.sample(range(3, 30), 2)
    product = str(first * second)
    return [
        Pair(product, rf"So the number of pairs is \({first} \cdot {second} = {product}\).", True),
        Pair(product, rf"Hence \( x = {product} \)", True),
        Pair(product, rf"With \(a = {first}\) and \(b = {second}\), we get \(ab = {product}\).", True),
        Pair(product, rf"The count is \({first} \cdot {second}\), so \({product}\).", True),
        Pair(f"({first}, {second})", rf"The lines meet at \(({first}, {second})\).", True),
        Pair(product, rf"So \(x \ne {product}\).", False),
        Pair(product, rf"So \(x > {product}\).", False),
        Pair(product, rf"We know that \(x = {product}\).", False),
        Pair(product, rf"\(y = {first}\) at \(x = {product}\)", False),
        Pair(str(first), rf"With \(a = {first}\) and \(b = {second}\), we get \(ab = {product}\).", False),
        Pair(f"({first}, {second})", rf"The lines would meet at \(({first}, {second})\).", False),
        Pair(f"({first}, {second})", rf"The lines meet at \(({second}, {first})\).", False),
    ]
