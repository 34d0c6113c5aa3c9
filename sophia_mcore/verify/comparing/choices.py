"""Answers out of a few: options of multiple choice questions, yes and no."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from functools import lru_cache
from string import ascii_uppercase

from sophia_mcore.verify.comparing.compare import is_words
from sophia_mcore.verify.comparing.option_names import (
    NUMBERED,
    OPTION_BEHIND,
    abbreviated,
    names_only,
    of_image,
    other_named,
)
from sophia_mcore.verify.rules import Rule
from sophia_mcore.verify.text.chosen import affirmed, put_aside
from sophia_mcore.verify.text.normalize import TEXT_COMMAND, clean, plain_text
from sophia_mcore.verify.text.numbers import Number, numbers_equal, parse_number
from sophia_mcore.verify.text.quantities import parse_quantity
from sophia_mcore.verify.text.sentences import CERTAINLY, core, kind_left_out
from sophia_mcore.verify.text.words import qualifiers

SIMILAR = 0.6  # the least likeness of an answer to the option it is taken for
MAX_TEXT = 2_000  # a longer response is not the text of an option
MAX_WORDS = 3  # more of them beside a letter are rather a sentence than the text of an option
_LETTER = re.compile(
    r"(?:(?:option|choice|choose|answer|选项?)\s*)?[(\[\"']*\s*([A-Za-z])\s*[)\].:\"']*", re.IGNORECASE
)
_LETTER_AND_TEXT = re.compile(
    r"(?:(?:option|choice|选项?)\s+)?[(\[]?\s*([A-Z])\s*"
    r"(?:[)\]][.:,]?|[.:]|(?<=(?:option|choice) \w),|\s-|\s(?=\S{2}))\s*(.+)",
    re.DOTALL,
)
_SEVERAL_LETTERS = re.compile(
    r"[(\[]?[A-J][)\]]?(?:\s*(?:,|;|and|&|\s)\s*[(\[]?[A-J][)\]]?)+|[A-J]{2,10}|(?:[(\[][A-J][)\]]){2,10}"
)
_TEXT_AND_LETTER = re.compile(r"([^()]{2,60}?)\s+\(([A-J])\)")  # "Granite (B)"
_FIRST_LETTER = re.compile(r"(?:(?:option|choice|选项?)\s*)?[(\[]?\s*[A-J]\s*[)\]]?(?![A-Za-z'’])", re.IGNORECASE)
_ANOTHER_LETTER = re.compile(
    r"(?:\s*(?:[,;/&、和或|<>=]|\\to\b|\band\b|\bor\b)+\s*(?:(?:option|choice|选项?)\s*)?[(\[]?\s*[A-HJ]\s*[)\]]?"
    r"|\s*[(\[]\s*[A-J]\s*[)\]]|\s+[A-J]$)(?![A-Za-z'’])"
)
_BRACKETED = re.compile(r"[(\[]([A-J])[)\]]|(?:and|or|,|;)\s+([A-J])[.:)]\s")
_JOINED = re.compile(r"\s*(?:\b(?:and|or)\b|[和或])\s*\S")
_ONE_MORE = re.compile(r"\S\s*,\s*[(\[]?[A-J][)\]]?$")  # "green, D"
_MARKED = re.compile(r"(?:(?:option|choice)\s+)?[(\[]?\s*[A-Z](?:\s*[)\].:]|\s+-)", re.IGNORECASE)  # "A. ", not "A is"
_MATHEMATICS = re.compile(r"\\(?:left|right|,|;|!)|[$\s]")
_OWN_LETTER = re.compile(r"[(\[]?([A-Z])\s*[)\].:、]\s*(.+)", re.DOTALL)
_GLUED = re.compile(r"([A-J])\s*(?=[\d(\[\\$-])(.+)", re.DOTALL)  # "B(1) 0.5"
_SMALL_LETTER = re.compile(r"\(?([a-j])[).:]\s*(.+)", re.DOTALL)
_FORMULA_SIGN = re.compile(r"\\[()\[\]]")


@lru_cache(maxsize=4096)
def _option_texts(options: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The options in plain words, and these without spaces; cleaned as answers are."""
    plain = [plain_text(clean(_without_own_letter(option, index))) for index, option in enumerate(options)]
    return plain, [_MATHEMATICS.sub("", text) for text in plain]


@lru_cache(maxsize=4096)
def gold_options(answer: str, options: tuple[str, ...]) -> frozenset[int]:
    """The options that a gold answer stands for: those of its text, as written before cleaned, else its letter's.

    Several when options are equal; empty when it names none of them.
    """
    written = [plain_text(_without_own_letter(option, index)) for index, option in enumerate(options)]
    cleaned = _option_texts(options)[0]
    letter = _LETTER.fullmatch(answer.strip())
    if letter and ascii_uppercase.index(letter[1].upper()) < len(options) and not answer.strip().islower():
        return frozenset({ascii_uppercase.index(letter[1].upper())})
    for texts, wanted in ((written, plain_text(answer)), (cleaned, plain_text(clean(answer)))):
        found = frozenset(index for index, text in enumerate(texts) if text and text == wanted)
        if found:
            return found
    index = option_index(clean(answer), options)
    return frozenset() if index is None else frozenset({index})


def is_option_text(answer: str, options: tuple[str, ...]) -> bool:
    """Whether an answer is the text of one option, of more than a letter or digit, and nothing else.

    >>> is_option_text("I, II, and III.", ("I only", "I, II and III")), is_option_text("I", ("I", "II"))
    (True, False)
    """
    if len(answer) > MAX_TEXT or (answer.rstrip(" *").endswith("?") and not any("?" in option for option in options)):
        return False
    text = plain_text(clean(answer))
    return len(text) > 1 and [_listed(one) for one in _option_texts(options)[0]].count(_listed(text)) == 1


def _listed(text: str) -> str:
    """A list in words without the comma before its last "and"."""
    return text.replace(", and ", " and ")


def _without_own_letter(option: str, index: int) -> str:
    """Some data sets write the letter into the option's text: "(B) 12"."""
    match = _OWN_LETTER.fullmatch(option.strip())
    return match[2] if match and match[1] == ascii_uppercase[index % 26] else option


def option_index(answer: str, options: tuple[str, ...], similar: bool = False) -> int | None:
    """Which option an answer names: by its letter, by letter and text, or by its text alone; None if by none.

    A text that fits exactly one option counts before a letter that is part of a sentence. ``similar``: the most similar
    option stands for an answer that names none (the rule of MathVista).
    """
    answer = " ".join(_FORMULA_SIGN.sub(" ", _flat(answer)).replace("\\$", "$").split())
    letter = _LETTER.fullmatch(answer)
    if letter:
        index = ascii_uppercase.index(letter[1].upper())
        if not options or index < len(options):
            return index
    plain, dense = _option_texts(options)
    behind = _TEXT_AND_LETTER.fullmatch(answer)
    if behind and plain_text(behind[1]) in plain:
        answer = f"({behind[2]}) {behind[1]}"
    text = plain_text(answer)
    if plain.count(text) == 1:
        return plain.index(text)
    if ", and " in text and (listed := [_listed(one) for one in plain]).count(_listed(text)) == 1:
        return listed.index(_listed(text))
    beside = _beside_its_text(answer, options)
    if beside is not None:
        return beside
    if "-" in text and [one.replace("-", " ") for one in plain].count(text.replace("-", " ")) == 1 and is_words(text):
        return [one.replace("-", " ") for one in plain].index(text.replace("-", " "))
    both = _LETTER_AND_TEXT.fullmatch(answer)
    if both and not undecided(answer, options) and not _is_sentence(both, options):
        index = ascii_uppercase.index(both[1])
        if put_aside(plain_text(both[2]), plain[index] if index < len(options) else ""):
            return None
        if not options or index < len(options):
            return index
    behind = OPTION_BEHIND.fullmatch(answer)
    if behind and behind["letter"] in ascii_uppercase[: len(options)]:
        index = ascii_uppercase.index(behind["letter"])
        return index if names_only(plain_text(behind["said"]), index, plain) else None
    short = [core(option) for option in plain]
    if short.count(core(text)) == 1:
        return short.index(core(text))
    named = abbreviated(core(text), short)
    named = of_image(core(text), plain) if named is None else named
    if named is not None:
        return named
    named = _by_kind_or_only(core(text), short, plain)
    if named is not None:
        return named
    first, comma, rest = text.partition(",")
    if comma and plain.count(first) == 1 and not any(f" {option} " in f" {rest} " for option in plain if option):
        taken = yes_no(text) is None if first in YES_NO else qualifiers(rest) or _TAKEN_BACK.search(rest)
        return None if taken else plain.index(first)  # "Rome, Italy"
    inflected = [option for option in plain if option.isalpha() and _stem(core(text)) == _stem(option)]
    if len(inflected) == 1 and len(plain) > 1:
        return plain.index(inflected[0])  # "it increases" for "increase"
    glued = _GLUED.fullmatch(answer) or _SMALL_LETTER.fullmatch(answer)
    if glued and ascii_uppercase.index(glued[1].upper()) < len(options):
        index = ascii_uppercase.index(glued[1].upper())
        if _same(plain_text(glued[2]), plain[index]):
            return index
    squeezed = _MATHEMATICS.sub("", text)
    if squeezed and dense.count(squeezed) == 1:
        return dense.index(squeezed)
    if similar and options and text:
        scores = [SequenceMatcher(None, text[:500], option[:500]).ratio() for option in plain]
        best = scores.index(max(scores))
        return best if scores[best] >= SIMILAR and _says_the_same(text, plain[best]) else None
    return None


_LETTER_IN_DOLLARS = re.compile(r"^\$\s*([(\[]?[A-J][)\]]?)\s*\$(?=\s*\S)")  # "$ (B) $ 0.81"
_LETTER_AND_DOLLARS = re.compile(r"^\$\s*([(\[]?[A-J][)\]]?)(?=\s*\\\$)(.+)\$$")  # "$B \\$12,000$"


def _flat(answer: str) -> str:
    """An answer without commands around its words, and a letter in front without dollars."""
    flat = TEXT_COMMAND.sub(r"\1", TEXT_COMMAND.sub(r"\1", answer)) if "\\" in answer else answer
    if flat[:1] == "$":
        flat = _LETTER_AND_DOLLARS.sub(r"\1 \2", _LETTER_IN_DOLLARS.sub(r"\1", flat))
    return flat


def _by_kind_or_only(text: str, short: list[str], plain: list[str]) -> int | None:
    """The one option that an answer names but for the noun of its kind ("Dorian mode") or for "only" before it.

    "Clara" is "only Clara" where every other option with her name names somebody else too.
    """
    for noun in (" function", " law"):
        if short.count(text.removesuffix(noun)) == 1 and not any(noun.strip() in option for option in short):
            return short.index(text.removesuffix(noun))
    kinds, wanted = [kind_left_out(option) for option in short], kind_left_out(text)
    if kinds.count(wanted) == 1:
        index = kinds.index(wanted)
        if not any(one.startswith(f"{wanted} ") for i, one in enumerate(short) if i != index):
            return index
    only, text = [option.removeprefix("only ") for option in plain], text.removesuffix(" only")
    if not text or only.count(text) != 1 or not plain[only.index(text)].startswith("only "):
        return None
    index = only.index(text)
    others = [one for i, one in enumerate(plain) if i != index and re.search(rf"\b{re.escape(text)}\b", one)]
    return index if all(_TOGETHER.search(one) and not qualifiers(one) for one in others) else None


_TOGETHER = re.compile(r"\b(?:and|or|nor)\b|,")
_LETTER_THEN = re.compile(
    r"(?:(?:option|choice)\s+)?[(\[]?([A-J])[)\]]?(?:,|;|:|\s+[–—-]|\s*→)\s*(?:(?:i\.e\.|that is|namely"
    r"|which is),?\s+)?(\S.*)",
    re.IGNORECASE | re.DOTALL,
)


def _beside_its_text(answer: str, options: tuple[str, ...]) -> int | None:
    """The option of a letter that stands beside its own text: "D, the Mann-Whitney U test"."""
    both = _LETTER_THEN.fullmatch(answer)
    index = ascii_uppercase.index(both[1].upper()) if both else 0
    if both is None or index >= len(options):
        return None
    plain = _option_texts(options)[0]
    text, own = plain_text(both[2]), plain[index]
    same = text == own or (own and kind_left_out(text) == kind_left_out(own)) or _same(text, own)
    return index if same and plain.count(text) <= 1 else None


_INFLECTED = re.compile(r"(?:es|s|ed|d|ing|e)$")
_TAKEN_BACK = re.compile(r"\b(?:maybe|perhaps|possibly|probably|guess|unsure|but|other|rather|instead)\b|\?")
_OPPOSITE_OF = re.compile(r"(?:un|in|im|ir|il|dis|non|anti|de|mis|counter|a)-?")  # unstable, irrational
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")


def _stem(word: str) -> str:
    return _INFLECTED.sub("", word) if len(word) > 4 and word.isascii() and word.isalpha() else word


def _says_the_same(text: str, option: str) -> bool:
    """Whether an answer that is like an option holds the same numbers and the same "not", "more" and "less"."""
    if qualifiers(text) != qualifiers(option) or _NUMBERS.findall(text) != _NUMBERS.findall(option):
        return False
    pairs = ((a, b) for a in text.split() for b in option.split() if a != b)
    return not any(
        _OPPOSITE_OF.fullmatch(longer.removesuffix(word)) for a, b in pairs for longer, word in ((a, b), (b, a))
    )


def _same(text: str, own: str) -> bool:
    """Whether the words beside a letter are the option's own, by its text or its number."""
    if _MATHEMATICS.sub("", text) == _MATHEMATICS.sub("", own):
        return True
    a, b = (parse_number(part.strip("()")) for part in (text, own))
    return a is not None and b is not None and numbers_equal(b, a, Rule())


def _is_sentence(both: re.Match[str], options: tuple[str, ...]) -> bool:
    """Whether the "letter" of an answer is the first word of a sentence, as in "A dog barks" and "I am not sure"."""
    words = plain_text(both[2])
    if _MARKED.match(both[0]) or affirmed(words):
        return False
    if _TURNS.search(words) and not _own(both, words, options):
        return True  # "B seems right at first, but C is better"
    if not is_words(words):  # "A circle is shown, so it's B"
        return both[1] in "AI" and _SENTENCE_START.match(both[2]) is not None and not _own(both, words, options)
    index = ascii_uppercase.index(both[1])
    if index >= len(options):
        return True
    own = _option_texts(options)[0][index]
    if both[1] in "AI":  # the article and the pronoun
        return not (own.startswith(words) or words.startswith(own)) if own else True
    return not set(words.split()) & set(own.split()) - _COMMON_WORDS


_TURNS = re.compile(r"\b(?:but|however|though|although|yet|seems?|looks?|first|not)\b|n['’]t\b")
_SENTENCE_START = re.compile(r"[a-z]{2,}[\s;,:]")


def _own(both: re.Match[str], words: str, options: tuple[str, ...]) -> bool:
    """Whether the words beside a letter begin as its option's text does, or the other way round."""
    index = ascii_uppercase.index(both[1])
    own = _option_texts(options)[0][index] if index < len(options) else ""
    return bool(own) and (own.startswith(words) or words.startswith(own))


_COMMON_WORDS = frozenset(
    {"the", "a", "an", "of", "on", "in", "at", "to", "is", "are", "and", "or", "it", "for", "with", "by", "as", "not"}
)


@lru_cache(maxsize=1 << 12)
def undecided(answer: str, options: tuple[str, ...] = ()) -> bool:
    """Whether an answer names several letters ("B or C"), or a letter with the text of another option.

    A text that fits exactly one option is decided, whatever it looks like. Words or a number beside a letter are
    another option's where they have nothing in common with the letter's own.
    """
    answer = _flat(answer).strip()
    plain, dense = _option_texts(options)
    if plain.count(plain_text(answer)) == 1 or (", and " in answer and is_option_text(answer, options)):
        return False
    if NUMBERED.match(answer) and not any(option.strip().startswith("(") for option in options):
        return True  # "(1) 20 cm": of an option's number, or a factor
    if _beside_its_text(answer, options) is not None:
        return False
    both = _LETTER_AND_TEXT.fullmatch(answer)
    text = own = ""
    if both and ascii_uppercase.index(both[1]) < len(options):
        index = ascii_uppercase.index(both[1])
        text, own = plain_text(both[2]), plain[index]
        if text == own or _MATHEMATICS.sub("", text) == dense[index]:
            return False
    first = _FIRST_LETTER.match(answer)
    if first and (_ANOTHER_LETTER.match(answer, first.end()) or _JOINED.match(answer, first.end())):
        return True
    if _ONE_MORE.search(answer) or (first and other_named(answer, first, plain)):
        return True
    if first and any((mark[1] or mark[2]) not in first[0].upper() for mark in _BRACKETED.finditer(answer, first.end())):
        return True
    if not own:
        return False
    if text in plain:
        return True
    if is_words(text) and is_words(own) and _MARKED.match(answer):
        return len(text.split()) <= MAX_WORDS and not set(text.split()) & set(own.split())
    a, b = (_number_of(part) for part in (own, text))
    return a is not None and b is not None and not numbers_equal(a, b, Rule())


def _number_of(text: str) -> Number | None:
    """The number of a text, its unit left out."""
    measured = parse_quantity(text)
    return parse_number(measured.number if measured is not None else text.strip("° "))


def option_letters(answer: str) -> frozenset[str] | None:
    """The letters of an answer that names several options, such as "A, C"; None if it is not of that form."""
    answer = TEXT_COMMAND.sub(r"\1", answer).strip().strip("$")
    if not _SEVERAL_LETTERS.fullmatch(answer):
        return None
    return frozenset(re.findall(r"[A-J]", answer))


YES_NO = {
    "yes": True, "true": True, "correct": True, "right": True, "是": True, "对": True, "正确": True, "是的": True,
    "\\checkmark": True, "\\sqrt": True, "\\times": False,  # marks of Chinese true-or-false questions
    "no": False, "false": False, "incorrect": False, "wrong": False, "否": False, "不是": False, "不": False,
    "错": False, "错误": False, "不对": False, "不正确": False,
}  # fmt: skip
_LETTERS = {"t": True, "f": False, "y": True, "n": False}  # where the data set says that the answer is one of two
_FIRST_WORD = re.compile(
    r"(yes|no|true|false|是的|不是)(?=[,.;:，。!]|$|\s+(?:it|he|she|they|the|there|this|that|i|we|you|because|a|an)\b|\s+[-–—]\s)"
)

_DOUBT = re.compile(
    r"\?|\b(?:but|actually|wait|however|although|though|except|unless|maybe|perhaps|depends|sorry|not always|only if)\b"
)
_CONDITION = re.compile(  # "yes, if n is even", "yes, for n = 2", "yes, partly": right behind the word
    r"[\s,.;:–—-]*(?:(?:but|and|at least|or at least)\s+)?"
    r"(?:if|when(?:ever)?|where|provided|providing|assuming|supposing|unless|except|only|(?:as|so) long as"
    r"|once|until|while"
    r"|for(?! (?:all|any|every|each|both|example|instance)\b)|in(?! (?:fact|all|every|each|both|general|this|the)\b)"
    r"|with|within|at|on|under|over|to|up to|by|apart|after|before|most|some|one|few|part|half"
    r"|partly|partially|mostly|mainly|largely|almost|nearly|approximately|roughly|about"
    r"|sometimes|often|usually|occasionally|rarely|maybe|perhaps|probably|possibly|likely|apparently|not)\b"
)
_IF = re.compile(r"\bif\b(?! and only if)|\bonly\W*$|[,;]\s*(?:when(?:ever)?|only|provided|as long as|assuming)\b")
_TRUTH = re.compile(
    rf"{CERTAINLY}\s+(?=(?:yes|no|true|false)$)|(?:(?:so|hence|thus|therefore)\W+)?"
    r"(?:it|this|that|(?:the )?(?:given |above )?(?:statement|claim|assertion|proposition))"
    r" (?:is|must be) (?=(?:true|false|correct|incorrect)$)"
)
_OPPOSITE = {
    True: re.compile(r"\b(?:no|false|incorrect|wrong)\b|不是|否|错"),
    False: re.compile(r"\b(?:yes|true|correct|right)\b|是的"),
}
_EITHER = r"(?:yes|no|true|false|是的?|不是|否)"
_BOTH = re.compile(rf"[\s,.;:，。!]*(?:(?:and|or|和|或|/)\s*{_EITHER}(?!\w)|{_EITHER}\W*$)")  # "yes and no"


def yes_no(answer: str, letters: bool = False) -> bool | None:
    """True, False, or None when the answer is neither; with ``letters`` T, F, Y and N count.

    >>> yes_no("Yes, it is"), yes_no("Yes, but no"), yes_no("Yes, if n is even"), yes_no("It is true")
    (True, None, None, True)
    """
    words = _TRUTH.sub("", plain_text(answer))
    if words in YES_NO:
        return YES_NO[words]
    if letters and words in _LETTERS:
        return _LETTERS[words]
    first = _FIRST_WORD.match(words)
    if first is None or _BOTH.match(words, first.end()):
        return None
    said = YES_NO[first[1]]
    rest = words[first.end() :]
    if _CONDITION.match(rest) or _IF.search(rest):
        return None
    return None if _DOUBT.search(rest) or _OPPOSITE[said].search(rest) else said
