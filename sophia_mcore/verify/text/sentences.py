"""Words around a short answer that say nothing of their own: "It is a prism", "called juxtaposition"."""

from __future__ import annotations

import re
from functools import lru_cache

from sophia_mcore.verify.rules import tables
from sophia_mcore.verify.text.amounts import OF_ANOTHER
from sophia_mcore.verify.text.clauses import states
from sophia_mcore.verify.text.normalize import TEXT_COMMAND
from sophia_mcore.verify.text.words import qualifiers

CERTAINLY = r"(?:definitely|certainly|clearly|obviously|undoubtedly|indeed|therefore|thus|hence)"  # no doubt in them
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),? (?=it['’]s |it is |the ))?"
    r"(?:i (?:think|believe|guess) (?:that )?)?(?:(?:这|它|该图形)?是)?"
    r"(?:(?:it|this|that|he|she|there|these|those|the(?: (?:[^\W\d_]+|\d{1,2}(?:st|nd|rd|th))){1,3})(?:['’]s"
    r"|\s+(?:is|was|are|were"
    r"|shows?|has|falls|lands|occurs|happens|will(?: be)?))\s+)?"
    r"(?:(?:it|this|that)\s+(?=(?!is|was|has)[a-z]+s\b))?"
    rf"(?:{CERTAINLY}\s+)?"
    r"(?:(?:built|painted|written|composed|made|produced|invented|founded|born|held|located|situated)\s+(?=(?:in|on|at)\s))?"
    r"(?:(?:called|named|known as|termed|referred to as|in|on|at|an?|the|by|of|from|to|towards?)\s+)*"
)


@lru_cache(maxsize=1 << 12)
def core(plain: str) -> str:
    """Plain words without the beginning of a sentence around them. A denial stays, and so differs.

    >>> core("it is a prism"), core("it's not a dog"), core("built in may"), core("clearly a prism")
    ('prism', 'not a dog', 'may', 'prism')
    """
    match = _LEAD.match(plain)
    if match and OF_ANOTHER.search(match[0]):
        return plain
    rest = plain[match.end() :] if match else plain
    return rest if len(rest) > 1 or not rest.isascii() or rest.isdigit() else plain


_PLACE = re.compile(r"\b(in|on|at|by|of|from|to|towards?)\b")


def same_place(found: str, wanted: str) -> bool:
    """Whether the prepositions before the core of two plain answers agree; one that only one has does not count.

    >>> same_place("it is in the box", "on the box"), same_place("in may", "may")
    (False, True)
    """
    first, second = (_PLACE.findall(text.removesuffix(core(text))) for text in (found, wanted))
    return not (first and second) or first[-1] == second[-1]


_SAID = re.compile(
    r"(?:so |thus |hence |therefore,? )?(?:the|its|their|it)(?:\s+[A-Za-z]{2,15}){0,5}?\s+(?:is|are|was"
    r"|equals)\s+(?=\S)",
    re.I,
)
_NAME_IS = re.compile(r"^(?P<name>[A-Z]{1,3}|[b-z]) (?:is|equals) (?=[-√(\d]|\\(?:frac|sqrt|pi))")  # "EF equals 7/4"
_NAMED = re.compile(  # "the point (1, 2)"
    r"^(?:the )?(?:points?|pair|vector|interval|set|coordinates|line|equation|function|ratio)\s+"
    r"(?=[(\[{\\]|[a-z]\s*=|\d+\s*:)",
    re.I,
)
_THE_YEARS = re.compile(r"^[Tt]he (?=(?:\d{2}){1,2}s$)")  # "the 1990s"
_YEAR = re.compile(r"(?:in )?the year (\d{4})", re.I)
_SHARE_OF = re.compile(r"(?P<share>\d+/\d+|\d[\d.]*\s?\\?%) of the [a-z]+(?: [a-z]+)? (?:is|are) [a-z]+ed")
_FIRST_NUMBER = re.compile(r"\W*\d[\d.,]*\b")
_DENIAL = re.compile(r"\b(?:not|never|no|than|if|least|most)\b", re.IGNORECASE)


def said(text: str) -> str:
    r"""A cleaned answer without the beginning of the sentence that states it.

    >>> said(r"\text{The angle is } 40"), said("the angle is not 40")
    ('40', 'not 40')
    """
    text = _THE_YEARS.sub("", _NAMED.sub("", text))
    if text.endswith("years old"):
        text = text.removesuffix(" old")
    year = _YEAR.fullmatch(text)
    if year:
        return year[1]
    text = _NAME_IS.sub(r"\g<name> = ", text)
    share = _SHARE_OF.fullmatch(text)
    if share:
        return share["share"]
    if " is " not in text and " are " not in text and " equals " not in text and " was " not in text:
        return text
    flat = TEXT_COMMAND.sub(r"\1 ", text)
    match = _SAID.match(flat)
    if match is None or _DENIAL.search(match[0]) or OF_ANOTHER.search(match[0]):
        return text
    rest = flat[match.end() :].strip()
    number = _FIRST_NUMBER.match(rest)
    return rest if number is None or states(match[0], rest[number.end() :]) else text


_ALL_BUT = re.compile(r"all (?:real numbers|reals)(?: x)? (?:except|other than)(?: for)?\s+(?:x\s*=\s*)?(-?\d+)")
_ALL_REALS = frozenset(
    {"all real numbers", "all reals", "all real x", "全体实数", r"\mathbb{R}", r"\mathbb R", r"\mathbf{R}"}
)


def all_reals(text: str) -> str:
    """The interval of all real numbers where a cleaned answer names them in words or by their sign."""
    if text in _ALL_REALS:
        return r"(-\infty, \infty)"
    hole = _ALL_BUT.fullmatch(TEXT_COMMAND.sub(r"\1", text)) if "except" in text or "other than" in text else None
    return rf"(-\infty, {hole[1]}) \cup ({hole[1]}, \infty)" if hole else text


_STATED = re.compile(r"[A-Z][^\d=.]{2,100}? (?:is|are|equals)\s*(?=[\d\\$(-])")


def stated(gold: str) -> str:
    r"""A cleaned gold answer that is a sentence about a value, as that value.

    >>> stated(r"Length of E F is \frac{7}{4}")
    '\\frac{7}{4}'
    """
    if " is" not in gold and " are" not in gold and " equals" not in gold:
        return gold
    flat = " ".join(TEXT_COMMAND.sub(r"\1", gold).split())
    match = _STATED.match(flat)
    return gold if match is None or _DENIAL.search(match[0]) else flat[match.end() :].strip()


_ADJECTIVE = re.compile(
    r"[a-z-]{2,}(?:al|ar|ic|ary|ior|ian|ous|ine|oid|id|ive|ile|ent|ant|ate|ese|ish|ex|ave|an|ed|ac)", re.IGNORECASE
)


def kind_left_out(words: str) -> str:
    """An adjective without the noun behind it that only says what kind of thing it is; other words as they are.

    >>> kind_left_out("mitral valve"), kind_left_out("heart valve"), kind_left_out("dorian mode")
    ('mitral', 'heart valve', 'dorian')
    """
    rest, _, noun = words.rpartition(" ")
    if noun not in tables().class_nouns or not rest or qualifiers(rest):
        return words
    free = noun in tables().class_nouns_of_any or _ADJECTIVE.fullmatch(rest.rpartition(" ")[2]) is not None
    return rest if free else words


def harmless(found: str, wanted: str) -> bool:
    """Whether words hold the wanted words whole and beside them only such as say nothing more ("larval stage").

    >>> harmless("larval stage", "larval"), harmless("mitral valve", "mitral"), harmless("hot dog", "dog")
    (True, True, False)
    """
    if kind_left_out(found) == wanted:
        return True
    words, core_words = found.split(), wanted.split()
    for start in range(len(words) - len(core_words) + 1):
        if words[start : start + len(core_words)] == core_words:
            return set(words[:start] + words[start + len(core_words) :]) <= tables().harmless
    return False
