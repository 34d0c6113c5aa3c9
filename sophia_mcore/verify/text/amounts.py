"""The one amount that a sentence states: "He has 7 apples left", but not "at least 7"."""

from __future__ import annotations

import re

from sophia_mcore.verify.text.clauses import states
from sophia_mcore.verify.text.normalize import DIRECTION
from sophia_mcore.verify.text.rates import rate_of
from sophia_mcore.verify.text.words import MULTIPLIERS, NOT_A_NOUN, POWERS, PREPOSITIONS, SMALL, number_of_words

_NUMBER = re.compile(
    r"(?<![\w.^_/\\-])(?:(?P<money>\\?\$|[€£¥])\s?)?(?P<digits>[-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?)(?P<percent>\s?\\?%)?(?![\w/^%]|\\%|,\d)"
)
_PER_UNIT = re.compile(r"\s+per\s+(?=(?:hour|minute|second|day|year|meter|metre|km|kilometer|liter|h|s|m)\b)")
_QUALIFYING = (  # words of a sentence whose number is not what it states
    "not|no|never|hardly|barely|scarcely|doubt|doubtful|thought|guessed|first|divisible|begins|ends|rounds|cannot|neither"
    "|nor|n't|at least|at most|more than|less than|fewer than|over|under|above|below|up to|nearly|almost"
    r"|between(?! (?:the|these|those|them|both)\b)|(?<!away )from"
    "|or|minimum|maximum of|exceeds?|than|except|unless|if|would|could|might|(?-i:may)|perhaps|maybe|either"
    r"|(?:question|step|figure|option|choice|case|equation)\s+\d|increase[sd]? by|decrease[sd]? by|per|each|every|ratio"
    r"|anything|everything|but|besides|other|another|(?<!\d )different|different from|opposite|reciprocal"
    r"|inverse|(?:square|cube) of"
    "|older|younger|larger|smaller|bigger|greater|longer|shorter|higher|lower|taller|earlier|later|ago|until|since"
    "|after|before|(?:next|previous|following)(?! (?:number|term|value|integer))|remainder|mod|plus|difference|product"
    "|quotient|false|unlikely|impossible|minus|negative|times|more|less|fewer|squared|cubed|extra|half|twice|double"
    "|triple|third|quarter|too|wrong|incorrect|instead|left to (?!the )[a-z]+|pairs of"
)
_QUALIFIED = re.compile(
    rf"\b(?:{_QUALIFYING})\b|n['’]t\b|[?^=×*<>≤≥]|/(?![A-Za-z])|\\(?![$%])|\d\s*[-–~:]\s*\d"
    r"|(?<![A-Za-z])[-−]\s?[a-z](?![A-Za-z])",
    re.IGNORECASE,
)
_WORD = re.compile(
    r"\s*-?\s*([A-Za-z°µΩ]+(?:\s?\^?[23²³])?(?:\s?/\s?[A-Za-z]+(?:\^?[23²³])?|\s+per\s+[A-Za-z]+)?|[\u4e00-\u9fff])"
)
_A_MULTIPLE = re.compile(rf"\ba (?=(?:{'|'.join(['dozen', 'hundred', *POWERS])})\b)", re.IGNORECASE)
_COUNTS = re.compile(rf"\b(?:{'|'.join(sorted({*SMALL, *POWERS, 'hundred', 'dozen'}, key=len, reverse=True))})\b", re.I)


# "the root of 5", "a multiple of 5": of a thing that 5 is not. "an area of 5", "a total of 5": the thing is 5.
_PART_OF = re.compile(
    r"(?<!\ba )(?<!\ban )(?<!\ba total )\b(?!total\b)[A-Za-z]+ of \\?\$?\d"
    r"|\b(?:multiple|factor|divisor|power|root|square|cube|fraction|part|piece|share|third|fourth|fifth|tenth|set|group|bundle"
    r"|list|function|member|majority|number|minimum|maximum|complement|out) of \\?\$?\d",
    re.IGNORECASE,
)


# "half of it is 12", "its square is 12": the answer is something else
MADE = "half|double|twice|triple|square|cube|opposite|reciprocal|inverse|negative"  # of a thing: another number
_MADE = rf"{MADE}|third|quarter|fifth|tenth|percent|root"
SUPPOSING = "if|unless|whether|would|might|could|suppose|assume"  # words of a sentence that states nothing
_GEOMETRY = "".join(  # "the area of the square is 12"
    f"(?<!{noun} of )" for noun in ("area", "side", "perimeter", "volume", "diagonal", "height", "edge", "length")
)
OF_ANOTHER = re.compile(
    rf"\b(?:{_MADE}|minus)(?: of)?(?: the)? (?:it|[a-z]|this|that|answer|result|value|total|number)\b"
    rf"|\bits (?:{_MADE})\b|{_GEOMETRY}\bthe (?:{_MADE}) (?:is|was|equals)\b"
    rf"|\b(?:{MADE}|(?:square|cube) root)(?: of)?"
    r" (?:the|its|their|this|that) [a-z]+(?: [a-z]+)?(?: [a-z]+)? (?:is|are|was|equals)\b"
    r"|\b(?:mistaken|rejected|incorrect|excluded|discarded) (?:value|answer|result|choice|option|number|one)\b"
    r"|\b(?:nobody|no one|guess|yesterday|originally|formerly|used to|old|other|wrong|previous|initially|at first)\b"
    r"|\b(?:before|after|above|below|next to|opposite|beside) (?:it|this|that|them) (?:is|was)\b"
    r"|\bone (?:less|more)\b|\b(?:number|one|day|month|year) (?:before|after)\b|\b[a-z] (?:squared|cubed|plus|minus)\b"
    r"|\b(?:[a-z]+ (?:squared|cubed)|(?:squared|cubed) [a-z]+) (?:is|was|equals)\b"
    r"|(?<!number of )(?<!many )\b(?:times|per ?cent of) (?:the|its|their) [a-z]+(?: [a-z]+)? (?:is|are|was|equals)\b",
    re.IGNORECASE,
)
_VERBS = (
    "is|are|was|were|be|been|say|equals?|equal|has|have|had|contains?|shows?|sees?|saw|counts?|counted|gets?|got|gives?|gave|makes?"
    "|made|earn(?:s|ed)|costs?|weigh(?:s|ed)?|measures?|measured|total(?:s|ed)?|scored?|scores|sold|sells|bought|buys|takes?|took"
    "|lasts?|lasted|walk(?:s|ed)|runs?|drove|drives|travel(?:s|led|ed)?|holds?|uses?|used|pays?|paid|spends?|spent|saves?|saved"
    "|remains?|leaves|reads?|becomes?|reach(?:es)?|worth|charges?|received?|receives|produces?|produced|requires?|needs?|needed|find|found|obtain"
    "|yields?|means|as|displays?|displayed|attracts?|attracted"
)
_AN_AMOUNT = (
    "a total of|the total of|(?:an?|the) (?:[a-z]+ )?(?:area|length|height|width|radius|diameter|volume|speed|mass"
)
_AN_AMOUNT += "|weight|value|perimeter|score|price|cost|age|distance|temperature|probability|mean|median|mode|sum) of"
# What may stand before the one number of a sentence: nothing, or a verb that says what is counted or measured.
_ALSO = "drives?|drove|moves?|moved|runs?|flies|flew|goes|travel(?:s|led|ed)?|is|was"
_SUMS = (
    "ends? up with|leaves? (?:us|them|him|her) with|works? out (?:to|at)|"
    "equal to|comes? (?:out )?to|amounts? to|adds? up to|sums? to"
)
_ADVERBS = (
    "about|around|approximately|roughly|exactly|precisely|only|just|also|now|then|thus|therefore|so|hence|indeed"
    r"|clearly|in total|altogether|a total of|the number|the integer|\\approx"
)
_SIZED = (
    r"(?:has|have|had) (?:an? )?(?:area|length|height|width|radius|diameter|volume|speed|mass|weight|value|perimeter)"
)
_BEFORE = re.compile(
    rf"(?:^|{_SIZED}|[:,]\s|(?:\b(?:{_VERBS}|(?:{_ALSO}) at|{_SUMS}|{_AN_AMOUNT}|all|both|total)\b"
    rf"|['’]s\b)(?:\s+only)?)"
    rf"(?:\s*(?:\b(?:{_ADVERBS})\b|≈))*\s*[*_$(]{{0,3}}\s*$",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(  # "let it be 7"
    r"\s*(?:let(?!['’]s|\s+(?:us|me)\b)|suppose|assume|given)\b[^,;]*$", re.IGNORECASE
)
_DIRECTED = re.compile(rf",\s+{DIRECTION}")


_DEFINITE = re.compile(r"\b(?:the|these|those|both|all) (?:two|three|four|five|six)(?= [a-z]+)", re.IGNORECASE)
_ROUNDED = re.compile(r"^Rounded to (?:the nearest [a-z]+|(?:one|two|three|\d) decimal places?),\s+", re.IGNORECASE)
_RATED = re.compile(
    r"(?P<amount>(?:\\?\$|[€£¥])?\d[\d,.]*(?:\s+[a-z]{3,}s)?(?P<rate>\s+(?:per|an?)\s+[a-z]{3,}|\s?/\s?[a-z]{3,}))[\s.!]*$"
)


def number_in_sentence(line: str, units: frozenset[str]) -> str:
    """The amount in a sentence that holds exactly one number and nothing that qualifies it; "" otherwise.

    ``units`` are the spellings of units that stay with the number. A word for a number counts as one.

    >>> number_in_sentence("The plant costs about $3 million.", frozenset())
    '$3 million'
    >>> number_in_sentence("She has at least 3 cats.", frozenset())
    ''
    """
    line = _ROUNDED.sub("", line)
    rated = _RATED.search(line.replace("**", ""))
    if rated is not None and rate_of(rated["amount"])[1]:
        alone = number_in_sentence(f"{line.replace('**', '')[: rated.start('rate')]}", units)
        return f"{alone}{rated['rate']}" if alone else ""
    line = _PER_UNIT.sub("/", line.replace("**", ""))
    numbers = list(_NUMBER.finditer(line))
    if (
        _QUALIFIED.search(line)
        or _ASSIGNED.match(line)
        or _PART_OF.search(line)
        or OF_ANOTHER.search(line)
        or len(re.findall(r"\d[\d,.]*", line)) > 1
    ):
        return ""
    if not numbers:
        return _words_in_sentence(line)
    found = numbers[0]
    before = line[: found.start()]
    if re.fullmatch(r"\d{4}", found["digits"]):
        before = re.sub(r"\bin $", "", before, flags=re.IGNORECASE)  # a year
    if _BEFORE.search(before) is None or not states(before, line[found.start() + len(found[0].rstrip(", ")) :]):
        return ""
    following = _WORD.match(line, found.end())
    word = following[1] if following else ""
    if word == "to" or word.casefold() in ("bc", "bce"):
        return ""  # "she needs 7 to win"; another year
    if word in ("is", "was", "are") and not re.search(r"\b(?:answer|result|total|sum|value)\b", line[found.end() :]):
        return ""  # the number is what the sentence is about
    if _COUNTS.search(_DEFINITE.sub("the", line)) and word.casefold() not in MULTIPLIERS:
        return ""
    if _DIRECTED.match(line, following.end() if following else found.end()):
        return ""  # the direction belongs to it
    amount = found[0].strip().rstrip(",")
    if word.casefold() in MULTIPLIERS:
        return f"{amount} {word}"
    if word and all(re.sub(r"[\s^23²³]", "", part) in units for part in re.split(r"/|\bper\b", word)):
        behind = re.match(r"\s+([a-z]+)", line[following.end() if following else 0 :])
        return "" if behind and behind[1] in NOT_A_NOUN - PREPOSITIONS else f"{amount} {word}"
    return "" if word.casefold() in NOT_A_NOUN - PREPOSITIONS else amount


_BOLD = re.compile(r"\*\*(?P<value>[^*\n]{1,40})\*\*")
_PREMISE_BEHIND = re.compile(r"[,;:]|\b(?:and|but|so|while|then|when|because|since|each|per)\b|\d", re.IGNORECASE)
_SINCE = re.compile(r"(?:since|as|because|with)\b(?!.*\b(?:if|unless|would|not)\b)", re.IGNORECASE)


def bold_amount(line: str, units: frozenset[str]) -> str:
    """The one amount in bold of a sentence, read as if the numbers before it were none; "" where another follows.

    >>> bold_amount("Of the 40 students, **15** take the bus.", frozenset())
    '15'
    >>> bold_amount("Of the **40** students, 15 take the bus.", frozenset())
    ''
    """
    marked = list(_BOLD.finditer(line)) if "**" in line else []
    if len(marked) != 1 or not re.match(r"[-−\\$€£]{0,3}\d", marked[0]["value"]):
        return ""
    before, behind = line[: marked[0].start()], line[marked[0].end() :]
    if "=" in before and _SINCE.match(before):
        before = before.rpartition(", ")[2]  # "Since 2^14 = 16384, it needs **14** bits"
    if _PREMISE_BEHIND.search(behind) or "=" in before + behind:
        return ""
    return number_in_sentence(re.sub(r"\d[\d,.]*\d|\d", "N", before) + marked[0]["value"] + behind, units)


def _words_in_sentence(line: str) -> str:
    if re.search(r"\bone\b", line, re.IGNORECASE) and not re.search(r"\b(?:is|are|exactly|only|just)\s+one\b", line):
        return ""  # a pronoun
    line = _A_MULTIPLE.sub("one ", line)  # "a dozen eggs", "a million dollars"
    runs = re.findall(rf"{_COUNTS.pattern}(?:[\s-]+(?:and\s+)?{_COUNTS.pattern})*", line, re.IGNORECASE)
    if len(runs) != 1 or number_of_words(runs[0]) is None:
        return ""
    start = line.index(runs[0])
    if _BEFORE.search(line[:start]) is None or not states(line[:start], line[start + len(runs[0]) :]):
        return ""
    following = re.match(r"\s*-?\s*([A-Za-z]+)", line[start + len(runs[0]) :])
    word = following[1].casefold() if following else ""
    return "" if word in NOT_A_NOUN - PREPOSITIONS else runs[0]
