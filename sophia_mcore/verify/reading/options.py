"""An option that the last sentence states by its text alone: "So it must be 12 N", "This makes the Baroque the best".

The options are known here, so that a sentence may be worded freely: what it states must be one option's text, no other
option may be named in it, and nothing in it may doubt, compare or deny.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sophia_mcore.verify.comparing.algebra import evaluate
from sophia_mcore.verify.comparing.choices import option_index, undecided
from sophia_mcore.verify.reading.statements import SENTENCE_CHARACTERS, is_of_another
from sophia_mcore.verify.reading.values import value_of
from sophia_mcore.verify.rules import tables
from sophia_mcore.verify.text.amounts import OF_ANOTHER, number_in_sentence
from sophia_mcore.verify.text.clauses import CLAUSE_END, SENTENCE_END, states
from sophia_mcore.verify.text.normalize import clean, plain_text
from sophia_mcore.verify.text.rates import rate_of

_CHATTER = re.compile(r"(?:I hope|Hope|Let me know|Please let|Feel free|Is there anything)\b", re.IGNORECASE)
DOUBT = re.compile(
    r"\b(?:could|might|may|maybe|perhaps|possibly|probably|would|unsure|between|if|whether|unless|or|cannot|unclear|not|nor"
    r"|neither|no|never|none|nothing|wrong|unlike|except|than|false|incorrect|close|near|far|nearly|almost|similar|but|however"
    r"|although|though|tempting|some|they|seems?|looks?|appears?|like|mistakes?|mistaken\w*|errors?|traps?|pitfalls?|careless"
    r"|distractors?|exclud\w+|eliminat\w+|reject\w+|discard\w+|ignor\w+|forg\w+|worst|opposite|contrary|instead|other|another"
    r"|first|second|third|initial\w*|before|after|until|previous\w*|next|earlier|later|former\w*|half|twice|double|triple"
    r"|hardly|barely|claims?|claimed|says?|said|thinks?|thought|believes?|believed|guess\w*|students?|people|suppos\w+|assum\w+"
    r"|let|extra|additional|remaining|least|most(?= \d)|more(?! likely)|less|fewer|under|over|above|below"
    r"|beyond|within|without|rather|versus|vs|once|when"
    r"|while|whereas|despite|as opposed|rules? out|ruled out|leaves out|left out|stops?|stopped|lacks?|misses"
    r"|(?<!the )missing|only part"
    r"|increased by|decreased by|differs?|different)\b|n['’]t\b|\?",
    re.IGNORECASE,
)
_LEAD = (
    r"(?:(?:so|thus|hence|therefore|consequently|overall|accordingly|all in all|in conclusion|in short|as a result"
    r"|that is why|(?:this|that|it)(?: \w+)? (?:shows|means|implies|tells us|indicates) that)[,\s]+)*"
)
_VERB = re.compile(
    r"(?:\b(?:must be|has to be|have to be|should (?:be|charge|pay|use|choose|apply|take)|will be|is|are"
    r"|equals?|becomes?"
    r"|belongs to|points to|illustrates?|depicts?|shows?|represents?|demonstrates?|describes?|corresponds to"
    r"|measures?|means"
    r"|(?:I|[Ww]e) (?:(?:can )?(?:identify|classify|recogni[sz]e) [^,.;]{1,40}? as|call (?:it|this))"
    r"|comes (?:out )?(?:to|at)|works out (?:to|at)|(?:typical|characteristic) of|classified as|looking at"
    r"|[Tt](?:hat|his) leaves(?: us with| only)?"
    r"|ends? up with|ha(?:s|ve)(?= an? )"
    r"|can only be|fits?|displays?|known as|makes up|(?:would |['’]d |am |['’]m )?go(?:ing)? with|there (?:is|are)"
    r"|(?:accelerates?|moves?|travels?|flows?|runs?) at|at an? [a-z]+ of"
    r"|(?:deposited|built|written|painted|composed) in(?: the)?|(?:[Tt]hat|[Tt]his|[Ii]t) is shown in"
    r"|(?:exerts|feels|experiences|has|leads to|results in) an? [a-z]+ of|turns out to be|(?:we|you) (?:use"
    r"|apply|choose|pick"
    r"|select|need|get|obtain|find)|matches)\b|=)"
    r"\s*(?:exactly |most likely |about |approximately |clearly |therefore |thus |indeed |equal to |called "
    r"|that of )*(?=\S)"
)
_REASON = re.compile(r"(?<=\w),?\s+(?:because|since)\s.*$")
_LOOSE = re.compile(r"belongs|points|typical|characteristic|classified|fits?|describes?|represents?|depicts?")
_SO = re.compile(r"[,;]\s+(?:and\s+)?(?:so|hence|thus|therefore|which (?:means|shows) that)\s+")
_BEHIND = re.compile(  # what only describes it further: ", which causes ...", "; it looks like an early one"
    r",\s+(?:which|as in|where|who|with)\s|;\s+(?:it|this)\s+(?:is|looks like)\s+an?\s", re.IGNORECASE
)
_ENDS_IN_VERB = re.compile(rf"{_LEAD}(?:it|this|that|the(?: [a-z]+){{1,2}}) (?P<answer>[a-z]+s)", re.IGNORECASE)
_PREMISED = re.compile(
    r"\b(?:if|unless|whether|would|could|might|suppos\w+|assum\w+|says?|said|thinks?|claims?|seems?|looks?)\b|\?",
    re.IGNORECASE,
)
_SHARE_OF = re.compile(r"(?<=\d)\$? of the [a-z]+(?: [a-z]+)?$")
_I_SAY = re.compile(
    r"^(?:I(?:['’]d| would) say(?: that)?|[Ii]n other words),?\s+"
    r"|(?<=\bI)(?:['’]d| would)(?= (?:identify|classify|call)\b)"
)
_TAIL = re.compile(
    r"\s+(?:here|in all|in total|altogether|overall|as the (?:best|most|correct|right|only)(?: [\w-]+){1,3})$",
    re.IGNORECASE,
)
_BEST = (
    r"(?:best|correct|right|most (?:likely|fitting|suitable|appropriate|plausible)|closest|true|only possible|final)"
)
_SUBJECT = re.compile(
    rf"{_LEAD}(?:the\s+)?(?P<answer>\S.{{0,80}}?)\s+(?:is (?:indeed |clearly |therefore "
    rf"|thus )?(?:the |our |my )?(?:{_BEST}(?: [a-z]+)?"
    r"|answer|one (?:that|which) (?:applies|fits|matches|works)(?: (?:here|best))?|one (?:we want|asked for"
    r"|we are looking for))"
    r"|it is|fits best|matches best|applies here)",
    re.IGNORECASE,
)
_MAKES = re.compile(rf"\bmakes\s+(?:the\s+)?(?P<answer>\S.{{0,60}}?)\s+the\s+{_BEST}\s+[a-z]+$", re.IGNORECASE)
_BESIDE = re.compile(
    r"\b(?:matches|corresponds to|(?:this|that|it) is|go with|choose|pick|select|is)\s+(?:option\s+|choice\s+"
    r"|answer choice\s+)?"
    r"(?P<answer>[(\[]?[A-J][)\]]?(?:,|:|\s\(|\s[–—-])\s*\S.*?)\)?$"
)
_UNITS = re.compile(r"\^\s*\{?\\circ\}?|°|(?<=[\d.])\s?[A-Za-zµΩ]+(?:/[A-Za-z]+)?[²³]?(?:\^\d)?(?![A-Za-z])")
_LEFT_OF_EQUAL = re.compile(r"(?:[\d\s.+*/×·()−°${}^-]|\\circ|\\cdot|\\times)+=")  # what a value is worked out of
_NUMBERS_ONLY = re.compile(r"(?:^|(?<=[:,;=$]\s)|(?<=[=$])|(?<=\bis\s))[\d\s.+*/×·()−-]+$")
_AMOUNT = re.compile(r"\\?[$€£]?\d[\d,.]*(?:\s?(?:\\?%|°|[A-Za-zΩµ²³/^]{1,8}))?")


def _last_sentence(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if lines and _CHATTER.match(lines[-1]):
        lines.pop()
    sentence = SENTENCE_END.split(lines[-1])[-1] if lines else ""
    return _I_SAY.sub("", sentence.replace("**", "").rstrip(" .!*"))


def _candidates(sentence: str) -> Iterator[str]:
    yield re.sub(f"^{_LEAD}", "", sentence, flags=re.IGNORECASE)
    for pattern in (_MAKES, _BESIDE):
        if found := pattern.search(sentence):
            yield found["answer"]
    without_reason = _REASON.sub("", sentence)
    for clause in (without_reason, without_reason.rpartition(", ")[2]):
        if found := _SUBJECT.fullmatch(clause):
            yield found["answer"]
    yield number_in_sentence(sentence, frozenset(tables().units))
    if found := _ENDS_IN_VERB.fullmatch(sentence):
        yield found["answer"]
    for end in dict.fromkeys((_TAIL.sub("", sentence), _SHARE_OF.sub("", _BEHIND.split(sentence)[0]))):
        yield from _behind_verbs(end)


def _behind_verbs(end: str) -> Iterator[str]:
    """What stands behind each verb of a sentence that states something, the last first."""
    for verb in reversed(list(_VERB.finditer(end))):
        before = end[: verb.end()]
        behind = end[verb.end() :]
        if _LOOSE.match(verb[0]) and " of " in CLAUSE_END.split(before)[-1].removesuffix(verb[0]):
            continue  # "the teacher of the painter belongs to ..."
        of_another = OF_ANOTHER.search(before) or is_of_another(end[: verb.start()])
        if states(before) and (not of_another or (verb[0].startswith("=") and _worked(end[: verb.start()], behind))):
            yield behind.strip("$ ")


def _worked(left: str, value: str) -> bool:
    """Whether a sum or product of amounts equals the value behind it: "7 N + 5 N = 12 N"."""
    sides = [_NUMBERS_ONLY.search(_UNITS.sub("", side).strip("$ ")) for side in (left, value)]
    numbers = [evaluate(clean(side[0])) if side else None for side in sides]
    return (
        all(one is not None and one.exact is not None for one in numbers)
        and len({one.exact for one in numbers if one}) == 1
    )


def stated_option(text: str, options: tuple[str, ...]) -> str:
    """What the last sentence states, where that is one option's text; "" where in doubt.

    >>> stated_option("So it must be 12 N.", ("9 N", "12 N")), stated_option("It is not 12 N.", ("9 N", "12 N"))
    ('12 N', '')
    >>> stated_option("This makes the Baroque period the best match.", ("Gothic", "Baroque"))
    'Baroque period'
    """
    whole = _last_sentence(text)
    sentence = _SO.split(whole)[-1]
    if not sentence or len(sentence) > SENTENCE_CHARACTERS or not any(map(_readable, options)):
        return ""
    for candidate in _candidates(sentence):
        if not _readable(candidate) or not _is_option(candidate, options):
            continue
        described = _BEHIND.split(sentence)
        stated = sentence if candidate not in described[0] or _TURNS.search(sentence) else described[0]
        premise = whole.removesuffix(sentence)
        doubted = _PREMISED.search(premise) if premise and _SO.search(whole) else DOUBT.search(premise)
        if (
            doubted
            or DOUBT.search(_LIKE_THIS.sub(" ", stated.replace(candidate, " ")))
            or _named(sentence.replace(candidate, " "), options)
        ):
            return ""
        return candidate
    return ""


_LIKE_THIS = re.compile(  # "a painting like this one is Gothic"
    r"(?<=\w)\s+like (?:this|these)(?: ones?)?(?=\s+(?:is|are|must be)\b)", re.IGNORECASE
)
_TURNS = re.compile(
    r"\b(?:but|however|although|though|not|also|could|might|may|or|would|other|another)\b|n['’]t\b|\?", re.IGNORECASE
)


def _readable(text: str) -> bool:
    """Whether a text is more than the letter of an option."""
    return len(plain_text(text)) > 1 or text.isdigit()


def _is_option(candidate: str, options: tuple[str, ...]) -> bool:
    if _AMOUNT.fullmatch(candidate) or _AMOUNT.fullmatch(rate_of(candidate)[0]):
        return True  # by its value
    value = value_of(candidate) if "/" in candidate else None
    if value is not None and [value_of(option) for option in options].count(value) == 1:
        return True
    text = clean(candidate)
    return len(plain_text(text)) > 1 and not undecided(text, options) and option_index(text, options) is not None


def names_option(answer: str, options: tuple[str, ...]) -> bool:
    """Whether an answer as found names one of the options."""
    text = clean(answer)
    return bool(text) and not undecided(text, options) and option_index(text, options) is not None


def _named(rest: str, options: tuple[str, ...]) -> bool:
    """Whether the rest of a sentence names an option."""
    plain = plain_text(clean(_LEFT_OF_EQUAL.sub("=", rest)))
    texts = [plain_text(clean(option)) for option in options]
    return any(_readable(text) and re.search(rf"(?<![\w.]){re.escape(text)}(?!\w)", plain) for text in texts)
