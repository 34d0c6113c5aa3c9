"""Answers that cannot be right, which algebra would read wrongly or work at for long."""

from __future__ import annotations

import re

from sophia_mcore.verify.comparing.inequalities import bound
from sophia_mcore.verify.comparing.named import named_value
from sophia_mcore.verify.comparing.ranges import parse_range
from sophia_mcore.verify.text.normalize import MAX_DEPTH, depth
from sophia_mcore.verify.text.quantities import parse_quantity
from sophia_mcore.verify.text.words import qualifiers

# What is still to be worked out is no final answer, unless the gold answer leaves it so too.
_UNEVALUATED = re.compile(
    r"#|<\s*image|\\(?:to|rightarrow|longrightarrow|mapsto|sum|prod|i{0,3}int|oint|lim|limsup|liminf|det|gcd|lcm|[bp]?mod)(?![a-zA-Z])|\\frac\s*\{\s*d\s*[\^}]|\\frac\s*\{\s*\\partial"
    r"|\\end\s*\{[a-zA-Z]*matrix\}\s*\^\s*\{?\s*[-\dn]"  # a power or the inverse of a matrix
)
_LABEL = re.compile(r"\(\d\)\s+(?!and\b|和|\()\S")
_BASE = re.compile(r"\d\s*_\s*(?!\s*(?:10|\{\s*10\s*\})(?!\d))")  # 101_2; a number in base ten is itself
_WORD_BEHIND = re.compile(r"[-+]?[\d.,]+\s*\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{[^{}]*[A-Za-z]{2}[^{}]*\}")
_CHAIN = re.compile(r"(?:\^\s*-?(?:[\d.]+|\\?[A-Za-z]+)\s*){8}")  # powers of powers without braces are no LaTeX
_SENTENCE_BEFORE = re.compile(r"[A-Za-z'’]+\s+(?:[A-Za-z'’]+\s+)?[^A-Za-z\\=]*\d[^\\=]*$")


def cannot_equal(gold: str, text: str, numeric: bool, wanted: bool) -> bool:
    """Whether a cleaned answer cannot equal the cleaned gold answer, whatever algebra would say.

    ``numeric``, ``wanted``: whether the answer and the gold answer are plain numbers.
    """
    if wanted and not numeric and _SENTENCE_BEFORE.match(text):
        return True  # math-verify takes the number out of any sentence
    if depth(text) > MAX_DEPTH and depth(gold) <= MAX_DEPTH:
        return True
    if (
        not numeric
        and qualifiers(text) - qualifiers(gold)
        and bound(text) is None
        and parse_range(text) is None
        and not ((measured := parse_quantity(text)) is not None and measured.known)
    ):
        return True
    value = named_value(text)[1]
    for hopeless in (_UNEVALUATED, _CHAIN, _BASE):
        if hopeless.search(value) and not hopeless.search(gold):
            return True
    if (_LABEL.match(text) is None) != (_LABEL.match(gold) is None):
        return True  # math-verify reads "(1) 3" as 4
    if wanted and _WORD_BEHIND.fullmatch(text) and parse_quantity(text) is None:
        return True  # math-verify leaves out the word of "7 \text{ tens}"
    # a matrix, cases or a described set against a number
    return wanted and (r"\begin" in text or (text.startswith(r"\{") and "|" in text))
