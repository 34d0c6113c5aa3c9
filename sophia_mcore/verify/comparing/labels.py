"""Answers of letters that are names and not products: abbreviations, Roman numerals, formulas, lists of labels."""

from __future__ import annotations

import re

from sophia_mcore.verify.rules import tables
from sophia_mcore.verify.text.normalize import TEXT_COMMAND
from sophia_mcore.verify.text.words import SMALL

_CAPITALS = re.compile(r"[A-Z]{2,}")
_ELEMENT = r"\(?[A-Z][a-z]?\d*(?:\)\d*)?"  # digits in one place only: else "A111A111" would not end
_FORMULA = re.compile(rf"(?:{_ELEMENT}){{1,12}}(?:\^?\d?[+-])?")
_NOISE = re.compile(r"\\(?:ce|mathrm|text|mathbf|mathit|rm)(?![a-zA-Z])|[{}\s_$]")
_CIRCLED = {chr(0x2460 + n): f"({n + 1})" for n in range(20)}
_STATEMENTS = re.compile(r"(?:\(\s*(?:\d{1,2}|[ivx]{1,4})\s*\)\s*(?:[,;]|and|和)?\s*){2,}")
_ONE_STATEMENT = re.compile(r"\(\s*(\d{1,2}|[ivx]{1,4})\s*\)")
_EITHER_SIGN = re.compile(r"\s*(?:\bor\b|\\text\s*\{\s*or\s*\}|或)\s*")
_EITHER = re.compile(rf"[(\[]?[A-J][)\]]?(?:{_EITHER_SIGN.pattern}[(\[]?[A-J][)\]]?)+")
_PLAIN_LIST = re.compile(r"\d(?:\s*,\s*\d)+")
_ROMAN_LIST = re.compile(r"\(?[IVX]+\)?(?:(?:,| and|, and) \(?[IVX]+\)?)+")
_STEM = re.compile("[甲乙丙丁戊己]")
_STEMS = re.compile(rf"{_STEM.pattern}(?:\s*[,，、和与及]\s*{_STEM.pattern})+")
_LETTER_LIST = re.compile(r"[(\[]?[A-J][)\]]?(?:\s*(?:,|;|and|&)\s*[(\[]?[A-J][)\]]?)+")


def _dense(text: str) -> str:
    return _NOISE.sub("", text)


def _elements(dense: str) -> list[str] | None:
    """The element symbols of a chemical formula of at least two elements or with counts; None for any other answer."""
    if _FORMULA.fullmatch(dense) is None:
        return None
    found = re.findall(r"[A-Z][a-z]?", dense)
    if not set(found) <= tables().elements or (len(found) < 2 and not re.search(r"[\d+-]", dense)):
        return None
    return found


def is_formula(text: str) -> bool:
    """Whether a cleaned answer is a chemical formula that is not a letter with an index, as O2 may be.

    >>> is_formula("H2O"), is_formula("Fe2"), is_formula("O2"), is_formula("AB")
    (True, True, False, False)
    """
    found = _elements(_dense(text))
    return found is not None and len("".join(found)) > 1


def names_equal(gold: str, text: str) -> bool | None:
    r"""Equality of two cleaned answers of which at least one is a name made of letters; None if neither is one.

    A name is two or more capitals ("NE", "IV", "AB") or a chemical formula with counts or two-letter symbols ("CO2",
    "NaCl"). It equals the same letters in the same order; \mathrm, braces and the sign of an index do not matter.

    >>> names_equal("IV", "VI"), names_equal("CO2", r"\text{CO}_2"), names_equal("xy", "yx")
    (False, True, None)
    """
    isotope, said = _isotope(gold), _isotope(text)
    if isotope is not None and said is not None:
        return isotope[0] == said[0] and (isotope[1] == said[1] or not (isotope[1] and said[1]))
    a, b = _dense(gold), _dense(text)
    hydrates = [_HYDRATE.fullmatch(one.replace("\\cdot", ".").replace("*", ".")) for one in (a, b)]
    if all(hydrates):
        return len({one.groups() for one in hydrates if one}) == 1
    capital, other = _CAPITALS.fullmatch(a), _CAPITALS.fullmatch(b)
    if capital or other:
        listed = letters_equal(gold, text)
        if listed is not None:
            return listed
        return a == b if (capital and other) or not re.search(r"[\\+*/^=<>-]", b if capital else a) else None
    if a[-1:] in "+-" and b[-1:] in "+-":  # charges: Fe^{2+} is Fe2+
        a, b = (re.sub(r"\^(?=\d?[+-]$)", "", one) for one in (a, b))
    first, second = _elements(a), _elements(b)
    if first is None or second is None:
        return None
    named = any(len(symbol) > 1 for symbol in first + second) or any(
        "_" not in t for t in (gold, text) if re.search(r"\d", t)
    )
    if a == b:
        return True
    return False if named else None


_ISOTOPE = re.compile(r"\^(?P<mass>\d{1,3})(?:_(?P<number>\d{1,3}))?(?P<element>[A-Z][a-z]?)")
_HYDRATE = re.compile(rf"((?:{_ELEMENT}){{2,12}})\.(\d*H2O)")


def _isotope(text: str) -> tuple[tuple[str, str], str] | None:
    r"""((mass number, element), atomic number or "") of "^{14}_{6}C"; None for any other answer.

    >>> _isotope(r"^{14}\mathrm{C}"), _isotope("^{14}_6C"), _isotope("C")
    ((('14', 'C'), ''), (('14', 'C'), '6'), None)
    """
    match = (
        _ISOTOPE.fullmatch(re.sub(r"\\(?:ce|mathrm|text|rm)(?![a-zA-Z])|[{}\s$]", "", text)) if "^" in text else None
    )
    if match is None or match["element"] not in tables().elements:
        return None
    return (match["mass"], match["element"]), match["number"] or ""


_IRREGULAR = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


def _ordinal(word: str) -> str:
    return _IRREGULAR.get(word) or (f"{word[:-1]}ieth" if word.endswith("y") else f"{word}th")


_ORDINALS = {_ordinal(word): n for word, n in SMALL.items() if n} | {
    f"{tens}-{_ordinal(unit)}": n + m
    for tens, n in SMALL.items() if n >= 20
    for unit, m in SMALL.items() if 0 < m < 10
}  # fmt: skip
_WORDS = "|".join(sorted(_ORDINALS, key=len, reverse=True))
_ORDINAL = re.compile(rf"(?:the\s+)?(?:(\d{{1,4}})(?:st|nd|rd|th)|({_WORDS}))(?:\s+([a-z]+))?", re.IGNORECASE)


def ordinals_equal(gold: str, text: str) -> bool | None:
    """Equality of "3rd" and "third", with the same noun behind them; None if not both are ordinals.

    >>> ordinals_equal("5th floor", "the fifth floor"), ordinals_equal("3rd", "13th"), ordinals_equal("3rd", "3")
    (True, False, None)
    >>> ordinals_equal("12th", "twelfth"), ordinals_equal("21st century", "twenty-first century")
    (True, True)
    """
    a, b = _ORDINAL.fullmatch(gold), _ORDINAL.fullmatch(text)
    if a is None or b is None:
        return None
    first, second = (int(one[1] or _ORDINALS[one[2].casefold()]) for one in (a, b))
    return first == second and (a[3] or "").casefold() == (b[3] or "").casefold()


_LABEL_ITSELF = r"\(?(?:[A-Z]{1,2}'?|[a-z]|[IVX]+)\)?"
_NOUN_AND_LABEL = re.compile(
    r"(?i:(?:the )?(?P<noun>quadrant|region|figure|graph|curve|type|class|phase|stage|group|zone|area|section|box|line"
    r"|case|diagram|panel|plot|step|period|column|row|chapter|circuit|picture|image|point|segment|ray|vertex|side"
    r"|sample|bottle|statement|object|person|player|team|car|ball|block|city|country|shape)(?P<several>s?)) "
    rf"(?P<label>{_LABEL_ITSELF}(?:(?:,| and|, and) {_LABEL_ITSELF})*)"
)


def noun_left_out(gold: str, text: str) -> bool:
    """Whether two labels are the same, but for a noun that only one of them names: "Quadrant III" and "III".

    >>> noun_left_out("III", "Quadrant III"), noun_left_out("figure (b)", "b"), noun_left_out("line AB", "segment AB")
    (True, True, False)
    """
    first, second = (_NOUN_AND_LABEL.fullmatch(TEXT_COMMAND.sub(r"\1", one)) for one in (gold, text))
    if first is None and second is None:
        return False
    if first is not None and second is not None and first["noun"].casefold() != second["noun"].casefold():
        return False
    a, b = (re.sub(r"[()]", "", match["label"] if match else one) for match, one in ((first, gold), (second, text)))
    return a == b


SHORT_WORDS = frozenset(
    {"up", "on", "in", "at", "no", "ox", "hi", "go", "it", "he", "us", "we", "or", "if", "to", "by"}
)
_HEXADECIMAL = re.compile(r"0[xX][0-9A-Fa-f]+")
_GENOTYPE = re.compile(r"(?:([A-Za-z])(?i:\1)){2,4}")


def case_differs(gold: str, text: str) -> bool:
    r"""Whether two answers that are no words differ, and by the case of their letters alone.

    >>> case_differs("AaBb", "AABB"), case_differs(r"\pi", r"\Pi"), case_differs("Paris", "paris")
    (True, True, False)
    """
    a, b = gold.strip(), text.strip()
    if a == b or a.casefold() != b.casefold():
        return False
    if a.casefold() in SHORT_WORDS:
        return False
    if _HEXADECIMAL.fullmatch(a):
        return False
    words = re.findall(r"(?<![A-Za-z\\])[A-Za-z]{3,}", TEXT_COMMAND.sub(r"\1", a))
    return all(_GENOTYPE.fullmatch(word) for word in words)


def letters_equal(gold: str, text: str) -> bool | None:
    """Letters in a row against the same letters in a list: "ABD" and "A, B, D". "A or B" is not "A and B"."""
    if (_EITHER.fullmatch(gold) is None) != (_EITHER.fullmatch(text) is None) and all(
        _LETTER_LIST.fullmatch(_EITHER_SIGN.sub(",", one)) for one in (gold, text)
    ):
        return False
    if _STEMS.fullmatch(gold) and _STEMS.fullmatch(text):
        return sorted(_STEM.findall(gold)) == sorted(_STEM.findall(text))
    romans = [re.findall("[IVX]+", one) for one in (gold, text) if _ROMAN_LIST.fullmatch(one)]
    if len(romans) == 2:
        return sorted(romans[0]) == sorted(romans[1])
    for row, listed in ((gold, text), (text, gold)):
        flat = TEXT_COMMAND.sub(r"\1", listed).strip()
        if re.fullmatch(r"[A-J]{2,8}", row) and list(row) == sorted(set(row)) and _LETTER_LIST.fullmatch(flat):
            return set(row) == set(re.findall(r"[A-J]", flat))
        if re.fullmatch(r"[A-J]{3,8}", row) and len(set(row)) == len(row) and _LETTER_LIST.fullmatch(flat):
            return list(row) == re.findall(r"[A-J]", flat)  # a ranking
    return None


def statements_equal(gold: str, text: str) -> bool | None:
    """Equality of lists of statement numbers, "(1)(3)", "①③" or "①、③"; None if the gold answer is no such list.

    >>> statements_equal("①③", "(3), (1)"), statements_equal("(1)(3)", "1, 2"), statements_equal("(1, 3)", "(1)(3)")
    (True, False, None)
    """
    wanted, found = _statements(gold), _statements(text)
    if wanted is None:
        return None if found is None or re.search(r"[A-Za-z(]", gold) else False  # (2)(3) is hardly meant as 6
    if found is None and _PLAIN_LIST.fullmatch(text):
        found = frozenset(re.findall(r"\d", text))
    return found == wanted


def _statements(text: str) -> frozenset[str] | None:
    if not text.isascii():
        text = re.sub("^(?:其中)?正确的?(?:结论|说法|命题)?(?:是|有|为)[:：]?|(?:是|都)?正确的?$", "", text)
        text = "".join(_CIRCLED.get(character, character) for character in text)
    return frozenset(_ONE_STATEMENT.findall(text)) if _STATEMENTS.fullmatch(text + " ") else None
