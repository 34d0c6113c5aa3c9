"""Answers that nothing announces: the last line, the end of the last sentence, the one number in it."""

from __future__ import annotations

import re
from itertools import islice

from sophia_mcore.verify.reading.statements import (
    PREDICATE,
    equation_of_another,
    is_of_another,
    last_count,
    without_remark,
    worked_value,
)
from sophia_mcore.verify.rules import tables
from sophia_mcore.verify.text.amounts import OF_ANOTHER, SUPPOSING, bold_amount, number_in_sentence
from sophia_mcore.verify.text.chosen import not_chosen
from sophia_mcore.verify.text.clauses import assigns, named_values, sentence_of, states

LINE_CHARACTERS = 200  # a line of at most this length may itself be the answer


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2].strip()


_SENTENCE = re.compile(r"(?:[^\W\d_]{2,}[\s,]+){3}", re.IGNORECASE)
_CONCLUDES = re.compile(r"(?:so|thus|hence|therefore|then)\b[\s,]|因此|所以", re.IGNORECASE)
_WITH = re.compile(r"(?:with|since|using|from|as)\b[^=]*=[^=]*=", re.IGNORECASE)  # "With AB = 6 we find AB + 4 = 10"
_NOTHING = re.compile(r"(?:(?:the|final)\s+)*answer(?:\s+is)?\s*[:：]?|答案是?[:：]?", re.IGNORECASE)
_YES_NO_START = re.compile(r"(?:yes|no|true|false)\b", re.IGNORECASE)


def short(text: str) -> list[tuple[int, str]]:
    """A response of one line that is an answer rather than a sentence."""
    line = text.strip()
    if "\n" in line or len(line) > LINE_CHARACTERS or "\\boxed" in line:
        return []
    if _CONCLUDES.match(line) or _WITH.match(line) or _NOTHING.fullmatch(line) or _supposes(line):
        return []
    if _YES_NO_START.match(line) is None and _last_clause(line) != line:
        return []  # of several clauses: a conclusion, or else a line
    if _last_formula(line):
        return []  # as above
    several = named_values(line)
    if several:
        return [(line.rfind(several), several)]
    worked = worked_value(line)
    if worked:
        return [(line.rfind("=") + 1, worked)]
    return [(0, line)] if _YES_NO_START.match(line) or not _SENTENCE.search(line) else []


_PLACE = r"(?:\s+the\s+point)?\s+\$?\(|\s+\d{1,2}(?::\d\d|\s?[ap]\.?m\b)"  # a point or a time of day
_CONCLUSION = re.compile(
    rf"(?:\b(?:(?:is|are|was|meets?|intersects?|cross(?:es)?|lies?|sits?|(?:is |are )?located|arrives?|leaves?"
    rf"|departs?|starts?|begins?"
    rf"|ends?)\s+at(?={_PLACE})"
    r"|(?:must|has to|have to|can only|turns? out to) be|stands for|is|are|equals|gives(?: us| me)?|get|was"
    r"|makes|shows|reads|results in|amounts to|comes (?:out )?(?:to|at|as))\b"
    r"|=|≈|\\approx)\s*(?P<answer>[^\s=≈][^=≈]{0,80})$"
)


_CLAUSES = re.compile(r"[.,;]\s")
_DOUBTED = re.compile(
    r"\b(?:not|never|nothing|none|doubt|false|wrong|unlikely|impossible|if|unless|whether|hardly|cannot)\b|n['’]t\b"
    r"|\b(?:student|friend|teacher|neighbou?r|book|he|she|they|people|some)s?(?:\s+\w+)?\s+(?:says?|claims?|thinks?|believes?)\b",
    re.IGNORECASE,
)
_MODAL = re.compile(r"[a-z ]*\bat\s|must|ha(?:s|ve) to|can only|turns? out|stands")
_WOULD = re.compile(r"\b(?:would|could|might|if|unless|when)\b", re.IGNORECASE)
_THEREFORE = re.compile(  # the last of several formulas: "$12+1$ and therefore $13$", "$2x = 14 \\Rightarrow x = 7$"
    r"[,;]?\s+(?:and\s+)?(?:therefore|hence|thus|so|that is|which is"
    r"|i\.e\.),?\s+(?=\$[^$]*\$(?:\s+[a-z]{3,}){0,4}[\s.!*]*$)"
)
_IMPLIES = re.compile(
    r"(?:\$\s*)?(?:\\(?:Rightarrow|implies|Longrightarrow)(?![A-Za-z])|⇒|⟹)(?:\s*\$)?\s*(?=[^=<>]{1,20}=[^=<>]{1,40}$)"
)


_THINK = r"(?:say|think|claim|conclude|assume|believe|guess|argue|answer|suppose)"
_NOT_MEANT = re.compile(
    rf"(?:n['’]t\s+{_THINK}|(?:do|does|did|would|can|could|should) not\s+{_THINK}"
    rf"|(?:false|untrue|not true|not the case|wrong|incorrect|mistaken|tempting|a mistake|an error|doubtful|unlikely"
    rf"|impossible)(?:\s+to\s+{_THINK})?"
    rf"|(?:mistake|error|pitfall|trap|misconception)\s+(?:here\s+)?(?:is|was|would be)(?:\s+(?:to\s+{_THINK}"
    r"|(?:say|think|claim|conclud|assum|believ|guess)ing))?"
    r"|\b(?:some|many|one|people|students?|others?|you|someone|they)\s+(?:\w+\s+)?(?:would|might|may|could)(?:\s+\w+){0,2}"
    r"|\b(?:if|whether|unless|(?<!no )(?<!a )doubt|supposing|assuming|suppose|assume|imagine))(?:\s+that)?\s+$"
    r"|\bif\b[^.!?;\n]*\bwere\b[^.!?;\n]*$|\bif\b[^.!?;\n]*\bthen\s+$|\bhad (?:we|it|the|I|you|he|she"
    r"|they)\b[^.!?;\n]*$"
    r"|\b(?:they|he|she|people|some|students?)\s+(?:say|claim|think)s?(?:\s+that)?\s+$"
    r"|\b(?:friend|neighbou?r|student|teacher|classmate)s?['’]s?\s+$",
    re.IGNORECASE,
)
_BEFORE = 120  # characters before an announcement that may deny it


def not_meant(text: str, start: int) -> bool:
    """Whether what stands before an announcement at ``start`` denies it or only supposes it.

    >>> not_meant("I don't think the answer is 7", 14), not_meant("So the answer is 7", 3)
    (True, False)
    """
    before = text[max(0, start - _BEFORE) : start]
    before = before.removesuffix("the ").removesuffix("The ")
    return _NOT_MEANT.search(before.rpartition("\n")[2]) is not None


def _supposes(line: str) -> bool:
    """Whether a line denies or supposes an answer that it names; one that names it over and over says nothing."""
    found = list(islice(_ANSWER.finditer(line), _REPEATED))
    return len(found) == _REPEATED or any(not_meant(line, match.start()) for match in found)


_ANSWER = re.compile(r"\banswer\b", re.IGNORECASE)
_REPEATED = 50


_LAST_CLAUSE = re.compile(
    r"[,;.]\s+(?:and\s+)?(?:(?:so|thus|hence|therefore)\b,?\s+|we\s+(?:get|obtain|have|find)\s+|(?=(?:the|its)\s))"
    r"|(?<!i\.e)(?<!e\.g)[.;]\s+(?=[A-Z\\$])",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(rf"\b(?:{SUPPOSING}|were|suppos\w+|assum\w+|not)\b|n['’]t\b", re.IGNORECASE)


def _last_clause(line: str) -> str:
    """The last clause of a line where it stands alone: nothing before it in its sentence supposes or denies."""
    last = max(_LAST_CLAUSE.finditer(line), key=re.Match.start, default=None)
    if last is None or _SUPPOSED.search(_SENTENCE_END.split(line[: last.start()])[-1]):
        return line
    return line[last.end() :]


_RELATION = ("=", "≈", "\\")
_LEFT_SIDE = re.compile(r"[^\s=$(\\]*[\s$]*(?:=(?:(?![a-z]{2,}\s)[^=,;])*)*$")  # the name on an equation's left
_LINE_OF = re.compile(  # "the axis is the line x = 7": the name tells it from y = 7
    r"\b(?:line|axis|axes|asymptotes?|plane|directrix|symmetry|equation)\b[^.;,=]*?(?<![A-Za-z])(?P<name>[xyz])[\s$]*$",
    re.IGNORECASE,
)


def _premise(before: str, found: str) -> bool:
    """Whether the number that ends a line is only supposed or a condition: "Take x = 7", "when it is 7"."""
    if found.startswith(_RELATION):
        return assigns(_LEFT_SIDE.sub("", sentence_of(before))) or not states(before)
    verb, _, value = found.partition(" ")
    return re.search(r"\d", value) is not None and not states(f"{before}{verb} ")


_REASON = re.compile(r"(?<=\w),?\s+because\s.*$")
_FORMULA = re.compile(r"[\d$\\-]")
_ONE_LETTER = re.compile(r"[(\[*_]*[A-J][)\]*_.]*(?:$|[,:;]|\s+[–—-])")
_TRUTH = re.compile(r"(?:true|false|correct|incorrect|right|wrong|yes|no)\b", re.IGNORECASE)
_STATEMENT = re.compile(  # what the question asks about
    r"(?:^|[,;:.]\s|\b(?:so|hence|thus|therefore|then|that)\s+)\W*(?:it|this|that|(?:the|this|that)\s+"
    r"(?:given\s+|above\s+|final\s+)?(?:statement|claim|assertion|proposition|answer|sentence)(?:\s+that\s[^,.;]*)?)\s*$",
    re.IGNORECASE,
)
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_IN_A_YEAR = re.compile(  # "was reached in 2014", "was highest in May"
    rf"\W*(?:[a-z]+ed|built|born|made|won|[a-z]{{3,}}est) in \W*(?P<year>\d{{4}}|(?:{_MONTHS}))\W*"
)
_IMPOSSIBLE = re.compile(  # "12, which is impossible"
    r",\s+(?:which|but (?:this|that|it))\s+(?:(?:is|was|would be|seems)\s+(?:clearly |obviously )?(?:not|im\w+"
    r"|wrong|too|false|absurd"
    r"|incorrect|an? (?:contradiction|error|mistake))|contradicts|violates|cannot|does not|fails)\b"
)
_WHICH = re.compile(r"[a-z]\s+(?:that|which|who)\s+$")
_WHAT = re.compile(r"(?<!\bis)(?<!\bare)(?<!['’]s)\s+what\s*$", re.IGNORECASE)  # "it resembles what is called x"
_ADJECTIVE = re.compile(r"[a-z]+\s+")


def _last_verb(piece: str) -> re.Match[str] | None:
    """What stands behind "is" or "=" at the end: "3/10" of "the chance that both are red is 3/10"."""
    found = _CONCLUSION.search(piece)
    later = _CONCLUSION.search(piece, found.start("answer")) if found else None
    if found and later and _WHICH.search(piece, 0, found.start()):
        return later  # "the gas that is released is oxygen"
    if later is None or _FORMULA.match(later["answer"]) is None:
        return found
    return later if _ADJECTIVE.fullmatch(piece, found.start("answer") if found else 0, later.start()) else found


def _last_formula(line: str) -> str:
    r"""The last of several formulas of a line, which follows from those before; "" where one of them is supposed.

    >>> _last_formula("This gives $12+1$ and therefore $13$."), _last_formula(r"$2x = 14 \Rightarrow x = 7$")
    ('$13$.', 'x = 7$')
    """
    for split, needed in ((_IMPLIES, "="), (_THEREFORE, "$")):
        before, behind = split.split(line)[:-1], split.split(line)[-1]
        if before and needed in before[-1] and not (_SUPPOSED.search(line) or _DOUBTED.search(line)):
            return behind if split is _IMPLIES or "=" not in behind else ""
    return ""


def conclusion(text: str) -> list[tuple[int, str]]:
    """What the last line ends with behind "is" or "=", its last clause first; whole an equation that names nothing."""
    last = without_remark(_last_line(text)[-LINE_CHARACTERS:])
    if _supposes(_last_line(text)):
        return []
    formula = _last_formula(last)
    if formula:
        return [(text.rfind(formula), formula)]
    several = named_values(last)
    if several:
        return [(max(text.rfind(several), 0), several)]
    pieces = dict.fromkeys((_last_clause(last), last))
    for piece in pieces:
        piece = _REASON.sub("", piece)
        found = _last_verb(piece)
        if found is None or "\\boxed" in found["answer"] or _SENTENCE.search(found["answer"]):
            continue
        clause = _CLAUSES.split(piece.removesuffix(found["answer"]))[-1]
        if _DOUBTED.search(clause) or OF_ANOTHER.search(clause) or (_MODAL.match(found[0]) and _WOULD.search(last)):
            return []
        if _IMPOSSIBLE.search(found["answer"]):
            return []
        before, start = piece[: found.start()], text.rstrip().rfind(found["answer"])
        if _WHAT.search(before):
            return []
        if _TRUTH.match(found["answer"]) and _STATEMENT.search(before) is None:
            return []  # "the converse is true"
        if _ONE_LETTER.match(found["answer"]) and not_chosen(piece, found.start("answer")):
            return []
        if _premise(last[: last.rfind(found[0])], found[0]):
            return []
        if found[0].startswith(_RELATION):
            left = equation_of_another(before, found["answer"], text[: max(start, 0)].removesuffix(before))
            if left is not None:
                equation = f"{left} {found[0].strip().rstrip('$.')}"
                return [(start, equation)] if left and "$" not in equation else []
            counted = PREDICATE.fullmatch(found["answer"])
            if counted:
                return [(start, counted["count"])]
            line_of = _LINE_OF.search(before)
            if line_of:
                return [(start, f"{line_of['name']} = {found['answer'].rstrip(' .*$')}")]
        elif is_of_another(before, text[: max(start, 0)].removesuffix(before)):
            return []
        year = _IN_A_YEAR.fullmatch(found["answer"])
        return [(start, year["year"] if year else found["answer"])]
    return []


def only_number(text: str) -> list[tuple[int, str]]:
    """The one amount in the last sentence that has one, chatter after it left out."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if lines and _CHATTER.match(lines[-1]):
        lines.pop()
    line = lines[-1] if lines else ""
    if len(lines) >= _ROWS and all(map(_ROW.fullmatch, lines[-_ROWS:])) and _OF_ALL.search(line) is None:
        return []  # data read off, one after the other
    start = max(text.rfind(line), 0)
    if len(line) > 2 * LINE_CHARACTERS or "\\boxed" in line or _supposes(line) or _KEY.search(line):
        return []
    concluded = _SO.search(line)
    if concluded and not (concluded["rest"] and _DOUBTED.search(line)):
        return [(start + concluded.start("answer"), concluded["answer"])]
    last = _SENTENCE_END.split(line)[-1]
    bold = bold_amount(last, frozenset(tables().units))
    if bold:
        return [(start + line.rfind(bold), bold)]
    count = last_count(last)
    if count:
        return [(start + line.rfind(count), count)]
    so = _SO_CLAUSE.search(last)
    if so is not None and _SUPPOSED.search(last) is None and _DOUBTED_BEFORE.search(last, 0, so.start()) is None:
        found = number_in_sentence(so["clause"], frozenset(tables().units))
        if found:
            return [(start + line.rfind(so["clause"]), found)]
    for sentence in reversed(_SENTENCE_END.split(line)):
        if re.search(r"\d", sentence) or sentence is line:
            found = number_in_sentence(sentence, frozenset(tables().units))
            return [(start + line.rfind(sentence), found)] if found else []
    found = number_in_sentence(line, frozenset(tables().units))
    return [(start, found)] if found else []


_SO_CLAUSE = re.compile(
    r",\s+(?:and\s+)?(?:so|hence|thus|therefore)\s+(?P<clause>(?:there|it|we|he|she|they|the)\s[^,;]+)$"
)
_DOUBTED_BEFORE = re.compile(
    r"\b(?:nobody|no one|some|says?|said|thinks?|claims?|believes?|guess\w*|maybe|perhaps|wrong\w*|may|first)\b|\?",
    re.I,
)
_ROWS = 3
_ROW = re.compile(r"(?:\d{1,3}[.)]|[-*•])\s+[^:=]{1,60}[:：]\s*\D{0,3}\d[\d.,]*\s*\S{0,8}")
_OF_ALL = re.compile(
    r"\b(?:total|sum|answer|result|all|altogether|difference|mean|average|median|mode|range)\b", re.IGNORECASE
)
_KEY = re.compile(r"[{,]\s*[\"'][^\"'\n]{1,40}[\"']\s*:")  # of JSON: what it stands for is no sentence
_SO = re.compile(  # "..., so 12.", "..., so 12 are red."
    r",\s*(?:so|hence|thus|therefore)\s+(?P<answer>[-−]?\d[\d,]*(?:\.\d+)?)"
    r"(?P<rest>\s+(?:are|were)\s+(?!not|no|too|more|less|fewer|left|missing|wrong|from|in|at|on|of)[a-z]{3,})?\.?$"
)
_CHATTER = re.compile(r"(?:I hope|Hope|Let me know|Please let|Feel free|Is there anything)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+(?=[A-Z*])")


def remaining_letter(text: str) -> list[tuple[int, str]]:
    """The one letter of the last line that is not denied: "A is wrong, so it must be B", "Neither A nor B; C"."""
    line = _last_line(text)[-LINE_CHARACTERS:]
    left, denials = _DENIED.subn(" ", line)
    letters = set(_STANDALONE.findall(left))
    start = text.rstrip().rfind(line)
    return [(start, letters.pop())] if denials and len(letters) == 1 and not _UNSURE.search(line) else []


_OPTION = r"[(\[]?[A-J](?!\w)[)\]]?"
_LIST = rf"{_OPTION}(?:\s*(?:,|and|or|nor|&)+\s*{_OPTION})*"
_DENIED = re.compile(
    rf"(?:\b(?:[Nn]either|[Nn]ot?|[Rr]ule[sd]? out|[Ee]xcludes?|[Ee]liminates?|cannot be|isn['’]t)\s+"
    rf"(?:[Oo]ptions?\s+)?{_LIST}"
    rf"|(?:\b[Oo]ptions?\s+)?(?<!\w){_LIST}\s+(?:is|are)\s+(?:\w+\s+)?(?:wrong|incorrect|not\b[^.;,]*"
    rf"|false|impossible|too \w+|ruled out|excluded))"
)
_STANDALONE = re.compile(r"(?<![\w'’^_\\-])([B-HJ]|A(?!\s+[a-z](?!s\b|nd\b|r\b))|I(?=[.)]|$))(?![\w'’^(-])")
_UNSURE = re.compile(
    r"\b(?:could|might|may|maybe|perhaps|would|unsure|not sure|between|if|or|cannot|can't|unclear)\b|\?", re.I
)


def line(text: str) -> list[tuple[int, str]]:
    line = text.strip()
    too_much = "\n" in line or len(line) > LINE_CHARACTERS or "\\boxed" in line
    return [] if too_much or _NOTHING.fullmatch(line) or _supposes(line) else [(0, line)]
