"""Remarks at the end of a response: checks, comparisons, examples and offers of help, which answer nothing.

Only what is plainly marked as a remark goes, and only where nothing in it concludes, corrects or denies.
"""

from __future__ import annotations

import re

TAIL_CHARACTERS = 4_000  # remarks are looked for in so much of the end
REMARKS = 12  # so many of them at most

_FIRST = (
    r"\s*(?:[-*•>]\s+)?[*_(\[]{0,4}(?:(?P<tick>[✓✔☑✅])\ufe0f?\s*)?(?:[^\w\s()\[\]$\\'\"“‘«<=+−-]{1,3}\s+)?[*_]{0,3}"
)
_CHECK = (
    r"(?:(?:sanity|quick|cross|double|final)[ -])?(?:check|verification|proof|probe|test)[*_]{0,3}\s*[:：]"
    r"|to (?:check|verify|confirm)(?: (?:this|it|that))?\s*[,:]|as a (?:quick |sanity |final )?check\b"
    r"|(?:double-)?checking\s*[,:]"
    r"|(?:plugging|putting|substituting) (?:\w+ )?back(?: in)?\b|indeed,|(?:you|we) can (?:also )?(?:check|verify)\b"
    r"|检验|验证|验算"
)
_ASIDE = (
    r"(?:for|by|in) comparison\b|by the way\b|incidentally\b|as a (?:by-product|side note)\b|side note\b|fun fact\b"
    r"|(?:tip|hint|remark|confidence)[*_]{0,3}\s*[:：]|for (?:instance|example)\b|not to be confused with\b"
    r"|(?:if|should) (?:we|you) (?:went on|continued|kept going)\b|you can also see\b"
    r"|(?:a|the|one) (?:common|frequent|typical) (?:mistake|error|pitfall|trap) is\b"
)
_COURTESY = (
    r"i hope\b|hope (?:this|that|it)\b|let me know\b|please let\b|feel free\b|is there (?:anything|something)\b"
    r"|do you have (?:any |other |more |further )*questions?\b|if you(?:['’]d| would) like\b|would you like\b"
    r"|do you (?:want|need)\b|if you have (?:any|other|more|further)\b"
)
_REMARK = re.compile(rf"{_FIRST}(?:(?P<check>{_CHECK})|(?P<aside>{_ASIDE})|(?P<courtesy>{_COURTESY}))", re.I)
_BRACKETED = re.compile(r"\s*\(\s*(?P<inner>[A-Z][^()]*(?:\([^()]*\)[^()]*)*)\)[.\s]*")
_TICKED = re.compile(r"\s*[✓✔☑✅]\ufe0f?\s*\S[^\n]*")
_CONFIRMS = re.compile(
    r"\b(?:(?:so|thus|hence|therefore),? )?(?:(?:it|this|that|which|everything|both)(?:['’]s|\s+(?:is|are"
    r"|agrees?|matches|holds"
    r"|works|fits|checks?))\s*(?:indeed |all )?(?:correct|right|fine|true|as (?:expected|required)|out|consistent)?"
    r"|correct|right|confirmed|ok|okay|as required)\s*(?=[\s.!✓✔☑✅*)]*$)",
    re.IGNORECASE,
)
_SAYS_MORE = re.compile(  # a remark with such words may be the answer itself, or take it back
    r"\b(?:so|thus|hence|therefore|consequently|answer|however|but|wait|actually|instead|correct(?:ed|ion|ly)?|must|should|not|no"
    r"|wrong|mistaken|subtract\w*|remain\w*|left|ask(?:s|ed)?|wanted|required|contradict\w*|finally|result|rather|only|need\w*"
    r"|includ\w*|account\w*|forgot\w*|overlook\w*|miss\w*|exclud\w*|except|impossible|fails?|violat\w*|boxed|option|choice)\b"
    r"|n['’]t\b|\?|\\boxed|因此|所以|故|答|应|不|错",
    re.IGNORECASE,
)
_SENTENCE_START = re.compile(r"(?<=[.!?。])[*_$)\]✓✔]{0,3}\s+(?=[A-Z*(_✓✔☑✅>])|\n")
_ENDS = re.compile(r"[.!?。:：)\]$*|✓✔✗✘]\s*\Z|\\[)\]]\s*\Z|\d\s*\Z")
_RULE = re.compile(r"\s*(?:[-*_=]{3,}|</s>|<\|[a-z_]+\|>)\s*\Z")  # a ruler, the token that ends a text


def without_remarks(text: str) -> str:
    """The text up to the remarks that it ends with.

    >>> without_remarks("So a + b = 13. Check: 9 + 4 = 13.")
    'So a + b = 13.'
    >>> without_remarks("So it is 13. For comparison, last year it was 12, so the answer is 1.")[-16:]
    'the answer is 1.'
    """
    for _ in range(REMARKS):
        tail = text[-TAIL_CHARACTERS:]
        ruled = _RULE.search(tail)
        if ruled is not None:
            text = text[: len(text) - len(tail) + ruled.start()]
            continue
        cut = _last_remark(tail.rstrip())
        if cut <= 0 or not text[: len(text) - len(tail) + cut].strip():
            break
        text = text[: len(text) - len(tail) + cut].rstrip()
    return text


def _last_remark(text: str) -> int:
    """Where the remark begins that ends a text: a sentence, or a line with all of its sentences; 0 if there is none."""
    line = text.rfind("\n") + 1
    starts = [match.end() for match in _SENTENCE_START.finditer(text, max(line - 1, 0))]
    for start in sorted({line, *starts}):
        if start and is_remark(text[start:]) and _ENDS.search(text[:start]):
            return start
    return 0


def is_remark(said: str) -> bool:
    """Whether a sentence or line is plainly only a remark.

    >>> [is_remark(said) for said in ("Check: 2 + 3 = 5 ✓", "So it is 5.", "Check: so x = 5")]
    [True, False, False]
    """
    bracketed = _BRACKETED.fullmatch(said)
    marked = _REMARK.match(said)
    if marked is None and (bracketed is None or len(said.split()) < 4) and _TICKED.fullmatch(said) is None:
        return False
    if marked is not None and marked["courtesy"]:
        return re.search(r"\d|\banswer (?:is|was)\b|\\boxed", said) is None
    rest = said[marked.end() :] if marked is not None else said
    return _SAYS_MORE.search(_CONFIRMS.sub(" ", rest)) is None
