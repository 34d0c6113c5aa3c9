r"""Finding the final answer in a response.

``announcements.RULES`` is tried from top to bottom; within a rule the last match in the text wins, and for multiple
choice the last announcement of all. What follows the last ``</think>`` is searched first, and the thought only when
nothing follows it; a thought that never ends has no answer.
"""

from __future__ import annotations

import logging
import re

from sophia_mcore.records import END_OF_THOUGHT, THOUGHT
from sophia_mcore.verify.comparing.choices import is_option_text
from sophia_mcore.verify.reading.announcements import (
    ANNOUNCEMENTS,
    ANSWER_CHARACTERS,
    RULES,
    Rule,
)
from sophia_mcore.verify.reading.asides import without_asides
from sophia_mcore.verify.reading.beyond import goes_on
from sophia_mcore.verify.reading.boxes import boxed_parts, cut_off, end_of_last
from sophia_mcore.verify.reading.corrections import confirms, said_instead, taken_back
from sophia_mcore.verify.reading.foreign import gives_up, own_answer, without_label, without_listed
from sophia_mcore.verify.reading.marks import plain_marks
from sophia_mcore.verify.reading.options import names_option, stated_option
from sophia_mcore.verify.reading.remarks import without_remarks
from sophia_mcore.verify.reading.tagged import TAIL_CHARACTERS
from sophia_mcore.verify.text.normalize import TEXT_COMMAND, clean
from sophia_mcore.verify.text.numbers import parse_number

_LOG = logging.getLogger(__name__)
Found = tuple[str, str, int]  # an answer, the name of the rule that found it, and where it begins
_AGAIN = tuple(rule for rule in RULES if rule.name in ("final answer", "answer is"))

# ---- tidying

_WRAP = re.compile(
    r"^(?:\*\*|__|`|\$\$?|\\\(|\\\[|[\"'“‘「])(?P<inner>.+?)(?:\*\*|__|`|\$\$?|\\\)|\\\]|[\"'”’」])$", re.DOTALL
)
_CLAUSE = re.compile(
    r"(?:[.。!]\s+(?=[A-Z*])|[,;，；]?\s(?:because|since|as (?:we|required|desired|stated)|which|where we|so that"
    r"|given that|I (?:hope|think|believe|guess))\b"
    r"|,\s(?:not(?!\s+(?:correct|right|sure|certain|true|the))|rather than|instead of)\b"
    r"|\s\(not\b(?!\s+(?:sure|certain))"
    r"|[，。；]).*$",
    re.DOTALL,
)


_DENIED_FIRST = re.compile(r"^\s*not\s[^,.;\n]{1,40}?,?\sbut\s+")  # "not 9 but 10"
_ADVERB = re.compile(
    r"^\s*(?:clearly|simply|obviously|definitely|certainly|indeed|still|therefore|thus|just|so|hence)\s+"
    r"(?=[(\[*$\\\d]|[A-J](?![A-Za-z]))",
    re.IGNORECASE,
)
_BOLD_WITHIN = re.compile(r"(?<![\w)*])\*\*(?P<inner>[^\s*](?:[^*\n]{0,60}[^\s*])?)\*\*(?![\w(*])")
_AT = re.compile(
    r"^\s*at (?=\$?\(|\d{1,2}(?::\d\d)?\s?(?:[ap]\.?m\b)|\d{1,2}:\d\d\b)", re.IGNORECASE
)  # a point, a time
_YES_AND_NO = re.compile(
    r"\W*(?:(?:yes|no|true|false)\b.*\b(?:yes|no|true|false|but|actually|wait|however)\b|[对错是否不].*[对错否不])",
    re.IGNORECASE | re.DOTALL,
)
_STATEMENTS = re.compile(r"\{([①-⑳\s,，、]+)\}")  # of MV-MATH's "Answer: {①, ③}"
_AMOUNT = re.compile(  # a dollar sign, not the beginning of a formula
    r"\$\s?\d[\d,.]*(?:\s+[a-z]+)?(?:\s+(?:per|an?)\s+[a-z]+|\s?/\s?[a-z]{3,})?$"
)


def tidy(answer: str) -> str:
    """An announced answer without the sentence around it: emphasis, quotes, math signs and the final stop go."""
    if "**" in answer:
        answer = _BOLD_WITHIN.sub(r"\g<inner>", answer)
    answer = _AT.sub("", _ADVERB.sub("", _DENIED_FIRST.sub("", answer)))
    if len(answer) > 1:
        answer = answer.strip()[:ANSWER_CHARACTERS]
        answer = _one_of_equal(answer)
        answer = answer if _YES_AND_NO.match(answer) else _CLAUSE.sub("", answer)
    for _ in range(6):
        before = answer
        answer = answer.strip().rstrip("。")
        if answer.endswith(".") and not answer.endswith(".."):
            answer = answer[:-1]
        answer = answer.replace("**", "") if answer.count("**") % 2 else answer
        if answer.count("$") % 2 and "\\$" not in answer:
            answer = f"\\{answer}" if _AMOUNT.match(answer) else answer.strip("$")
        wrapped = _WRAP.match(answer)
        if wrapped and "$" not in wrapped["inner"]:
            answer = wrapped["inner"]
        if answer == before:
            break
    statements = _STATEMENTS.fullmatch(answer.strip())
    return statements[1].strip() if statements else answer.strip()


_SAID_TWICE = re.compile(
    r"(?P<first>[^\s,;][^,;]{0,60}?),?\s+\(?(?:that is|i\.e\.|equivalently|or),?\s+"
    r"(?P<second>[^\s,;][^,;]{0,60}?)\)?"
)


def _one_of_equal(answer: str) -> str:
    """The first of two equal numbers that say the same: "3/5, that is 0.6"; any other answer as it is."""
    if " or " not in answer and "that is" not in answer and "i.e." not in answer and ", " not in answer:
        return answer
    twice = _SAID_TWICE.fullmatch(answer.strip(" .*"))
    if twice is None:
        return answer
    first, second = (parse_number(clean(twice[name])) for name in ("first", "second"))
    shares = [one.value / 100 if one.percent else one.value for one in (first, second) if one is not None]
    return twice["first"] if len(shares) == 2 and shares[0] == shares[1] else answer


def _parts(text: str) -> tuple[list[str], bool]:
    """The parts of a response to search, best first, and whether its last thought is unfinished."""
    thought, mark, after = text.rpartition(END_OF_THOUGHT)
    if THOUGHT in after:
        return [after[: after.index(THOUGHT)]] if mark else [], True
    return [after, thought] if mark else [after], False


_WEAK = ("short", "line")  # rules that take what stands there, announced by nothing
_YES_OR_NO = re.compile("yes|no|true|false", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")


def _apply(rule: Rule, text: str, lower: str) -> tuple[str, int] | None:
    """The last answer that a rule finds, and where it begins."""
    if rule.words and not any(word in lower for word in rule.words):
        return None
    for position, candidate in reversed(rule.find(text)):
        answer = candidate if rule.name in ("boxed", "parts") else tidy(_innermost(candidate))
        if (
            rule.name in _WEAK
            and not _YES_OR_NO.fullmatch(answer)
            and not set(_DIGITS.findall(candidate)) <= set(_DIGITS.findall(answer))
        ):
            continue  # the sentence goes on with another number
        if answer:
            return answer, position
    return None


def _innermost(candidate: str) -> str:
    """The last announcement within a candidate: "**Final answer** The answer is 5", "7. No, the answer is 9"."""
    for _ in range(3):
        found = [one for rule in _AGAIN for one in rule.find(candidate)] if "ns" in candidate else []
        if not found:
            break
        candidate = max(found)[1]
    return candidate


_PLAIN_LETTER = re.compile(r"[(\[]?[A-J](?![A-Za-z])")
_LETTER_AND_WORDS = re.compile(r"[(\[]?[A-J][)\]]?[.:]\s+(?:[^\s.!?]+\s?){1,3}[.!]?$")  # "B. Paris" stays together


def _last_announcement(text: str, lower: str, letters_only: bool = False) -> Found | None:
    """The last announcement of all kinds, or of a letter in plain text."""
    lower = lower or text.lower()
    found: list[tuple[int, str, str]] = []
    for rule in RULES:
        if rule.name in ANNOUNCEMENTS and (not rule.words or any(word in lower for word in rule.words)):
            found += [(position, answer, rule.name) for position, answer in rule.find(text)]
    for position, candidate, name in sorted(found, key=lambda one: one[0], reverse=True):
        inner = _innermost(candidate)
        answer = tidy(inner)
        both = _LETTER_AND_WORDS.match(inner.strip()) if len(answer) <= 3 else None
        answer = both[0].strip(".! *") if both else answer
        if answer and (not letters_only or _PLAIN_LETTER.match(answer)):
            return answer, name, position
    return None


_FORMULA = re.compile(r"[\d\\]")
_WORDY = re.compile(r"[^\W\d_]{3,}\s+[^\W\d_]{3,}")


def _behind_box(part: str, box: int, answer_type: str) -> Found | None:
    """A later announcement behind the last box: a letter, or a number or formula."""
    later = _last_announcement(part[box:], "", letters_only=True) if answer_type == "choice" else None
    if later is None and answer_type != "choice":
        announced = [(place, one, rule.name) for rule in _AGAIN for place, one in rule.find(part[box:])]
        for place, one, name in sorted(announced, reverse=True):
            answer = tidy(one)
            if "boxed" not in one and _FORMULA.search(answer) and not _WORDY.search(answer):
                later = answer, name, place
                break
    return (later[0], later[1], box + later[2]) if later is not None else None


def _candidate(part: str, answer_type: str, unfinished: bool) -> Found | None:
    """The answer as it is announced last, corrections left aside."""
    boxed = _apply(RULES[0], part, part)
    if boxed and answer_type == "parts" and (parts := boxed_parts(part)):
        return parts, RULES[0].name, end_of_last(part) - 1
    if boxed:
        box = end_of_last(part) - 1
        later = _behind_box(part, box, answer_type)
        if later is not None:
            return later
        inside = boxed[0]
        if "answer" in inside.lower():  # a whole sentence in the box
            flat = TEXT_COMMAND.sub(r"\1", inside)
            said = next(filter(None, (_apply(inner, flat, flat.lower()) for inner in _AGAIN)), None)
            inside = said[0] if said else inside
        replaced = goes_on(part, box + 1, inside) if answer_type not in ("choice", "yes_no", "text") else None
        return (inside if replaced is None else replaced), RULES[0].name, box
    lower = part[-TAIL_CHARACTERS:].lower()
    if answer_type == "choice" and not unfinished:
        announced = _last_announcement(part, lower)
        if announced is not None:
            return announced
    for rule in RULES[1:]:
        if (rule.types is not None and answer_type not in rule.types) or (unfinished and not rule.words):
            continue
        found = _apply(rule, part, lower)
        if found:
            return found[0], rule.name, found[1]
    return None


_APART = re.compile(r"\s*[,.:;!…—–-]")  # "it cannot be 7" goes on
_UNANNOUNCED = ("only number", "short", "conclusion", "line")


def _corrected_first(part: str, found: Found | None, answer_type: str) -> Found | None:
    """What ends the text behind words such as "on second thought", where nothing announces an answer: "7. No, 9."."""
    if found is not None and found[1] not in _UNANNOUNCED:
        return None
    rest = taken_back(f"\n{part[-TAIL_CHARACTERS:].strip()}", -1, answer_type == "yes_no")
    apart = rest is not None and _APART.match(rest) and "\n" not in rest.strip()
    line = tidy(said_instead(rest)) if rest is not None and apart else ""
    plain = line and len(line) <= _SAID_BEHIND and not _WORDY.search(line) and _FORMULA.search(line)
    return (line, "corrected", len(part)) if plain else None


_BARE_YES_NO = re.compile(r"\W*\n\W*(?:yes|no|true|false)\W*", re.IGNORECASE)
_SAID_BEHIND = 60  # characters of a correction that may itself be the answer


def _corrected(part: str, found: Found, answer_type: str) -> Found:
    """The answer, or what replaces it where it is taken back; "" where nothing does."""
    answer, name, position = found
    rest = taken_back(part, position, answer_type == "yes_no")
    if answer_type == "yes_no" and rest is None and _BARE_YES_NO.fullmatch(part, position + len(answer)):
        return "", name, position  # "yes", and on the next line "no"
    if rest is None or confirms(rest, answer):
        return found
    lower = rest.lower()
    announced = _last_announcement(rest, lower)
    if announced is not None and announced[0]:
        return announced
    line = tidy(said_instead(rest))
    if line and len(line) <= _SAID_BEHIND and not _WORDY.search(line):
        return line, name, position
    for rule in RULES:
        if rule.name in ("only number", "conclusion") and (weak := _apply(rule, rest, lower)):
            return weak[0], name, position
    return "", name, position


_FREE = ("short", "conclusion", "line", "only number")  # rules that know nothing of the options

_ARTICLE = re.compile(r"[AI] [a-z]{2,} ")  # "A painting of this kind is Gothic": hardly the option A


def _by_option(part: str, found: Found | None, options: tuple[str, ...]) -> Found | None:
    """The option that a free sentence states, where what the rules find in it names none."""
    free = found is None or found[1] in _FREE or (found[1] == "letter and text" and _ARTICLE.match(found[0]))
    if found is not None and (not free or names_option(found[0], options)):
        return found
    stated = stated_option(part, options)
    return (stated, "option", max(part.rfind(stated), 0)) if stated else found


def find_answer(text: str, answer_type: str = "", options: tuple[str, ...] = ()) -> tuple[str, str] | None:
    """(final answer, name of the rule that found it), or None; see ``extract``. "": it is taken back."""
    parts, unfinished = _parts(text)
    for part in map(plain_marks, parts):
        part = own_answer(part)
        if cut_off(part):
            return None
        if options and not unfinished and is_option_text(part, options):
            return part.strip(), "option"
        read = part if unfinished else _without_foreign(part, answer_type, options)
        found = _candidate(read, answer_type, unfinished)
        if options and not unfinished:
            found = _by_option(read, found, options)
        if not unfinished:
            found = _corrected_first(part, found, answer_type) or found
        if found is not None and found[1] in ANNOUNCEMENTS and gives_up(part, found[2], found[0], options):
            return "", found[1]
        if found is not None:
            return (found if unfinished else _corrected(part, found, answer_type))[:2]
        if part.strip():
            break
    return None


def _without_foreign(part: str, answer_type: str, options: tuple[str, ...]) -> str:
    """What of a response is read for its answer. Only "A:" in front goes at the beginning: positions stay otherwise."""
    read = without_asides(without_remarks(part))
    if answer_type != "choice":
        return read
    labelled = without_label(read, options)
    read = labelled.rjust(len(read)) if labelled != read else read
    return without_listed(read)


def extract(text: str, answer_type: str = "", options: tuple[str, ...] = ()) -> str | None:
    r"""The final answer of a response as text, or None.

    ``answer_type`` (one of ``rules.TYPES`` or "") switches on the rules that are meant for one type, ``options`` those
    that read the text of an option in a free sentence. A response that the rules fail on (a mistake of ours) has no
    answer, and a warning is logged: it must not stop a phase.

    >>> extract(r"<think>1+1</think>The answer is \boxed{2}.")
    '2'
    """
    try:
        found = find_answer(text, answer_type, options)
    except Exception as error:
        _LOG.warning("no answer is read from a response, by a mistake of the rules: %r", error)
        return None
    return found[0] if found and found[0] else None
