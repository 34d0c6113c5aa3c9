r"""How final answers are announced: the table ``RULES``, from the surest to the weakest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sophia_mcore.verify.reading.boxes import boxed
from sophia_mcore.verify.reading.chinese import chinese_conclusion
from sophia_mcore.verify.reading.endings import conclusion, line, only_number, remaining_letter, short
from sophia_mcore.verify.reading.forms import between, stated_form
from sophia_mcore.verify.reading.free_letters import obtained_letter
from sophia_mcore.verify.reading.known_as import known_word
from sophia_mcore.verify.reading.listed_parts import last_numbered, named_parts
from sophia_mcore.verify.reading.marked import marked_row
from sophia_mcore.verify.reading.patterns import (
    ENVIRONMENT,
    LEAVES,
    LETTER,
    LETTER_AND_AMOUNT,
    LETTERS,
    NOT_ANOTHER,
    ONE,
    REST,
    SAY,
    STAR,
    Find,
    pattern,
    unchosen,
)
from sophia_mcore.verify.reading.statements import hedged, letter_in_sentence, so_yes_or_no
from sophia_mcore.verify.reading.tagged import json_values, tagged
from sophia_mcore.verify.rules import NUMBER_TYPES, TYPES
from sophia_mcore.verify.text.chosen import AFFIRMED

ANSWER_CHARACTERS = 2_000  # an announced answer is cut off here


@dataclass(frozen=True, slots=True)
class Rule:
    """One way in which answers are announced.

    ``find`` returns the candidates with their positions, in the order of the text. ``words``: the rule is skipped
    unless the text holds one of them (lower case). ``types``: the answer types it is meant for; None: all.
    ``examples``: (response, answer).
    """

    name: str
    find: Find
    examples: tuple[tuple[str, str], ...]
    words: tuple[str, ...] = ()
    types: frozenset[str] | None = None


_CHOICE = frozenset({"choice"})
_SO = r"(?:so|thus|hence|therefore|consequently|in conclusion)[\s,:]+"
RULES: tuple[Rule, ...] = (
    Rule(
        "boxed",
        boxed,
        (
            (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
            (r"first \boxed{3}, no, \boxed{4}", "4"),
            (r"\boxed{3} was a mistake; it is \boxed{4}", "4"),
            (r"$x = \boxed{1}$ or $\boxed{2}$", "1, 2"),
            (r"\boxed 7", "7"),
            (r"\fbox{B}", "B"),
            (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
            (r"\boxed{\text{The answer is } 5}", "5"),
        ),
        ("\\boxed", "\\fbox"),
    ),
    Rule(
        "parts",
        last_numbered,
        (
            ("(1) 5\n(2) x = 7", "(1) 5\n(2) x = 7"),
            ("The answers are (1) 48 and (2) 20.", "(1) 48 and (2) 20."),
            ("① 48；② 20", "① 48；② 20"),
        ),
        ("(1)", "（1）", "①"),
        frozenset({"parts"}),
    ),
    Rule(
        "named parts",
        named_parts,
        (
            ("Domain: $(-1, 4]$\nRange: $[0, 5)$", "Domain: (-1, 4]; Range: [0, 5)"),
            ("So the mean is 6, and the mode is 4.", "mean: 6; mode: 4"),
        ),
        (),
        frozenset({"parts"}),
    ),
    Rule(
        "tag",
        tagged,
        (("I think so.\n<answer> 12 </answer>", "12"),),
        ("<answer>",),
    ),
    Rule(
        "hashes",
        pattern(r"^####[ \t]*(?P<answer>\S[^\n]*)", re.MULTILINE),
        (("6*7=42\n#### 42", "42"),),
        ("####",),
    ),
    Rule(
        "JSON",
        json_values,
        (
            ('{"solution": "2+3", "short answer": "5"}', "5"),
            ('{"solution": "2+3", "short_answer": 5}', "5"),
            ('{"steps": "2+3", "result": 5}', "5"),
        ),
        ("answer", '{"', "{'", "{\n"),
    ),
    Rule(
        "final answer",
        pattern(rf"\bfinal answer\b(?:\s+to\b[^\n:：]{{1,80}}?)?{STAR}(?:{SAY}|\s*\n){STAR}\s*{STAR}{REST}"),
        (
            ("**Final answer**\n\n12", "12"),
            ("**Final Answer:** $x=3$.", "x=3"),
            ("The final answer is 7.", "7"),
            ("**Final Answer**\nThe final answer is 42.", "42"),
        ),
        ("final answer",),
    ),
    Rule(
        "Chinese",
        pattern(
            r"(?:最终|正确)?(?:答案|结果)(?:选项)?】?[*_]*\s*(?:应该是|应为|应选|是|为|选)?[*_]*\s*[:：]?[*_]*\s*(?P<answer>[^\s。？:：][^\n。？]*)"
        ),
        (
            ("所以答案是 12。", "12"),
            ("**最终答案**：$\\frac{1}{2}$", r"\frac{1}{2}"),
            ("故答案为：B。", "B"),
            ("正确答案是C", "C"),
            ("答案：是", "是"),
            ("【答案】B", "B"),
            ("答案是B吗？不，答案是C", "C"),
        ),
        ("答案", "结果"),
    ),
    Rule(
        "Chinese choice",
        pattern(
            rf"(?<![不别])(?<!不[能应该])选(?:择|项)?\s*(?:应为|是|为)?\s*[:：]?\s*{LETTERS}",
            0,
        ),
        (("综上，故选：D。", "D"), ("所以选 B", "B"), ("因此选项C正确", "C"), ("选A、C", "A、C"), ("故选ACD", "ACD")),
        ("选",),
    ),
    Rule(
        "Chinese correct",
        pattern(rf"(?<!不)正确的?(?:选项|说法|结论|一项)?(?:是|为)\s*[:：]?\s*{LETTER}", 0),
        (("所以正确的是C", "C"),),
        ("正确",),
        _CHOICE,
    ),
    Rule(
        "Chinese item",
        pattern(rf"{LETTER}\s*(?:选?项)?是?正确的?[。.]?\s*\Z", 0),
        (("因此C项正确。", "C"),),
        ("正确",),
        _CHOICE,
    ),
    Rule(
        "answer is",
        pattern(
            rf"{NOT_ANOTHER}\bans(?:wer\b|\b\.?)"
            r"(?:\s+(?:to|for)\b(?!\s+(?:(?:the|an?)\s+)?(?:other|another|next|previous)\b)[^\n:：]{1,80}?)?"
            rf"{STAR}{SAY}{STAR}\s*{STAR}{REST}"
        ),
        (
            ("Hence the answer is 5 because 2+3=5.", "5"),
            ("The answer to the question is: **blue**.", "blue"),
            ("Answer: (B) 12 cm", "(B) 12 cm"),
            ("**Answer:** 3/4", "3/4"),
            ("**Answer**: $5$", "5"),
            ("The correct answer is $5$, which is odd.", "5"),
            ("Answer:\n12", "12"),
            ("Ans: 12", "12"),
            ("The answer is not 5. The answer is 6.", "6"),
        ),
        ("ans",),
    ),
    Rule(
        "option is",
        pattern(
            r"(?:(?<!opposite of the )(?<!unlike the )"
            rf"\b(?:correct|right|best|final)\s+(?:option|choice|one|statement)(?:\s+(?:letter|number))?"
            r"(?:\s+(?:for|to)\b[^\n:：]{1,80}?)?|^[ \t*_]{0,9}(?:option|choice)\s+letter)"
            rf"{STAR}{SAY}{STAR}\s*{STAR}{REST}",
            re.IGNORECASE | re.MULTILINE,
            unchosen,
        ),
        (
            ("So the correct option is C.", "C"),
            ("The best choice is **(B)**", "(B)"),
            ("My first guess was C. My final choice is A.", "A"),
            ("Correct option letter: A", "A"),
        ),
        ("correct", "right", "best", "final", "letter"),
    ),
    Rule(
        "is correct",
        pattern(
            rf"(?:\b[Oo]ption|\b[Cc]hoice|^|[\s*(（]){STAR}\s{{0,9}}{LETTER}{STAR}\s+{AFFIRMED}",
            re.MULTILINE,
            unless=unchosen,
        ),
        (("Therefore, option B is correct.", "B"), ("(C) is the right one", "(C)")),
        (" is ",),
        _CHOICE,
    ),
    Rule(
        "must be",
        pattern(
            rf"(?:\b(?:(?:must|has to|can only)\s+be|only|{LEAVES})|^(?:[Ii]t|[Tt]his|[Tt]hat|[Cc]orrect"
            rf"|[Rr]ight)(?:\s+is|['’]s))\s+{STAR}{LETTER}(?![\s,]+(?:is|or)\b)(?=[.,;\s*]*$|\s+"
            rf"(?:remains|is left|fits))",
            re.MULTILINE,
        ),
        (("So it must be C.", "C"), ("Then only D remains.", "D"), ("B and C fail. This leaves A.", "A")),
        (" be ", "only ", " is ", "'s ", "’s ", " leaves "),
        _CHOICE,
    ),
    Rule(
        "so letter",
        pattern(
            rf"(?:\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore|[Ww]ait|[Aa]ctually|[Ss]orry|[Cc]orrection"
            rf"|I mean)\b[\s,.:;—-]+(?:(?:no|actually|wait|rather)\b[\s,.:;—-]+)*"
            rf"(?:(?:it|that|this)(?:['’]s|\s+is|\s+must be)\s+)?"
            rf"|\b(?:[Ii]t|[Tt]hat)(?:['’]s|\s+is)\s+)(?:option\s+|choice\s+)?{STAR}{LETTER}(?=[.;!*\s]*$)",
            re.MULTILINE,
        ),
        (("A circle is shown, so it's B.", "B"), ("A few; it's C", "C"), ("The answer is A. Wait, actually B.", "B")),
        (),
        _CHOICE,
    ),
    Rule(
        "obtained letter",
        obtained_letter,
        (("I added the two branches, and I get (I).", "(I)"), ("I added them and got (D).", "(D)")),
        ("get", "got", "obtain", " at ", " with "),
        _CHOICE,
    ),
    Rule(
        "remaining letter",
        remaining_letter,
        (("A and D are wrong; B.", "B"), ("Neither A nor B shows it; C.", "C")),
        (),
        _CHOICE,
    ),
    Rule(
        "last letter",
        pattern(
            rf"^[ \t]*{STAR}(?P<answer>{ONE}(?:[.):]+[ \t]*(?![^\n]*\b(?:is|was|were|would|seems?"
            rf"|looks?)\b)[^\n]{{0,100}})?){STAR}[ \t.]*\Z",
            re.MULTILINE,
            unless=unchosen,
        ),
        (("The answer is A at first.\n**C. 102 N**", "C. 102 N"), ("Answer: A\nNo.\nB", "B")),
        (),
        _CHOICE,
    ),
    Rule(
        "marked row",
        marked_row,
        (("- Doric – ❌ plain\n- Ionic – ❌ no leaves\n- Composite – ✅ two rows", "Composite"),),
        ("✓", "✔", "✅", "☑", "fits", "yes", "matches", "correct", "符合题意", "正确"),
        _CHOICE,
    ),
    Rule(
        "letter in sentence",
        letter_in_sentence,
        (
            (r"So it takes $\textbf{(C)}\ 24$ matches.", "(C) 24"),
            ("The length is $6\\pi$ (D).", "(D) 6\\pi"),
            ("The arc is 6 m long, i.e. D: 6 m.", "(D) 6 m"),
        ),
        (),
        _CHOICE,
    ),
    Rule(
        "letter",
        pattern(
            r"(?:\b(?:[Oo]ption|[Cc]hoice|[Cc]hoose|[Ss]elect|[Pp]ick|go with)\s+"
            rf"{STAR}|^{STAR}){LETTER_AND_AMOUNT}(?=[).:,*]|\s*$|\s+(?:because|since|as|over|rather)\b)",
            re.MULTILINE,
            lambda text, start: unchosen(text, start) or hedged(text, start),
        ),
        (
            ("I would choose (A).", "(A)"),
            ("D.\nThis is what I think", "D"),
            ("B or C", "B or C"),
        ),
        (),
        _CHOICE,
    ),
    Rule(
        "letter and text",
        pattern(
            rf"^{STAR}(?!I[ \t]+[a-z](?:(?![A-J]\b)[^\n])*$)"
            rf"(?P<answer>{ONE}[ \t]+\S[^\n]{{0,60}}|[A-J](?=[\d(\\$-])[^\n]{{1,60}})\s*\Z",
            re.MULTILINE,
            unless=unchosen,
        ),
        (("Both fit.\nB 12 cm", "B 12 cm"),),
        (),
        _CHOICE,
    ),
    Rule(
        "Chinese conclusion",
        chinese_conclusion,
        (
            ("周长为26分米。\n\n答：边长是6.5分米。", "6.5分米"),
            ("所以“学”的对面是“习”字。", "习"),
            ("故所求概率为23/28。", "23/28"),
        ),
        ("答", "综上", "可见", "可知", "可得", "所以", "因此", "因而", "从而", "于是", "故", "即", "∴", "得"),
    ),
    Rule(
        "display",
        pattern(r"(?:\\\[|\$\$)\s*(?P<answer>[^$\[\]]{1,300}?)[\s.]*(?:\\\]|\$\$)\s*\Z", re.DOTALL),
        (("Therefore\n\\[\nx = 5\n\\]", "x = 5"),),
    ),
    Rule(
        "environment",
        pattern(rf"(?P<answer>{ENVIRONMENT})\s*\Z"),
        (("So\n\\begin{equation}\nx = 5\n\\end{equation}", "\\begin{equation}\nx = 5\n\\end{equation}"),),
        ("\\end",),
    ),
    Rule(
        "yes or no",
        pattern(
            rf"^[ \t]*{_SO}(?P<answer>(?:yes|no)\b(?=[,.;!:*\s]*$|[,.;!]\s)[^\n]*)\s*\Z",
            re.MULTILINE | re.IGNORECASE,
        ),
        (("They share all angles.\nTherefore, yes, they are similar.", "yes, they are similar"),),
        (),
        frozenset({"yes_no"}),
    ),
    Rule(
        "so yes or no",
        so_yes_or_no,
        (("Its bar is higher than the other one, so yes.", "yes"),),
        ("yes", "no"),
        frozenset({"yes_no", "choice"}),
    ),
    Rule(
        "form",
        stated_form,
        (
            ("Starting at the origin, it ends at **(2, 3)**.", "(2, 3)"),
            ("The areas are in the ratio 2 to 3.", "2:3"),
            ("So it is the 25th figure.", "25"),
        ),
    ),
    Rule(
        "known as",
        known_word,
        (
            ("It is an example of chiaroscuro.", "chiaroscuro"),
            ("This is a technique known as **chiaroscuro**.", "chiaroscuro"),
        ),
        (" of ", " as ", "called", "termed", "named"),
        frozenset({"text"}),
    ),
    Rule("between", between, (("So it's between 1995 and 1999.", "[1995, 1999]"),), ("between",), frozenset({"list"})),
    Rule(
        "only number",
        only_number,
        (
            ("We count them one by one.\nHe has 7 apples left.", "7"),
            ("The fee is about $3 million.", r"\$3 million"),
            ("So the sum is **100**.\n\nI hope this helps!", "100"),
        ),
        (),
        NUMBER_TYPES | {"quantity"},
    ),
    Rule("short", short, (("42", "42"), ("x = 5", "x = 5"), ("Yes, it is larger", "Yes, it is larger"))),
    Rule(
        "conclusion",
        conclusion,
        (
            ("The sum of both numbers is 7.", "7"),
            ("We add them.\n3 + 4 = 7", "7"),
            ("So we get $x=\\frac12$.", r"\frac12"),
            ("Therefore, x = 12.", "12"),
        ),
        types=frozenset({"", *TYPES}) - {"parts"},
    ),
    Rule("line", line, (("The cat sat on the mat", "The cat sat on the mat"),)),
)

ANNOUNCEMENTS = (
    "tag", "hashes", "JSON", "final answer", "Chinese", "Chinese choice", "Chinese correct", "Chinese item",
    "answer is", "option is", "is correct", "must be", "so letter", "obtained letter",
    "remaining letter", "last letter", "marked row",
)  # fmt: skip
