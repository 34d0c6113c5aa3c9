"""A word that the last sentence gives to what is asked about: "It is an example of chiaroscuro", "is known as X"."""

from __future__ import annotations

import re

from sophia_mcore.verify.text.clauses import SENTENCE_END

_CHARACTERS = 300  # a longer sentence is not read
_NAMED = r"(?:known as|called|termed|referred to as|named(?!\s+after\b))"
_OF_ANOTHER = re.compile(  # words of a subject that is not what is asked about, or of a sentence that denies
    r"\b(?:not|no|nor|never|neither|hardly|rarely|wrong\w*|incorrect\w*|mistaken\w*|false\w*|once|former\w*|original\w*"
    r"|initial\w*|old|older|earlier|later|previous\w*|next|before|after|first|second|third|last|latter|left|other|another"
    r"|one|some|many|people|students?|what|which|who|whose|whom|whatever|its|their|his|her|if|when|whether|unless|although"
    r"|though|but|or|than|unlike|like|without|lack\w*|absence|opposite|contrary|contrast to|reaction|successors?"
    r"|predecessors?|precursors?|inventors?|founders?|teachers?|rivals?|alternatives?|counterparts?|mixture|rest"
    r"|bad|poor|would|could|might|may|must|should|seems?|looks?)\b|n['’]t\b|\?|(?<=\w\s)that\b",
    re.IGNORECASE,
)
_KNOWN = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?"
    r"(?P<said>(?P<subject>it|this|that|(?:the|this|that|these|those)\s[^,.;:?!()]{1,100}?)(?:['’]s|\s+(?:is|are))\s+"
    r"(?:(?:commonly|usually|generally|best)\s+)?"
    rf"(?:(?:(?:an?|the)\s+(?:[a-z-]+\s+){{1,3}}?)?{_NAMED}"
    r"|an?\s+(?:(?:excellent|classic|typical|clear|good|early|famous)\s+)?(?:example|instance)\s+of))\s+"
    r"(?:(?:an?|the)\s+)?[\"“'‘]?(?P<answer>[^\W\d_](?:[\w '’-]{0,60}\w)?)[\"”'’]?",
    re.IGNORECASE,
)


def known_word(text: str) -> list[tuple[int, str]]:
    """The word that the last sentence gives to what is asked about, where it is one main clause without a doubt.

    >>> known_word("The strong contrast is a technique known as **chiaroscuro**."), known_word("Its lack is called X.")
    ([(46, 'chiaroscuro')], [])
    """
    text = text.rstrip()
    sentence = SENTENCE_END.split(text[text.rfind("\n") + 1 :])[-1]
    found = _KNOWN.fullmatch(sentence.replace("**", "").rstrip(" .!")) if len(sentence) <= _CHARACTERS else None
    if found is None or _OF_ANOTHER.search(found["said"]):
        return []
    return [(text.rfind(found["answer"].split()[0]), found["answer"])]
