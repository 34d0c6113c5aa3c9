r"""What does not commute though it looks like a product: f(g(x)), cross products, inverses of matrices, means.

The grammar of ``expression`` multiplies letters. Where these are no numbers, answers are equal only if they apply,
cross or bracket the same.
"""

from __future__ import annotations

import re
from collections import Counter

from sophia_mcore.verify.comparing.named import named_value

_APPLIED = re.compile(
    r"(?<![A-Za-z\\])([A-Za-z])\s*\(\s*-?(?:[A-Za-z]|\d+)\s*(?:[|,][^()]*)?\)"
)  # f(x), P(A|B), N(0, 1)
_POINT = re.compile(r"[A-Z]'?\s*\([^()]*,[^()]*\)")
_CALL = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s*[(\[]")
_EXPECTED = re.compile(r"(?<![A-Za-z\\])([A-Z])\s*\[")  # E[X]
_VECTOR = re.compile(r"\\(?:vec|nabla|mathbf|boldsymbol|bm|overrightarrow|hat)(?![A-Za-z])")
_MATRIX = re.compile(r"[A-Z]\s*\^\s*\{?\s*(?:-\s*1|T)(?![\w])")
_MEAN = re.compile(r"\\langle[^,]*?\\rangle|⟨[^,]*?⟩")
_NORM = re.compile(r"\\\||\\[lr]?Vert(?![A-Za-z])|‖")


def applied_otherwise(gold: str, text: str, raw_gold: str, raw_text: str) -> bool:
    r"""Whether two answers differ in what is applied, crossed or bracketed; the raw ones are as extracted.

    >>> applied_otherwise("f(g(x))", "g(f(x))", "", ""), applied_otherwise("f(x) + 1", "1 + f(x)", "", "")
    (True, False)
    >>> applied_otherwise(r"\vec{a} \times \vec{b}", r"\vec{b} \times \vec{a}", "", "")
    True
    >>> applied_otherwise(r"\frac{h(a+b)}{2}", r"\frac{(a+b)h}{2}", "", "")
    False
    """
    for sign in (_MEAN, _NORM):
        if (sign.search(raw_gold) is None) != (sign.search(raw_text) is None):
            return True
    if "(" not in gold + text and "[" not in gold + text and "\\" not in gold + text and "^" not in gold + text:
        return False
    gold, text = named_value(gold)[1], named_value(text)[1]
    if (_POINT.fullmatch(gold) is None) != (_POINT.fullmatch(text) is None) and "(" in (gold[:1], text[:1]):
        return False  # A(2, 3) is the point (2, 3)
    letters = {letter for sign in (_APPLIED, _EXPECTED) for one in (gold, text) for letter in sign.findall(one)}
    if letters and _calls(gold, letters) != _calls(text, letters):
        return True
    if r"\times" in gold + text and _VECTOR.search(gold + text):
        return _dense(gold) != _dense(text)
    if _MATRIX.search(gold) and _MATRIX.search(text):
        return re.findall("[A-Z]", gold) != re.findall("[A-Z]", text)
    return False


def _dense(text: str) -> str:
    return re.sub(r"[\s{}]", "", text)


def _calls(text: str, letters: set[str]) -> Counter[str]:
    """The applications of these letters, each with all of its argument."""
    found: Counter[str] = Counter()
    for match in _CALL.finditer(text):
        if match[1] not in letters:
            continue
        depth = 0
        for end in range(match.end() - 1, len(text)):
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(text[end], 0)
            if depth == 0:
                found[_dense(match[1] + text[match.end() - 1 : end + 1])] += 1
                break
    return found
