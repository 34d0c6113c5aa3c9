"""Which clause of a sentence a number stands in: only a main clause that states something of its own gives an answer.

"The area is 7" states 7. "The area grows when the side is 7", "The side is 7, so the area grows", "The question says
that the side is 7", "Take x = 7" do not, whatever the answer is.
"""

from __future__ import annotations

import re

_SUBORDINATE = re.compile(  # words that make a clause depend on another
    r"\b(?:when|whenever|where|wherever|while|whereas|once|because|provided|as long as|as soon as|though|although"
    r"|till|until|without|despite|such that|so that|for (?:all|any|every|which)|except|unless|if|given|during"
    r"|by the time)\b|\b(?:of|in|at|for|from) (?:which|whom)\b",
    re.IGNORECASE,
)
_VERB = (
    r"(?:is|are|was|were|has|have|had|had to \w+|equals?|measures?|contains?|costs?|takes?|weighs?|gives?|gave|holds?"
    r"|bought|needs?)"
)
# "the angle that measures 7", "a square whose side is 7"; "the number that solves it is 7" states
_RELATIVE = re.compile(
    rf"(?<!\w)\w+,?\s+(?:which|that|who)\s+(?:(?:we|he|she|it|they|also|only)\s+)?{_VERB}\W*$"
    rf"|\bwhose\s+(?:\w+\s+){{1,3}}{_VERB}\W*$",
    re.IGNORECASE,
)
_RESULT = re.compile(r",\s+which\s+(?:gives|makes|leaves|is|equals)\W*$", re.IGNORECASE)  # "we add them, which gives 7"
_REPEATED = re.compile(  # what is only quoted, supposed or put aside
    r"\b(?:question|problem|exercise|task) (?:says?|states?|gives?|tells|asks|mentions|is|has|wants)\b|\baccording to\b"
    r"(?! the (?:bar |line |pie )?(?:chart|graph|plot|table|figure|diagram|image|picture|map|data)\b)"
    r"|\b(?:told|given|known|know|knew|says|said|stated|claim(?:s|ed)?|thinks?|believes?|assumed?|assumption|suppos\w+"
    r"|excluded|forbidden|(?:mistakes?|traps?|distractor) (?:is|was|are)"
    r"|estimated?|guess|original|formerly|avoid|contradict\w*|uncertainty"
    r"|(?:upper|lower) (?:limit|bound)|attempts?|tempting)\b"
    r"|\b(?:figure|diagram|graph|table|picture|chart|image|text|statement) (?:shows?|says|states?|tells us) that\b"
    r"|\b(?:answer|solution|problem|proof|question|method|result)\s+(?:has(?! to be)|have(?! to be)|contains?"
    r"|takes?|took|needs?|requires?"
    r"|is worth|consists? of)\b|\bof the (?:answer|result|solution)\b|\b(?:answer|result|solution)['’]s\b"
    r"|\bI (?:needed|tried|checked|used|took)\b|\bdoes(?: not|n['’]t)\b",
    re.IGNORECASE,
)
_GOES_ON = re.compile(  # another clause behind: the number was a premise, or one of two statements
    r"\s*[,;]\s+(?:and\s+)?(?:so|hence|thus|therefore|then|but|while|whereas|its?|the|this|that|we|he|she|they|there|and)\b"
    r"|^[^,;.]*?\b(?:and|so|but|while|whereas)\s+(?:is|are|was|has|have|it|its|the|we|he|she|they|there|this|that|then)\b",
    re.IGNORECASE,
)
_SECOND = re.compile(  # "x is even and y is 7": one statement of two
    r"\b(?:is|are|was|has|have)\b[^,;.]*\band\s+(?:\w+\s+){1,4}(?:is|are|was|equals|has)\W*$", re.IGNORECASE
)
_CONCLUDES = re.compile(r"\s*(?:and\s+)?(?:so|hence|thus|therefore|then)\b", re.IGNORECASE)
SENTENCE_END = re.compile(
    r"(?<!i\.e\.)(?<!e\.g\.)(?<!vs\.)(?<=[.!?。])\s+(?=[A-Z*$\\])"
)  # behind maths and emphasis too
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z$\\])")
CLAUSE_END = re.compile(r"[,;:.]\s")
_PREMISE = re.compile(  # right before the name of an equation
    r"\b(?:at|for|when|where|with|since|if|let|take|taking|try|trying|test|testing|put|putting|set|setting|assum(?:e|ing)"
    r"|suppos(?:e|ing)|here|in|from|by|unless|except|once|until|while|as|after|before|because|choos(?:e|ing)|pick(?:ing)?"
    r"|consider(?:ing)?|us(?:e|ing)|given|than|not|imply|to|on)\s*[:,]?\s*[*_$(\\]*$",
    re.IGNORECASE,
)


def sentence_of(before: str) -> str:
    """What stands in the last sentence of ``before``."""
    return _SENTENCE_END.split(before)[-1]


def states(before: str, behind: str = "") -> bool:
    """Whether a sentence states the number between ``before`` and ``behind``.

    >>> states("So the speed is "), states("It triples when the force is "), states("The side is ", ", so it grows")
    (True, False, False)
    """
    *earlier, clause = CLAUSE_END.split(sentence_of(before))
    if earlier and not re.search(r"\d", earlier[-1]) and not _CONCLUDES.match(clause):
        source = f"{earlier[-1]}, {clause}"  # "according to the question, the side is 7"
    else:
        source = clause
    results = _RESULT.search(before) is not None and not re.search(r"\w", behind)
    return not (
        _SUBORDINATE.search(clause)
        or (_RELATIVE.search(before) and not results)
        or _SECOND.search(clause)
        or _REPEATED.search(source)
        or _GOES_ON.match(behind)
    )


_TAKEN = re.compile(r"\b(?:since|as|because)\b[^.;]*,\s+we (?:take|choose)\s*[:,]?\s*[*_$(\\]*$", re.IGNORECASE)


def assigns(before: str) -> bool:
    """Whether an equation behind ``before`` is only chosen or a condition: "Take ", "The maximum occurs at ".

    >>> assigns("Take "), assigns("the graph has a hole at $"), assigns("So we get ")
    (True, True, False)
    """
    return _PREMISE.search(before) is not None and _TAKEN.search(before) is None


_NAME = r"\$?\\?[A-Za-z](?:_\{?\w+\}?)?"
_VALUE = r"[^\s=,;$](?:[^=,;$]{0,30}?[^\s=,;$.])?\$?"
_VALUES = re.compile(
    rf"(?:^|\b(?:so|thus|hence|therefore|then|get|have|find|obtain|is|are|gives?|that)[,:]?\s+|:\s+)"
    rf"(?P<answer>{_NAME}\s*=\s*{_VALUE}(?:\s*(?:,\s*and|,\s*or|,|;|and|or)\s+{_NAME}\s*=\s*{_VALUE})+)[\s.*]*$",
    re.IGNORECASE,
)


def named_values(line: str) -> str:
    """Several named values that a line ends with, together, since none of them is all that it says; or "".

    >>> named_values("Hence x = 5 and y = -2."), named_values("Since x = 5, we get y = -2.")
    ('x = 5 and y = -2', '')
    """
    found = _VALUES.search(line)
    together = found["answer"].replace("$", "") if found else ""
    return _last_of_one_name(together) if together else ""


def _last_of_one_name(together: str) -> str:
    r"""The last value of one name, where a formula with other names stands before it: "A = \pi r^2, A = 25\pi"."""
    parts = [part.split("=") for part in re.split(r"\s*[,;]\s*", together)]
    names, formulas = [part[0].strip() for part in parts], [re.sub(r"\\[a-z]+", "", part[-1]) for part in parts]
    one = len(set(names)) == 1 and not re.search(r"[A-Za-z]", formulas[-1])
    worked = one and all(re.search(r"[A-Za-z]", formula) and " " not in formula.strip() for formula in formulas[:-1])
    return "=".join(parts[-1]) if worked else together
