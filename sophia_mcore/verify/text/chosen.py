"""What is said of the letter of an option: chosen, affirmed, or only spoken of.

"B is correct", "B. 14" and "B, because ..." choose B. "B is correct for even numbers", "B. 14 is too small" and
"(B) is eliminated" do not: what stands behind a letter is its text, an affirmation that ends there, or a reason.
"""

from __future__ import annotations

import re

from sophia_mcore.verify.text.clauses import CLAUSE_END, sentence_of

_NOT_CHOSEN = re.compile(  # before a letter, in its clause
    r"\b(?:worst|second(?:[- ]best)?|incorrect|never|nobody|no one|going to|could|might|may|had|suppos\w+|assum\w+"
    r"|if|unless|only an? [a-z]+ would|nearly|almost|(?:friend|neighbou?r|student|teacher|book|key)['’]?s?)\b"
    r"|\b(?:wrong|false) (?:option|choice|answer|one)\b|n['’]t\s+(?:choose|select|pick|go with)\b",
    re.IGNORECASE,
)
_QUALIFIED = re.compile(  # behind a letter, in its sentence
    r"[^.!?\n]{0,40}?\b(?:only (?:if|when|for|in)|except|unless|for [^.!?\n]{1,30} only|apart from"
    r"|to (?:another|a different)|but not sure|if (?!and only))\b"
    r"|[).:]*\s[^.!?\n,]{0,40}?\b(?:is|are|was) (?:too|wrong|false|incorrect"
    r"|eliminated|excluded|impossible|ruled out|a distractor)\b"
    r"|[)\]*_]*,\s[^.!?\n,]{1,40},\s+(?:is|are|was|were|has|had)\s+"
    r"(?!(?:indeed |clearly |therefore )?(?:the )?(?:only )?(?:correct|right|best|true|answer))"
    r"|[)\]*_]*,\s[^.!?\n]{1,60}?\bor\s+(?:option\s+)?[(\[]?[A-J][)\],:]"
    r"|[)\]*_]*,?\s+\(?(?:in (?:part|some|certain|most)|partly|partially|mostly|sometimes|assuming|provided"
    r"|when|as long as|for (?:even|odd|positive|negative|small|large|some|certain|most|n|x)|almost|nearly)\b"
    r"|[)\]*_]*,?\s*\(?(?:not (?:sure|certain)|unsure|maybe|perhaps|probably)\b"
    r"|[^\n。]{0,80}?(?:不符合题意|不符合要求|不正确|不成立|排除)"
    r"|[)\]*_]*\s*[:(–—-]\s*(?:too|wrong|false|incorrect|eliminated|excluded|impossible|ruled out|no)\b"
    r"|[).:]*\s[^.!?\n,]{0,40}?\b(?:is|was) [^.!?\n]{1,60}, not \b|[).:]+\s[^.!?\n,]{0,40}?\bwould\b",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[(\[*_]*([A-J])(?![\w'’])")


def not_chosen(text: str, start: int) -> bool:
    """Whether the first letter of an option from ``start`` on is only spoken of: put aside, supposed or qualified.

    >>> [not_chosen(text, 0) for text in ("Never pick B.", "B is correct only if x > 0.", "So I choose B.")]
    [True, True, False]
    """
    letter = _LETTER.search(text, start)
    if letter is None:
        return False
    clause = CLAUSE_END.split(sentence_of(text[max(0, letter.start() - 120) : letter.start()].rpartition("\n")[2]))[-1]
    return _NOT_CHOSEN.search(clause) is not None or _QUALIFIED.match(text, letter.end()) is not None


_NOUN = (
    r"(?:answer|option|choice|one|statement|solution|match|description|conclusion|explanation|figure|graph|diagram|formula"
    r"|equation|value|picture|letter)"
)
_ENDS = (  # behind an affirmation: the end, a reason, or what the others are
    r"(?=[\s*_)\]]*(?:$|[.!。](?:\s|$)|[;:]|,(?!\s*(?:if|when|but|only|unless|provided|assuming|though|although|except|for|in)\b)"
    r"|\s(?:because|since|as|here|among|now|indeed|given (?:that|the)|while|whereas|and (?:the (?:others?|rest)\b"
    r"|[(\[]?[A-J][)\]]? (?:is|are) (?:wrong|incorrect|false|not)\b)|of (?:the|these|all)\b"
    r"|(?:to|for|in) (?:the|this) (?:question|problem|figure|case)\b)))"
)
_RIGHT = rf"(?:(?:correct|right|best|true|final)(?:\s+{_NOUN})?|answer)"
AFFIRMED = rf"is\s+(?:indeed\s+|clearly\s+|therefore\s+)?(?:the\s+)?(?:only\s+)?{_RIGHT}{_ENDS}"
_AFFIRMED = re.compile(AFFIRMED, re.IGNORECASE | re.MULTILINE)
_PUT_ASIDE = re.compile(  # a judgement against what it is said of
    r"\b(?:too|not|no|never|wrong|false|incorrect|eliminated|excluded|impossible|invalid|ruled out|rejected|incomplete"
    r"|distractor|fails?|cannot|misses|ignores|forgets|violates|contradicts|would)\b|n['’]t\b|[✗✘❌]|\\times\s*$",
    re.IGNORECASE,
)
_PREDICATE = re.compile(  # a sentence about the option whose text stands before it
    r"(?:is|are|was|were|has|have|had|does|do|did|can|could|will|would|should|may|might|must|seems?|looks?|leaves|gives"
    r"|counts?|needs?|requires?|lies|remains|comes|belongs|follows|equals|means|shows|describes|satisfies|matches)\b",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"(?:remains|follows|matches|satisfies|fits|works|holds)\b(?!.*\b(?:if|only|when|not)\b)", re.IGNORECASE
)


def affirmed(words: str) -> bool:
    """Whether words behind a letter say without condition that it is right.

    >>> affirmed("is the correct answer"), affirmed("is correct for even n"), affirmed("is best avoided")
    (True, False, False)
    """
    return _AFFIRMED.match(words) is not None


def put_aside(words: str, own: str) -> bool:
    """Whether words behind a letter judge its option, whose own text is ``own``, and do not affirm it.

    >>> put_aside("14 is too small", "14"), put_aside("14 is correct", "14"), put_aside("not enough", "not enough")
    (True, False, False)
    """
    if own.startswith(words):
        return False
    behind = words.removeprefix(own).lstrip(" ,;:)(-") if own else words
    if affirmed(behind):
        return False
    if _PREDICATE.match(behind):
        return _CHOSEN.match(behind) is None
    return any(judged[0] not in own.split() for judged in _PUT_ASIDE.finditer(behind))
