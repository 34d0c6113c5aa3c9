"""Makers of pairs about how responses end: checks, remarks, asides, boxes gone on from, rows with marks, Chinese."""

from __future__ import annotations

import random

from tests.support.grade_kinds import KINDS, Pair, kind

__all__ = ["KINDS"]  # with the kinds of the other modules


def _several(chance: random.Random, count: int) -> list[int]:
    return chance.sample([number for number in range(11, 99) if number % 10], count)


@kind
def two_letters_with_brackets(chance: random.Random) -> list[Pair]:
    """A letter with its text in brackets and another letter, or another option's text, behind it chooses nothing."""
    options = tuple(f"{value} °C" for value in sorted(_several(chance, 4)))
    i, j = chance.sample(range(4), 2)
    one, two = (f"{'ABCD'[k]} ({options[k]})" for k in (i, j))
    gold, other = "ABCD"[i], "ABCD"[j]
    wrong = (
        f"{one} or {two}", f"{one} or {two}, depending on the losses", f"{one}, possibly {two}", f"{one} / {two}",
        f"{one} or {other}", f"{one}, or else {two}", f"{one} and {two}", f"{one} if it is cold, otherwise {two}",
        f"{one}, maybe {other}", f"{one}, {two}", f"{one} or {options[j]}", f"option {one} or option {two}",
    )  # fmt: skip
    right = (one, f"{one}, not {two}", f"{one}, because it is warm", f"{one}, as the losses are small", f"option {one}")
    announce = chance.choice(("Answer: {}", "The answer is {}.", "Final answer: {}", r"\boxed{{{}}}"))
    return [
        *(Pair(gold, announce.format(text), False, options) for text in chance.sample(wrong, 5)),
        *(Pair(other, announce.format(text), False, options) for text in chance.sample(wrong, 2)),
        *(Pair(gold, f"Answer: {text}", True, options) for text in chance.sample(right, 4)),
    ]


_CHECKS = (
    "Check: {}.", "✔ Check: {}. Correct.", "**Check:** {} ✓", "Verification: {}.", "To verify: {}.", "Indeed, {}.",
    "Sanity check: {}.", "As a check, {}.", "(Check: {}.)", "Plugging back in, {}.", "✓ {}", "Proof: {}",
)  # fmt: skip


@kind
def a_check_behind_the_answer(chance: random.Random) -> list[Pair]:
    a, b = chance.sample(range(3, 10), 2)
    said = chance.choice((f"So the sum is {a + b}.", f"Thus x = {a} + {b} = {a + b}.", f"Hence the sum is {a + b}."))
    made = chance.choice((f"{a} · {b} = {a * b}", f"the product is {a * b}"))
    space = chance.choice(("\n\n", "\n", " "))
    checks = [f"{said}{space}{check.format(made)}" for check in chance.sample(_CHECKS, 5)]
    return [
        *(Pair(str(a * b), text, False) for text in checks),
        *(Pair(str(a + b), text, True) for text in checks if "✓ the" not in text),
        Pair(str(a + b), f"{said} Check: {made}, so the sum must be {a * b}.", False),
    ]


_ASIDES = (
    "For comparison, last year it was {}.", "By the way, last year it was {}.", "For example, figure 9 has {} dots.",
    "A common mistake is to divide by 8, which gives {}.",
    "(Last year, when it was built, it was {}.)", "Tip: use {} next time.",
    "As a by-product, the mass is {}.", "If we went on, the next one would be {}.", "Confidence: {}%",
)  # fmt: skip
_TURNS = (
    "For comparison, last year it was 3, so the answer is {}.", "However, the number is {}.", "Wait, it is {}.",
    "(It is wrong: the number is {}.)", "For example, take 3. So it is {}.", "Therefore, the number is {}.",
    "Check: this is wrong, the number is {}.",
)  # fmt: skip


@kind
def remarks_behind_the_answer(chance: random.Random) -> list[Pair]:
    """A remark hides nothing and answers nothing; a sentence that concludes or corrects is none."""
    value, other = _several(chance, 2)
    said = chance.choice((f"So the number is {value}.", f"Hence there are {value} of them.", f"It is **{value}**."))
    remarks = [f"{said}\n\n{text.format(other)}" for text in chance.sample(_ASIDES, 4)]
    turns = [f"{said}\n\n{text.format(other)}" for text in chance.sample(_TURNS, 3)]
    polite = chance.choice(
        ("Is there anything else I can help you with?", "Do you have other questions?", "</s>", "---")
    )
    return [
        *(Pair(str(value), text, True) for text in remarks),
        *(Pair(str(other), text, False) for text in remarks),
        *(Pair(str(value), text, False) for text in turns),
        Pair(str(value), f"{said}\n\n{polite}", True),
    ]


@kind
def rounded_beside_the_exact_value(chance: random.Random) -> list[Pair]:
    top, bottom = chance.choice(((5, 13), (7, 12), (3, 7), (2, 9), (4, 11)))
    value, wrong = f"{top / bottom:.3f}", f"{1.5 * top / bottom:.3f}"
    forms = (
        "So the share is {} (about {}).", "Hence the share is {} ≈ {}.", "The share is therefore {}, or about {}.",
        "So the share is {}, which is about {}.",
    )  # fmt: skip
    gold = rf"\frac{{{top}}}{{{bottom}}}"
    exact = f"{top}/{bottom}"
    return [
        *(Pair(gold, form.format(exact, value), True) for form in forms),
        *(Pair(gold, form.format(exact, wrong), False) for form in forms[:2]),
        Pair(gold, f"So the share is not {exact} (about {value}).", False),
        Pair(gold, f"If it were full, the share would be {exact} (about {value}).", False),
        Pair(str(top), f"So it is {bottom} (not {top}, which one gets without the last step).", False),
        Pair(str(bottom), f"So it is {bottom} (not {top}, which one gets without the last step).", True),
    ]


@kind
def a_box_that_was_a_step(chance: random.Random) -> list[Pair]:
    whole, part = sorted(_several(chance, 2), reverse=True)
    rest = whole - part
    if rest in (whole, part):
        return []
    box = rf"AC = \boxed{{{whole}}}"
    gone_on = (
        f"But x is the rest. Subtracting, x = {whole} - {part} = {rest}.", f"Now subtract AE: x = {rest}.",
        f"Subtracting {part}, we get x = {rest}.", f"However, x is the rest, so x = {rest}.", f"Next, x = {rest}.",
        f"It remains to subtract {part}, which gives {rest}.",
    )  # fmt: skip
    doubtful = (
        f"Therefore, x = {rest}.",
        f"$$x = {whole} - {part} = {rest}$$",
        f"So x is {rest}.",
        f"Finally, x = {rest}.",
    )
    kept = (
        f"Check: {whole} - {part} = {rest}.", f"So AC is {whole}.", f"Note that x = {rest}.", "I hope this helps!",
        f"This is because {rest} + {part} = {whole}.",
    )  # fmt: skip
    space = chance.choice((".\n\n", ". ", "\n\n"))
    doubt = [f"{box}.\n\n{text}" for text in doubtful]
    return [
        *(Pair(str(whole), f"{box}{space}{text}", False) for text in chance.sample(gone_on, 4)),
        *(Pair(str(whole), text, False) for text in chance.sample(doubt, 2)),
        *(Pair(str(rest), f"{box}.\n\n{text}", True) for text in (gone_on[0], gone_on[2])),
        *(Pair(str(whole), f"{box}.\n\n{text}", True) for text in chance.sample(kept, 3)),
    ]


@kind
def chinese_endings(chance: random.Random) -> list[Pair]:
    value, other = _several(chance, 2)
    right = (
        "答：边长是{}分米。", "所以边长为{}。", "因此，边长是 {} 分米。", "故所求的边长为{}。",
        "综上所述，边长等于{}。", "答：一共需要{}个。",
        "所以x={}。", "由图可知，边长为{}。",
    )  # fmt: skip
    wrong = (
        "所以边长不是{}。", "如果面积已知，所以边长为{}。", "所以边长可能是{}。", "所以边长的2倍是{}。",
        "所以周长的一半为{}。", "答：不需要{}天。",
        "所以边长是{}吗？", "有人认为，所以边长是{}。", "所以边长至少为{}。", "所以当x={}时面积最大。",
        "所以x²={}。", "所以除了{}以外。",
    )  # fmt: skip
    return [
        *(Pair(str(value), text.format(value), True) for text in chance.sample(right, 4)),
        *(Pair(str(value), text.format(value), False) for text in chance.sample(wrong, 5)),
        Pair(str(value), f"答：边长为{value}，高为{other}。", False),
        Pair(str(other), f"周长为{other}分米。\n\n答：边长是{value}分米。", False),
        Pair(
            f"(1) {value}; (2) {other}", rf"综上，（1）\boxed{{{value}}}；（2）\boxed{{{other}}}。", True, (), "parts"
        ),
        Pair(
            f"(1) {other}; (2) {value}", rf"综上，（1）\boxed{{{value}}}；（2）\boxed{{{other}}}。", False, (), "parts"
        ),
    ]


@kind
def rows_with_marks(chance: random.Random) -> list[Pair]:
    """One row affirmed and all others denied chooses it, unless what does not fit is asked for."""
    options = tuple(chance.sample(("granite", "basalt", "marble", "slate", "gneiss", "chalk"), 4))
    index = chance.randrange(4)
    yes, no = chance.choice((("✅", "❌"), ("✓", "✗"), ("✔", "✘")))
    letters = chance.random() < 0.5

    def rows(fits: set[int]) -> str:
        names = "ABCD" if letters else options
        return "\n".join(f"- **{names[i]}** – {yes if i in fits else no} see the figure" for i in range(4))

    end = chance.choice(("", "\n\nThe sample shows all features."))
    gold, other = "ABCD"[index], "ABCD"[index - 1]
    return [
        Pair(gold, rows({index}) + end, True, options),
        Pair(other, rows({index}) + end, False, options),
        Pair(gold, rows({index, (index - 1) % 4}) + end, False, options),
        Pair(gold, rows({index, (index - 1) % 4}) + end, False, options),
        Pair(gold, rows({0, 1, 2, 3} - {index}), False, options),
        Pair(gold, f"{rows({index})}\n\nWe need the one that cannot be formed.", False, options),
        Pair(gold, f"Which of them is not found there?\n\n{rows({index})}", False, options),
        Pair(gold, f"{rows({index})}\n\nSo the answer is {gold}.", True, options),
    ]


@kind
def what_is_no_answer(chance: random.Random) -> list[Pair]:
    """Options repeated, further questions, announcements under a condition that the text does not decide."""
    options = tuple(f"{value} N" for value in sorted(_several(chance, 3)))
    index = chance.randrange(3)
    gold, other = "ABC"[index], "ABC"[index - 1]
    listed = "\n".join(f"({'ABC'[i]}) {text}" for i, text in enumerate(options))
    further = f"\n\nQuestion: What is the mass?\n{listed}\nAnswer: {gold}"
    return [
        Pair("C", f"What is the force?\nChoices:\n{listed}", False, options),
        Pair("C", listed, False, options),
        Pair(gold, f"The answer is {other}.{further}", False, options),
        Pair(other, f"The answer is {other}.{further}", True, options),
        Pair(gold, f"If it moves, then the answer is {other}. If not, then the answer is {gold}.", False, options),
        Pair(
            gold,
            f"The answer is {gold}.\n\nHowever, without data I cannot determine the correct option.",
            False,
            options,
        ),
        Pair(gold, f"For option {gold}, we have:\n- a force from the left", False, options),
        Pair("A", f"A: The correct option letter is {'BC'[index % 2]}.", False, options),
        Pair("BC"[index % 2], f"A: The correct option letter is {'BC'[index % 2]}.", True, options),
        Pair(gold, f"Correct option letter: {gold}", True, options),
        Pair(gold, f"So the force is {options[index]} (option {gold}).", True, options),
        Pair(gold, f"So the force is {options[index - 1]} (option {gold}).", False, options),
    ]


@kind
def forms_of_the_last_sentence(chance: random.Random) -> list[Pair]:
    a, b = _several(chance, 2)
    month = chance.choice(("September", "April", "June"))
    return [
        Pair(f"(-{a}, {b})", f"Starting at the origin, it ends at **(−{a}, {b})**.", True),
        Pair(f"(-{a}, {b})", f"It does not end at **(−{a}, {b})**.", False),
        Pair(f"(-{a}, {b})", f"Starting at **(−{a}, {b})**, it ends at the origin.", False),
        Pair(f"{a}:{b}", f"Dividing by two, the areas are in the ratio {a} to {b}.", True),
        Pair(f"{b}:{a}", f"Dividing by two, the areas are in the ratio {a} to {b}.", False),
        Pair(str(a), f"So it is the {a}th figure.", True),
        Pair(str(a), f"So it is before the {a}th figure.", False),
        Pair(month, f'{{"short answer": "{month} ({a} mm)"}}', True, (), "text"),
        Pair(month, f'{{"short answer": "{month} (or May)"}}', False, (), "text"),
        Pair(str(a), f'{{"short answer": "{month} ({a} mm)"}}', False),
        Pair(month, rf"It is in \boxed{{\text{{{month[:3]}}}}}.", True, (month, "May", "March")),
        Pair("May", rf"It is in \boxed{{\text{{{month[:3]}}}}}.", False, (month, "May", "March")),
        Pair(f"y = {a}x - {b}", rf"\boxed{{f^{{-1}}(x) = {a}x - {b}}}", True),
        Pair(f"y = {a}x - {b}", rf"\boxed{{f(y) = {a}x - {b}}}", False),
        Pair(str(b), f"The pair weighs {a}. Adding the two amounts, she needs ${b}.", True),
        Pair(str(b), f"Adding the two amounts, she needs at least ${b}.", False),
    ]
