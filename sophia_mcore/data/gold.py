"""Is the gold answer of a multiple choice question one of its options? Looked at before anything is sampled."""

from __future__ import annotations

import re
from string import ascii_uppercase

from sophia_mcore.verify.comparing.choices import option_index, option_letters
from sophia_mcore.verify.text.normalize import clean
from sophia_mcore.verify.text.several import alternatives

_LABEL = re.compile(r"\s*\(?([A-Za-z])[).:]\s*\S.*", re.DOTALL)  # "(B) 12" inside an option
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])(?:[).:]|\s)\s*(\S.*)", re.DOTALL)
_INDEX = re.compile(r"\d{1,2}(?:\.0)?")


# What people write into a table where there is no answer, in lower case.
_PLACEHOLDERS = frozenset({
    "unknown", "unkown", "tbd", "tba", "tbc", "todo", "to do", "n/a", "n.a", "n.a.", "#n/a", "<na>", "null", "nil",
    "nan", "inf", "-inf", "not available", "not applicable", "not given", "not provided", "not specified", "none given",
    "no answer", "no answer given", "no answer provided", "no value", "no data", "no solution provided", "placeholder",
    "to be determined", "to be added", "to be announced", "to be confirmed", "[deleted]", "[removed]", "[redacted]",
    "answers may vary", "answers will vary", "answer may vary", "answer varies", "answers vary", "not sure", "idk",
    "don't know", "do not know", "i don't know", "i do not know", "open-ended", "open ended", "free response",
    "?", "??", "???", "-", "--", "---", "–", "—", "_", "__", "___", "...", "..", "…", ".", "[]", "{}", "()", "''", '""',
    "#ref!", "#value!", "#div/0!", "#name?", "#num!", "#null!", "#error!",
    "未知", "待定", "无答案", "暂无", "暂无答案", "略", "答案略", "不详", "同上",
})  # fmt: skip
_ELSEWHERE = re.compile(
    r"(?:\(?please\s+)?\(?(?:(?:see|refer to|check|look at|cf\.?)\s+(?:\w+\s+){0,2}?(?:solutions?|answers?"
    r"|explanations?|figures?|images?|pictures?|diagrams?|graphs?|text|pages?|appendix|key|rubric|notes?|above|below|attach\w*|analysis"
    r"|working|steps)\b.{0,60}|[详参]?见\s*(?:解析|解答|答案|图|上|下|附).{0,20})",
    re.IGNORECASE | re.DOTALL,
)


def no_answer(answer: str, options: tuple[str, ...]) -> str:
    """Why a gold answer says that there is none, such as "TBD" and "see solution"; "" where it may be an answer.

    What is the text of an option is an answer, whatever it says.

    >>> no_answer("N/A", ()), no_answer("N/A", ("N/A", "yes")), no_answer("-5", ())
    ("no answer: the cell says 'N/A'", '', '')
    """
    if not answer or answer.strip() in (option.strip() for option in options):
        return ""
    bare = answer.strip()
    plain = bare.casefold()
    if {plain, plain.strip(" .!()<>")} & _PLACEHOLDERS or bare in ("NA", "NaT") or _ELSEWHERE.fullmatch(bare):
        return f"no answer: the cell says {answer[:80]!r}"
    return ""


_SIMPLE_PART = re.compile(r"[\w\s.,%$€£°/+'’-]+")


def several_answers(answer: str, options: tuple[str, ...]) -> tuple[str, str]:
    """(the answer, what is wrong) of a gold answer with bars: the letters of a choice question, else several answers.

    >>> several_answers("A|C", ("red", "green", "blue")), several_answers("|x|", ())
    (('A, C', ''), ('|x|', ''))
    """
    parts = [part.strip() for part in answer.split("|")]
    if len(parts) < 2 or answer.strip() in (option.strip() for option in options):
        return answer, ""
    if options and all(re.fullmatch(r"\(?[A-Z]\)?", part) for part in parts):
        return ", ".join(part.strip("()") for part in parts), ""
    if not all(_SIMPLE_PART.fullmatch(part) for part in parts):
        return answer, ""  # |x|, P(A|B), {x | x > 0}
    return answer, (
        f"the answer {answer[:80]!r} holds several between bars: write the one that is meant, "
        "or 'A ## B' where any is right"
    )


_FIGURES = re.compile(r"[+-]?\d[\d.,/]*%?")


def listed_problem(answer: str) -> str:
    """What is wrong with a gold answer that is a literal list of texts, not all of them numbers; "" for any other.

    >>> listed_problem("['1', '2']"), listed_problem("['24', 'twenty-four']")[:38]
    ('', "the answer ['24', 'twenty-four'] is a ")
    """
    texts = () if "##" in answer else alternatives(answer)
    if len(texts) < 2 or all(_FIGURES.fullmatch(text.strip()) for text in texts):
        return ""
    return f"the answer {answer[:80]} is a list: write 'A ## B' where any is right, 'A, B' where all are meant"


def answer_problem(answer: str, options: tuple[str, ...]) -> str:
    """What is wrong with a gold answer in view of its options; "" when it names one of them, or several by letter.

    >>> answer_problem("B", ("red", "blue")), answer_problem("blue", ("red", "blue"))
    ('', '')
    >>> answer_problem("E", ("red", "blue"))
    "the answer 'E' is none of the 2 options"
    """
    texts = [option for option in options if option]
    if not texts:
        return ""
    if len(options) > len(ascii_uppercase):
        return f"the options are {len(options)}, more than there are letters"
    moved = _moved_label(options)
    if moved:
        return moved
    mark = _LETTER_AND_TEXT.fullmatch(answer.strip())
    if mark is not None and _is_another(mark[1], mark[2], options):
        return f"the answer {answer[:80]!r} names a letter and the text of another option"
    if [option.strip() for option in texts].count(answer.strip()) == 1:
        return ""
    text = clean(answer)
    named = option_index(text, options)
    if named is not None:
        empty = named < len(options) and not options[named]
        return f"the answer {answer[:80]!r} names option ({ascii_uppercase[named]}), which has no text" if empty else ""
    letters = option_letters(text)
    if letters and all(
        ascii_uppercase.index(letter) < len(options) and options[ascii_uppercase.index(letter)] for letter in letters
    ):
        return ""
    cleaned = [clean(option) for option in options]
    if cleaned.count(text) == 1:
        return ""
    hint = "; is it an index? then set answer_index = 0 or 1 of the source" if _INDEX.fullmatch(answer) else ""
    return f"the answer {answer[:80]!r} is none of the {len(texts)} options{hint}"


def _moved_label(options: tuple[str, ...]) -> str:
    """What is wrong where all options carry a label of their own, and one is not that of its place; else ""."""
    labels = [_LABEL.fullmatch(option) for option in options]
    if not all(labels):
        return ""
    for place, label in enumerate(labels):
        assert label is not None
        if label[1].upper() != ascii_uppercase[place]:
            return f"the options: ({ascii_uppercase[place]}) is labelled {label[1]!r}"
    return ""


def _is_another(letter: str, text: str, options: tuple[str, ...]) -> bool:
    """Whether ``text`` is exactly one option, and not the one of ``letter``."""
    plain = [clean(option).casefold() for option in options]
    wanted = clean(text).casefold()
    return plain.count(wanted) == 1 and ascii_uppercase.index(letter) != plain.index(wanted)


def letter_of_index(answer: str, first: int, options: tuple[str, ...]) -> str | None:
    """The letter of the option that an index counted from ``first`` names; None if it names none.

    >>> letter_of_index("1", 0, ("red", "blue")), letter_of_index("2", 0, ("red", "blue"))
    ('B', None)
    """
    if not _INDEX.fullmatch(answer.strip()):
        return None
    index = int(float(answer)) - first
    return ascii_uppercase[index] if 0 <= index < min(len(options), 26) and options[index] else None
