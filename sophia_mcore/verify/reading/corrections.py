r"""Answers that are taken back: "The answer is 7. Wait, it is 9", "Yes. Actually no". The last word counts.

What is taken back without another answer is no answer: where in doubt, nothing is rewarded.
"""

from __future__ import annotations

import re

TAIL_CHARACTERS = 4_000  # corrections are looked for in so much of the end

_START = (
    r"(?:[.!?…;:,—–(\n。！？，；：-])[\s*_\"')$]{0,6}"
    r"(?:(?:but|oh|and|so|ah|well|um|hm{1,5}|uh|no)\b[\s,.…—-]{0,5}){0,4}"
)
_DENIED = (
    r"(?:that|this|it|which|the above)(?:['’]s|\s+(?:is|was|seems|looks))\s+(?:\w+\s+)?"
    r"(?:wrong|incorrect|a mistake|an error|not\s+(?:right|correct|it)|false)"
    r"|(?:that|this|it)\s+(?:isn['’]t|wasn['’]t)\s+(?:right|correct)"
    r"|scratch that|strike that|forget that|disregard that|never\s?mind|i (?:take|must take) (?:that|it|this) back"
    r"|i (?:was|am) (?:wrong|mistaken)|i(?:['’]m)? (?:stand corrected|mistaken)"
    r"|(?:i(?:['’]ve| have)? (?:made|see) |there (?:is|was) |that was )(?:a|an|my)\s+(?:\w+\s+)?(?:mistake|error)"
    r"|i (?:misread|miscounted|miscalculated|misjudged|forgot|overlooked|mixed)|my (?:mistake|bad|apologies|error)"
    r"|(?:this|that|it|which) (?:contradicts|violates|(?:cannot|can['’]t) be(?! (?:simplified|reduced|determined))"
    r"|(?:does not|doesn['’]t) (?:fit|satisfy|match|work|make sense|hold))"
    r"|(?:but )?(?:the |none of the )?options (?:do not|don['’]t) (?:contain|include|have|list|show)"
    r"|(?:it|this|that|which) is(?: not|n['’]t) (?:an option|among|one of|possible|allowed|valid|listed)"
    r"|(?:(?:but|however),? )?(?:the |this )?(?:question|problem|task|exercise)"
    r" (?:asks|is asking|asked|wants|requires|requests)"
    r"|(?:but|however|though|yet),? (?:this|that|it|which|i|we)\s+(?:\w+ly\s+|also\s+|still\s+)?"
    r"(?:(?:count|includ|ignor|neglect|assum|omit|exclud|overcount|double[- ]count)(?:t?ed|e?s?)|forg[eo]ts?"
    r"|miss(?:es|ed)|leaves? out|left out|needs?|must|should|ha(?:s|ve) to|(?:gives?|covers?) only|use[sd]? the wrong)"
    r"|我?(?:算错了?|看错了?|错了)|有误|不对"
)
_AGAIN = r"(?:correct|change|double[- ]check|re-?(?:check|consider|calculate|do|count|think|read))"
_DOUBTED = (
    r"h+m+|wait(?!\s+(?:for|until|time))|hold on|one moment|actually|sorry(?!\s+for)|apologies|oops"
    r"|correction\s*(?=[:,.—-])|(?:small|a|one|minor) correction|corrected|i (?:mean|meant)(?!\s+that\b)"
    r"|or rather|rather(?!\s+than)|instead(?!\s+of)|on reflection"
    r"|on (?:second|further|closer) (?:thoughts?|look|inspection|reflection|consideration)"
    rf"|(?:let me|let['’]s|i (?:should|need to|must)) {_AGAIN}|looking (?:again|closer)|thinking again"
    r"|(?:however,? )?(?:in fact,? )?the (?:correct|actual|right|true|real) "
    r"(?:answer|value|result|number|total|sum|count|amount|area|length|angle)\s+"
    r"(?:is|was|should be|must be|turns out to be|would be)"
    r"(?!\s+(?:about|approx|roughly|close|given|found|obtained|calculated|computed|known))"
    r"|等等|等一下|更正|抱歉|不好意思|其实|哦不"
)
_NO = r"no(?=\s*[,;:.!—–-]|\s+wait|\s+it\b|\s+that\b|\s+the\b|\s+actually)|不(?=[，。；：])"
_MARK = re.compile(rf"{_START}(?P<mark>(?P<denied>{_DENIED})|(?P<doubted>{_DOUBTED})|(?P<no>{_NO}))(?![A-Za-z])", re.I)
_LEAD = re.compile(
    r"(?:[\s,.:;!…*_—–-]|(?:wait|no|actually|sorry|so|then|but|and|hence|thus|therefore|indeed|that"
    r"|i (?:think|believe|mean|meant))\b)*"
    r"(?:(?:(?:the\s+)?(?:final\s+|correct\s+|right\s+|real\s+)?(?:answer|result|value|option|choice|one)|it|that|this|he|she)"
    r"(?:['’]s|\s+(?:is|was|are|should be|should have been|must be|has to be|would be|equals|becomes))\s*"
    r"|(?:should|must) be\s+|(?:make|change) (?:that|it)(?: to)?\s+|应该?[是为选]|应为|改为|是|选)?",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"\b(?:yes|correct|right|confirms?|confirmed|checks? out|holds|indeed|fine|consistent|same)\b|没错|正确",
    re.IGNORECASE,
)
_DOUBT_LEFT = re.compile(r"\b(?:not|wrong|incorrect|but|if|only|no|except|unless)\b|n['’]t\b|\?|不|错", re.IGNORECASE)
_ONLY_CONFIRMED = re.compile(
    r"[\s,.:!*]*(?:(?:yes|yep|ok|okay|no)[\s,.!]*)?"
    r"(?:(?:it|that|this|the answer|everything)(?:['’]s|\s+(?:is|looks?|seems))?\s+)?"
    r"(?:indeed\s+|still\s+)?(?:correct|right|fine|good|ok|okay|confirmed|consistent|checks? out|holds)[\s.!]*",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def taken_back(text: str, position: int, yes_no: bool) -> str | None:
    """What follows the last words behind ``position`` that take an answer back; None if there are none.

    ``position`` is where the answer begins. ``yes_no``: "no" may be an answer itself, and is no such word.

    >>> taken_back("It is 7. Wait, that's wrong: 9", 6, False), taken_back("It is 7, which is odd.", 6, False)
    (': 9', None)
    """
    denied = None if yes_no else _DENIED_BEHIND.match(text, position)
    last = None
    for match in _MARK.finditer(text, max(position + 1, len(text) - TAIL_CHARACTERS)):
        if not (yes_no and (match["no"] or (match["denied"] and _OF_IT.match(match["denied"])))):
            last = match
    if last is None:
        return text[denied.end() :] if denied else None
    rest = text[last.end("mark") :]
    if not rest.strip(" \n.,;:!?)*…") and last["doubted"] is not None and last["doubted"].lower() in _HARMLESS:
        return None
    return rest


_DENIED_BEHIND = re.compile(  # right behind a box
    r"\}[\s$*)\]]*\s(?:is|was|must be|seems)\s+(?:\w+ly\s+)?(?:wrong|incorrect|false|impossible"
    r"|too (?:large|small|big|high|low|long|short|much|many)|not (?:possible|allowed|valid|an option|among)"
    r"|a mistake|not (?:right|correct|it|the answer)|(?:only |just )?(?:the|a|an)\b[^.\n]*,\s*(?:whereas|while|but)\b)"
)
_OF_IT = re.compile(r"(?:that|this|it|which|the)\b", re.IGNORECASE)  # "No, it is wrong" takes nothing back
_HARMLESS = ("actually", "rather", "sorry", "instead", "其实")  # at the very end they take nothing back


def confirms(rest: str, answer: str) -> bool:
    """Whether what follows "wait" or the like only says that ``answer`` is right after all.

    >>> confirms(" let me check: 3 + 4 = 7. Yes, correct.", "7"), confirms(", 8 is correct", "7")
    (True, False)
    """
    if _ONLY_CONFIRMED.fullmatch(rest):
        return True
    numbers = _NUMBER.findall(rest)
    return (
        bool(numbers)
        and numbers[-1:] == _NUMBER.findall(answer)[-1:]
        and _CONFIRMED.search(rest) is not None
        and _DOUBT_LEFT.search(rest) is None
    )


def said_instead(rest: str) -> str:
    """The first line of what follows without the words that lead to the new answer; "" if none is left.

    >>> said_instead(", it should be 9."), said_instead(" no")
    ('9', 'no')
    """
    line = rest.strip(" \n,.:;!…*—–-)，。：；！").partition("\n")[0]
    lead = _LEAD.match(line)
    left = line[lead.end() :].strip() if lead else line
    return left or line
