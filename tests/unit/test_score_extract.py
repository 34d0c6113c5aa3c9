"""Final answers are found where they are announced, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sophia_mcore.verify.reading.extract import RULES, extract, find_answer

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

EXAMPLES = [(rule, text, answer) for rule in RULES for text, answer in rule.examples]


@pytest.mark.parametrize(("rule", "text", "answer"), EXAMPLES, ids=[f"{r.name}-{t[:20]}" for r, t, _ in EXAMPLES])
def test_examples_of_the_table(rule, text, answer):
    answer_type = sorted(rule.types)[0] if rule.types else ""
    assert find_answer(text, answer_type) == (answer, rule.name)
    assert find_answer(f"<think>\nfirst 3, then \\boxed{{8}}\n</think>\n\n{text}", answer_type) == (answer, rule.name)


def test_every_rule_has_an_example():
    assert all(rule.examples for rule in RULES)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>\boxed{1}</think>The answer is \boxed{2}.", "2"),
        (r"thinking \boxed{1}</think>The answer is 2.", "2"),  # the template had written <think>
        (r"<think>a</think><think>b \boxed{1}</think>\boxed{3}", "3"),
        (r"<think>so it is \boxed{1}</think>", "1"),  # nothing follows the thought
        (r"<think>so it is \boxed{1}", None),  # a thought that never ends
        (r"<think>so it is \boxed{1}</think>Wait <think>\boxed{2}", None),
        (r"<think>\boxed{1}</think>I cannot see it" + "\nin the image, sorry", None),
        ("", None),
        ("   \n", None),
        (r"\boxed{}", None),
        (r"\boxed{\text{A}}", r"\text{A}"),
        (r"\boxed{\left\{ x \mid x > 2 \right\}}", r"\left\{ x \mid x > 2 \right\}"),
        (r"so \boxed{1} at first, but then \boxed{\frac{a}{b}}", r"\frac{a}{b}"),
        (r"$$\boxed{ 12 }$$", "12"),
        (r"\boxed{12", None),
        (r"\boxed{7} and later the unfinished \boxed{12", None),
        (r"I get \boxed{3}, \boxed{5} and \boxed{9}.", "3, 5, 9"),
    ],
)
def test_thoughts_and_boxes(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "(B)",
        "B.",
        "**B**",
        "Answer: B",
        "The answer is (B).",
        "the correct option is B",
        "Option B is correct.",
        "I pick B.",
        "答案：B",
        "故选B。",
        r"\boxed{B}",
        r"\boxed{\text{(B)}}",
        "<answer>B</answer>",
        "**Final answer:** B",
        "Let me see.\nB",
        "Let me see.\n(B) 12 cm",
        "Let me see.\n\n**B. a cat**",
        '{"answer": "B"}',
        "答案是选项B",
    ],
)
def test_option_letters_in_all_shapes(text):
    from sophia_mcore.verify.comparing import exact
    from sophia_mcore.verify.rules import rule_for

    gold = exact.prepare("B", "choice", ("a dog", "a cat", "12 cm"), rule_for(""))
    if "12 cm" in text:
        gold = exact.prepare("B", "choice", ("a dog", "12 cm", "a cat"), rule_for(""))
    found = extract(text, "choice")
    assert found is not None
    assert exact.decide(gold, found) is True


def test_a_long_answer_without_any_sign_is_none():
    assert extract("I looked at the picture.\nThere is much to see in it, and I do not know.") is None


ANSWERS = st.sampled_from(["5", "-3.25", r"\frac{1}{2}", "(1, 2)", "x+1", "blue", r"\{1, 2\}", "3 cm", r"2\sqrt{3}"])
WORDS = st.lists(st.sampled_from(["so", "we", "look", "at", "it", "and", "see", "three", "cats"]), max_size=30)


@given(ANSWERS, WORDS, WORDS)
@example("5", [], ["so", "three"])
def test_the_box_wins_whatever_stands_around_it(answer, before, after):
    text = f"{' '.join(before)} \\boxed{{{answer}}} {' '.join(after)}"
    assert extract(text) == answer


@given(st.text(max_size=400), st.sampled_from(["", "choice", "integer", "yes_no", "text"]))
@settings(max_examples=300)
def test_any_text_gives_an_answer_or_none(text, answer_type):
    found = extract(text, answer_type)
    assert found is None or (found and found == found.strip())


@given(st.binary(max_size=2000))
@settings(max_examples=200)
def test_random_bytes(data):
    for text in (data.decode("utf-8", errors="replace"), "\\boxed{" + data.decode("latin-1") + "}"):
        found = extract(text)
        assert found is None or (found and found == found.strip())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{" * 100_000, None),
        ("\\boxed{}" * 100_000, None),
        ("{" * 1_000_000, None),
        ("answer " + " " * 1_000_000 + "x", None),
        ("answer: " * 100_000, ("answer: " * 250).strip()),
        ("final answer\n" * 80_000, "final answer"),
        ("<answer> " * 100_000, None),
        ("答案" * 300_000, "答案" * 1_000),
        ("*" * 1_000_000, None),
        ("answer" + "*" * 500_000 + ":", None),
        ("\\" * 1_000_000, None),
        ("<think>" * 100_000, None),
        ("</think>" * 100_000, None),
        ("\n" * 1_000_000, None),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_megabyte_ends(text, answer):
    for answer_type in ("", "choice", "integer"):
        assert extract(text, answer_type) == answer


_LINES = (
    "Question: x\n",
    "user: \n",
    "A: no\n",
    "(A) 3\n",
    "- A ✓\n",
    "答：3。",
    "Check: 3. ",
    "(not 3 ",
    "≈ 3 ",
    "A, ",
    "domain: x\n",
    "\n(1) 3 and",
    "is known as ",
    "\n",
    "**",
    " ",
)


@pytest.mark.parametrize("unit", _LINES)
def test_a_megabyte_before_a_sentence_ends(unit):
    """Some once took the square of their length: minutes, in the process that grades all others."""
    text = unit * (1_000_000 // len(unit)) + "\nSo it is 3 cm."
    for answer_type, options in (("", ()), ("integer", ()), ("choice", ("3 cm", "4 cm", "12 cm", "none"))):
        found = extract(text, answer_type, options)
        assert found is None or "3" in found or found in "ABCD"


_REPEATED = (
    "so ",
    "just ",
    "x = 1 ",
    ", so ",
    "the ",
    "is ",
    '"answer": "\\',
    "\\text{(A)}",
    " (A)",
    "12 left, ",
    "$x",
    "half of ",
)


@pytest.mark.parametrize("words", _REPEATED)
@pytest.mark.parametrize("others", ["", *_REPEATED])
def test_a_sentence_that_repeats_itself_ends(words, others):
    """A pattern with a repetition within a repetition would not end on these."""
    for length in (190, 390):
        sentence = (words + others) * (length // len(words + others))
        for end in (" is 8", "= 8 left.", " 8."):
            for answer_type in ("choice", "integer", ""):
                found = extract(sentence + end, answer_type)
                assert found is None or found == found.strip()


@pytest.mark.parametrize("text", ["Suppose B.", "B: 14 would be it.", "B. 14 is too small", "B, but not sure.", "B"])
def test_a_rejected_letter_at_the_start_of_a_line_is_passed_by(text):
    """A search that does not move on behind a rejected letter would not end."""
    for lines in (text, f"A\n{text}", f"{text}\n{text}", f"{text}\n" * 20):
        for answer_type in ("choice", "yes_no", "integer", ""):
            found = extract(lines, answer_type)
            assert found is None or found == found.strip()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("unit", ["B", "B is wrong\n", "\nB. ", "yes, ", "not B\n", "~p ", "B is correct "])
def test_every_rule_passes_by_what_repeats_itself(rule, unit):
    assert len(rule.find(unit * 300)) <= 300 * len(unit)
