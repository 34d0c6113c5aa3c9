r"""What a sentence states: whose value an equation gives, a count behind other numbers, a letter beside its text."""

from __future__ import annotations

import re

from sophia_mcore.verify.comparing.named import is_name, named_value
from sophia_mcore.verify.rules import tables
from sophia_mcore.verify.text.amounts import MADE, OF_ANOTHER, SUPPOSING, number_in_sentence
from sophia_mcore.verify.text.clauses import SENTENCE_END, assigns, states
from sophia_mcore.verify.text.normalize import clean

_EARLIER = 4_000  # characters before an equation in which its names may get values
SENTENCE_CHARACTERS = 400  # a longer sentence states nothing here

# ---- whose value it is

_WORD = re.compile(r"[A-Za-z]?(?:[A-Za-z][a-z]+)(?:-[a-z]{2,})*[,:]?|[A-Za-z]-[a-z]{3,}")  # "area", "x-coordinate"
_LEAD = re.compile(
    r"(?:^|.*[,;:]\s|.*\s)(?:so|thus|hence|therefore|then|that|get|have|obtain|find|gives)[,:]?\s+", re.IGNORECASE
)
_MADE = rf"(?:{MADE}|(?:square|cube) root|thrice|third|quarter)"
_MADE_OF = re.compile(
    rf"(?:the|a|an|one|its|their)?\s*{_MADE}\s+(?:of\b|the\b|its\b|their\b|that\b|this\b)", re.IGNORECASE
)
_MADE_BEFORE = re.compile(rf"\b(?:{_MADE}(?:\s+of)?(?:\s+the)?|times|minus|plus)\s*$", re.IGNORECASE)
_SUBJECT_IS = re.compile(  # "the area is \\pi r^2 = 12"
    r"\b(?!(?:it|this|that|which|equation|relation|condition|law|formula|identity|circle|line|curve|function|parabola|ellipse"
    r"|hyperbola|plane|graph)\b)[a-z]+\s+(?:is|are|was|equals)\s*:?\s*$",
    re.IGNORECASE,
)
_VALUE_OF = re.compile(
    r"\b(?:value|sum|product|ratio|magnitude|measure|expression)(?:\s+of)?(?:\s+the\s+expression)?\s*$"
)
_VALUE = re.compile(r"[^$=]{1,80}?(?=\s+[A-Za-z]{2,}|\$|\s*[.!]?\s*$)")
_FORMULA_AT_END = re.compile(r"(?:\$(?P<dollars>[^$]{1,80})\$|\\\((?P<brackets>[^$]{1,80}?)\\\))\s*$")


def _split_formula(before: str) -> tuple[str, str]:
    r"""What stands left of "=", and the words before it; the formula is "" where words stand there.

    >>> _split_formula("Thus, $h^2 "), _split_formula("So we get 2x "), _split_formula("Hence the area ")
    (('Thus, ', 'h^2'), ('So we get ', '2x'), ('Hence the area', ''))
    """
    before = before.rstrip()
    if before.replace("\\$", "").count("$") % 2:
        start = before.rindex("$")
        return before[:start], before[start + 1 :].strip()
    opened = max(before.rfind("\\("), before.rfind("\\["))
    if opened > max(before.rfind("\\)"), before.rfind("\\]")):
        return before[:opened], before[opened + 2 :].strip()
    ended = _FORMULA_AT_END.search(before)
    if ended:
        return before[: ended.start()], (ended["dollars"] or ended["brackets"]).strip()
    start = len(before)
    for piece in reversed(list(re.finditer(r"\S+", before))):
        if _WORD.fullmatch(piece[0]) or piece[0].endswith((":", ";", ",")) or _is_unit(piece[0]):
            break
        start = piece.start()
    return before[:start], before[start:]


def _is_unit(piece: str) -> bool:
    units = tables().units
    return "/" in piece and all(part in units for part in piece.split("/"))


def _of_made(words: str) -> bool:
    """Whether words name something made of a thing: "so the square of the height"."""
    lead = _LEAD.match(words)
    return _MADE_OF.match(words[lead.end() :] if lead else words) is not None


def equation_of_another(before: str, value: str, text: str = "") -> str | None:
    r"""The left side of an equation that says what something other than a named thing is: "h^2 = 8" says nothing of h.

    None where the left side is a name, a sum of names, a number that equals ``value``, what "the area is" stands
    before, or a formula whose names all have values in ``text``, which comes before: then the formula is asked for.

    >>> [equation_of_another(left, "8") for left in ("So h^2", "half the area", "x", "the area", "3 + 5", "a + b")]
    ['h^2', '', None, None, None, None]
    >>> equation_of_another("2x", "8", "We get x = 4. Then ")
    """
    words, left = _split_formula(before)
    if not left or _MADE_BEFORE.search(words):
        return "" if _of_made(words) or (left and _MADE_BEFORE.search(words)) else None
    if (_SUBJECT_IS.search(words) or _VALUE_OF.search(words)) and "=" not in words:
        return "" if _of_made(words) else None
    plain = _VALUE.match(value)
    whole = clean(f"{left} = {plain[0].strip(' .') if plain else value}")
    return left if named_value(whole)[1] == whole and not _asked_for(clean(left), text + words) else None


def _asked_for(formula: str, text: str) -> bool:
    """Whether a formula is a sum of names, or all its names have values in ``text``."""
    terms = formula.split("+")
    if len(set(terms)) == len(terms) > 1 and all(is_name(term.strip()) for term in terms):
        return True
    names = set(re.findall(r"[A-Za-z]+", re.sub(r"\\[A-Za-z]+", " ", formula)))
    text = text[-_EARLIER:]

    def given(name: str) -> bool:
        return re.search(rf"(?<![\w^\\]){name}\s*=\s*\$?[-−]?(?:\d|\\[a-z])", text) is not None

    return bool(names) and all(given(one) or (len(one) < 4 and one.islower() and all(map(given, one))) for one in names)


_WORKED = re.compile(
    r"(?P<lead>(?:[A-Za-z]{2,}[\s,:]+){0,4})(?:\$(?P<formula>[^$]{1,150})\$|(?P<plain>[^$A-Za-z]{1,150}))"
    r"(?P<tail>(?:\s+[a-z]{2,}){0,4})[\s.!]*"
)


PREDICATE = re.compile(  # "4 · 6 = 24 matches are needed"
    r"(?P<count>\d[\d,]*(?:\s+[a-z]+){0,3}?)\s+(?:are|were|is)\s+"
    r"(?!not|no|too|less|more|few|wrong|left|missing)[a-z]+[.!]?"
)


def worked_value(line: str) -> str:
    r"""The value of a worked equation with words around it, with what is counted; "" for any other line.

    >>> worked_value(r"$11 \cdot 12 = 132$ squares in total"), worked_value("Not $2+3=5$")
    ('132 squares in total', '')
    """
    found = _WORKED.fullmatch(line.replace("**", "")) if "=" in line and len(line) <= SENTENCE_CHARACTERS else None
    if found is None or not (found["lead"] or found["tail"]) or _DOUBTED.search(f"{found['lead']} {found['tail']}"):
        return ""
    if (
        OF_ANOTHER.search(found["lead"])
        or _MADE_OF.match(found["lead"] + " of")
        or assigns(found["lead"])
        or not states(found["lead"])
    ):
        return ""
    chain = clean(found["formula"] or found["plain"])
    value = named_value(chain)[1]
    if value == chain:
        return ""
    counted = PREDICATE.fullmatch(f"{value} {found['tail'].strip()}")
    return counted["count"] if counted else f"{value} {found['tail'].strip()}".strip()


_OPERATION = re.compile(r"(?<![A-Za-z])[A-Za-z\d)]\s?[*/+-]\s?[(A-Za-z\d](?![A-Za-z])|[\w)]\^|\d[a-z](?![a-z])")


def is_of_another(before: str, text: str = "") -> bool:
    r"""Whether what stands before "is" is of another thing: a formula that is no name, "the square of the height".

    >>> [is_of_another(before) for before in ("So $h^2$", "Hence x + 1", "The value of x^2", "The y-intercept")]
    [True, True, False, False]
    """
    words, formula = _split_formula(before.rstrip(" ,"))
    if _of_made(words) or not formula or "=" in formula or _VALUE_OF.search(words):
        return _of_made(words)
    if "$" not in before and "\\(" not in before and (_OPERATION.search(formula) is None or _is_unit(formula)):
        return _MADE_BEFORE.search(words) is not None
    cleaned = clean(formula)
    named = is_name(cleaned) or re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", cleaned)) is None
    return _MADE_BEFORE.search(words) is not None or not (named or _asked_for(cleaned, text))


# ---- a count behind other numbers

_DOUBTED = re.compile(
    rf"\b(?:{SUPPOSING}|not|no|never|may|or|perhaps|maybe|about|almost|nearly|wrong|except"
    r"|but|false|initially|originally|first|begin|start|estimate|guess|think|should|neither|nor|least|most|too"
    r"|minus|plus|times|half|twice|double|third|quarter)\b|n['’]t\b|\?",
    re.IGNORECASE,
)
_LAST_COUNT = re.compile(
    r"(?:^|[\s,;])(?P<clause>(?:(?:[Tt]here|we|it|he|she|they|this|that|which)"
    r"\s+(?:are|is|will be|have|has|leaves?|get)\s+"
    r"|(?:so|hence|thus|therefore|then),?\s+|leav(?:es?|ing)\s+|,\s*)?(?P<count>\d[\d,]*|[a-z]{3,9})"
    r"(?P<nouns>(?:\s+(?!(?:are|is|were|was|and|there|that|which|have|has)\b)[a-z]{3,}){0,3}?)"
    r"(?P<closed>\s+(?:(?:are|is|were)\s+)?(?:left|remain(?:s|ing)?|in total|altogether)(?:\s+over)?)?)\s*[.!*]*$"
)
_ARE_LEFT = re.compile(r"\s+(?:are|is|were)\s+(?=(?:left|remaining|in total|altogether)\b)")  # "7 are left"
_LEAVES = re.compile(r"(?:it |this |that |which )?leav(?:es?|ing)\s")


def last_count(line: str) -> str:
    """The count that a sentence with several numbers ends with, where it says that so many are left or so many in all.

    >>> last_count("There were 14 balls; after removing 6 there are eight left."), last_count("14 less 6 are red.")
    ('eight', '')
    """
    if len(line) > SENTENCE_CHARACTERS:
        return ""
    found = _LAST_COUNT.search(line)
    if found is None or not (found["closed"] or _LEAVES.match(found["clause"])):
        return ""
    earlier, clause = line[: found.start("clause")], line[found.start("clause") :]
    part = line[max(earlier.rfind(","), earlier.rfind(";"), earlier.rfind(":")) + 1 :]
    if _DOUBTED.search(part) or _DENIED.search(earlier) or OF_ANOTHER.search(part):
        return ""
    if not re.search(r"\d", earlier):
        return ""  # one number alone: other rules read it
    clause = _ARE_LEFT.sub(" ", clause.lstrip(", "))
    amount = number_in_sentence(clause, frozenset(tables().units))
    return amount if amount.replace(",", "") == found["count"].replace(",", "") else ""


_DENIED = re.compile(rf"\b(?:{SUPPOSING}|not|may|wrong|except|think|says?|said|or)\b|n['’]t\b|\?", re.IGNORECASE)

# ---- a letter beside its text

_HEDGED = re.compile(
    r"(?:\b(?:close|near|(?<!most )similar|next|adjacent|opposed|contrary|compared?|comparable|relative)\s+to"
    r"|\b(?:far|differs?|different|distinct|away|apart)\s+from"
    r"|\b(?:(?<!looks )(?<!look )like|unlike|than|between|except(?:\s+for)?|besides|instead of|as in|versus|vs\.?"
    r"|against|not|nor|neither|almost|nearly|approximates?|approach(?:es)?|exclud(?:es?|ing|ed)|eliminat(?:es?|ing|ed)"
    r"|discard(?:s|ing|ed)?|reject(?:s|ing|ed)?|rul(?:es?|ing|ed) out|exceeds?|beyond|below|above|around|about|without"
    r"|over|under|tempted by|consider(?:ed)?)"
    r"|\b(?:cannot|can not|could|might|may|(?:would|must|should|will|need) not)\s+(?:\w+\s+)?be"
    r"|\bbetween\s+[^.;,\n]{1,30}?\s+and|\bnot\s+(?:\w+\s+){1,2}(?:to|from|with|by)|n['’]t\s+(?:\w+\s+){0,3})"
    r"\s+(?:that of\s+|the\s+)?[*_]*$",
    re.IGNORECASE,
)


_CONSIDERED = re.compile(  # "For option B, we have"; "I'm going with option B" is none
    r"(?<!go )(?<!going )(?<!went )(?<!stick )(?<!stay )\b(?:for|in|of|with|under|regarding|try(?:ing)?"
    r"|test(?:ing)?|check(?:ing)?)"
    r"\s+(?:the\s+)?[*_]*$",
    re.IGNORECASE,
)
_BUT = re.compile(r"[^\n.;]{0,25}?\b[A-J]\b[)*_]*\s*[,;]?\s+(?:but|however|yet|although|though|if|were|had)\b")


_OF_OTHERS = re.compile(
    r"\b(?:mistakes?|errors?|traps?|pitfalls?|students|people|wrongly|mistakenly|initially|at first|hardly|barely"
    r"|careless\w*|hasty|scarcely|started|began|nothing)\b[^.;,]*$",
    re.IGNORECASE,
)


def hedged(text: str, start: int) -> bool:
    """Whether a letter is only compared with: "close to option D", "not far from option D"; "closest to D" is not.

    >>> hedged("It is close to option D", 15), hedged("It is closest to option D", 17)
    (True, False)
    """
    before = text[max(0, start - 120) : start].rpartition("\n")[2]
    return (
        _HEDGED.search(before[-60:]) is not None
        or _CONSIDERED.search(before) is not None
        or _OF_OTHERS.search(before) is not None
        or _BUT.match(text, start) is not None
    )


_REMARK = re.compile(r"\s*\((?:[Oo]ption|[Cc]hoice)\s+[A-J]\s+[a-z][^()]{0,80}\)(?=[\s.*]*$)")


_COMPARED = re.compile(r"(?:,?\s+(?:which|that|this)|,)\s+[^,;()]{1,60}?\b(?=(?:[Oo]ption|[Cc]hoice)\s+[A-J][\s.*]*$)")


def without_remark(line: str) -> str:
    """A line without a last remark on an option: "(option D is the gross income)", ", which is close to option D"."""
    compared = _COMPARED.search(line)
    if compared is not None and hedged(line, compared.end()):
        return line[: compared.start()]
    return _REMARK.sub("", line) if line.rstrip(" .*").endswith(")") else line


_UNSURE = re.compile(
    r"\b(?:could|might|may|maybe|perhaps|would|unsure|between|if|or|unless|cannot|unclear|not|nor|neither|no|wrong|unlike|except|than"
    r"|false|incorrect|close|near|similar|but|tempting|some|they|seems?|looks?|nobody|nothing|reject\w*|exclud\w*|eliminat\w*"
    r"|discard\w*|ruled? out|rules out|mistaken\w*|step|vector|path|arrow)\b|n['’]t\b|\?",
    re.IGNORECASE,
)
_SET_LETTER = re.compile(
    r"\\(?:textbf|mathbf|mathrm|textrm|text|bf|rm)\s*\{\s*\(\s*(?P<letter>[A-J])\s*\)\s*\}"
    r"(?P<value>(?:\\[ ,;:!]|[^$\\]|\\(?!text|math)[A-Za-z]){0,80}?)(?=\$|\\\)|$)"
)
_IN_BRACKETS = re.compile(
    r"(?:\b(?:is|are|equals?|gives|be|as|get)\s|=\s*)(?P<value>[^()=]{1,60}?(?:\([^()]{1,20}\)[^()=]{0,20})?)\s*"
    r"\((?:[Oo]ption\s+|[Cc]hoice\s+)?(?P<letter>[A-J])\)[\s.*]*$"
)
_LABELLED = re.compile(
    r"\b(?:point|angle|figure|graph|vertex|triangle|line|side|circle|diagram|picture|image|box|curve|position|path|set"
    r"|statement|region|plot|panel|label|labell?ed|marked|row|column|node|block|called|named)\s*$",
    re.IGNORECASE,
)
_THAT_IS = re.compile(
    r"(?:\bi\.e\.|\bthat is|\bwhich is|\bnamely|\bso|\bhence|\bthus),?\s+(?:the\s+)?"
    r"(?:(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\s+)?\**\(?(?P<letter>[A-J])\**\s*[:)]\s*(?P<value>\S[^:]{0,60})$"
)


_ARROWS = re.compile(
    r"→|⇒|⟹|-{1,2}>|=>|\\(?:Right|right|Longright|longright)arrow(?![A-Za-z])|\\(?:implies|to)(?![A-Za-z])"
)
_ARROW = re.compile(  # "the total is 12 N → C"
    rf"(?P<value>.{{2,300}}?)\s*\$?\s*(?:{_ARROWS.pattern})\s*\$?\s*(?:[Oo]ption\s+|[Cc]hoice\s+|[Aa]nswer:?\s+)?"
    r"[*(\[]*(?P<letter>[A-J])[*)\]]*[\s.$*]*"
)
_LABEL_AT_END = re.compile(
    r"(?<![A-Za-z])(?:[A-J]|(?<!\d)(?<!\d )[A-Z]{1,3})\d?['’)\]]?$|[A-Z][a-z]?\d$|[+:,]$"
)  # a reaction, a map, a path: "A → B"
_SAYS = re.compile(r"[A-Za-z]{3,}|\d")
_LAST_AMOUNT = re.compile(
    r"(?:=|\b(?:is|are|equals?|gets?|gives?|makes)\b|^)\s*(?P<amount>[^=A-Za-z]{0,10}\d[^=]{0,20})$"
)


_LABELS = r"(?:piece|picture|graph|figure|net|group|image|diagram|shape|panel|tile|plot|drawing|pattern)"
_NAMED_LETTER = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:^|,\s+)(?:[Tt]hat|[Tt]his|[Ww]hich)\s+(?:only\s+)?leaves\s+(?:only\s+|us\s+with\s+)?(?:the\s+)?{_LABELS}\s+(?P<letter>[A-J])$",
        rf"(?:^|,\s+)(?:[Tt]his|[Tt]hat|[Ii]t)\s+is\s+(?:exactly\s+)?what\s+{_LABELS}\s+(?P<letter>[A-J])\s+shows$",
        r",\s+which\s+is\s+(?:listed|given)\s+(?:under|as)\s+(?:option\s+)?(?P<letter>[A-J])$",
        rf"^(?:(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),?\s+)?(?i:{_LABELS})\s+(?P<letter>[A-J])\s+(?:has|is|shows)\s+the\s+"
        r"(?:[a-z]+est|only)\b(?:\s+[a-z]+){0,4}$",
    )
)
_A_LETTER = re.compile(r"(?<![\w'’])[A-J](?![\w'’])")
_FIRST_SIGHT = re.compile(r"\b(?:at first|first sight|leaves out|once|when|second|next)\b", re.IGNORECASE)


def letter_in_sentence(text: str) -> list[tuple[int, str]]:
    r"""The one letter of the last sentence that stands beside its text: "$\textbf{(C)}\ 24$", "6 m (D)", "i.e. D: 6 m".

    The text stays with the letter: where it is another option's, nothing is decided.

    >>> letter_in_sentence(r"So it takes $\textbf{(C)}\ 24$ matches."), letter_in_sentence("The length is 6 m (D).")
    ([(13, '(C) 24')], [(11, '(D) 6 m')])
    """
    text = text.rstrip()
    line = text.rpartition("\n")[2]
    sentence = SENTENCE_END.split(line)[-1]
    start = len(text) - len(sentence)
    if len(sentence) > SENTENCE_CHARACTERS or _UNSURE.search(sentence):
        return []
    plain = sentence.replace("*", "").rstrip(" .!")
    for pattern in _NAMED_LETTER:
        found = pattern.search(plain)
        if found and len(_A_LETTER.findall(re.sub(r"^A(?= [a-z])", "", plain))) == 1 and not _FIRST_SIGHT.search(plain):
            return [(start, found["letter"])]
    marked = list(_SET_LETTER.finditer(sentence)) if "\\" in sentence else []
    if len(marked) > 1:
        return []
    if marked:
        value = re.sub(r"^(?:\\[ ,;:!]|~|\s|\\q?quad)+", "", marked[0]["value"]).strip(" .}")
        return [(start + marked[0].start(), f"({marked[0]['letter']}) {value}".strip())]
    arrow = _ARROW.fullmatch(sentence)
    if arrow:
        value = arrow["value"].strip(" $*")
        if _ARROWS.search(value) or _LABEL_AT_END.search(value) or not _SAYS.search(value) or _OF_OTHERS.search(value):
            return []
        last = _LAST_AMOUNT.search(value)
        return [(start + arrow.start("letter"), f"({arrow['letter']}) {last['amount'] if last else ''}".strip())]
    for pattern in (_IN_BRACKETS, _THAT_IS):
        found = pattern.search(sentence)
        if found and _LABELLED.search(found["value"]) is None:
            value = found["value"].strip(" .,*").strip("$").strip()
            return [(start + found.start(), f"({found['letter']}) {value}")]
    return []


# ---- yes and no behind "so"

_SO_YES_OR_NO = re.compile(
    r"[,;.:]\s+(?:and\s+)?(?:so|thus|hence|therefore)[,:]?\s+(?:the answer is\s+)?(?P<answer>yes|no)[\s.!*]*\Z",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(rf"\b(?:{SUPPOSING}|may|some|think|say|tempting|wrong|mistake|but)\b|\?", re.IGNORECASE)


def so_yes_or_no(text: str) -> list[tuple[int, str]]:
    """The yes or no that the last line ends with behind "so"."""
    found = _SO_YES_OR_NO.search(text, max(0, len(text.rstrip()) - 60))
    if found is None or _SUPPOSED.search(text.rstrip().rpartition("\n")[2]):
        return []
    return [(found.start("answer"), found["answer"])]
