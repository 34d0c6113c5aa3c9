"""What is no answer: a further question that a model makes up, options repeated, a label in front, giving up."""

from __future__ import annotations

import re
from string import ascii_uppercase

from sophia_mcore.verify.text.normalize import clean, plain_text

LISTED_CHARACTERS = 80  # a longer line is more than an option repeated
_QUESTION = re.compile(
    r"^[ \t]*[#*_ ]{0,6}(?:(?:new|next)[ \t]+)?(?:question|user|human)\b[ \t]*\d{0,3}[*_]{0,3}[ \t]*(?:[:：]|$)",
    re.I | re.M,
)
_ANNOUNCED = re.compile(
    r"\banswer\b[^\n.]{0,40}?(?:\bis\b|[:：])\s*\S|\b(?:option|choice)\b[^\n.]{0,20}?\bis\b|\\boxed|答案", re.IGNORECASE
)
_LISTED = re.compile(r"[ \t]*(?:\((?P<bracket>[A-J])\)|(?P<plain>[A-J])[).:])[ \t]*(?P<text>\S[^\n]*?)[ \t]*")
_JUDGED = re.compile(
    r"[✓✔✅✗✘❌→]|\b(?:is|are|was|correct|right|wrong|true|false|not|because|since|so|answer|fits?|fails?|too)\b|符合|正确|错|对",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\s*A:\s+(?P<said>\S[^\n]*)")
_GIVES_UP = re.compile(
    r"\b(?:cannot|can not|can['’]t|could not|(?:am|are|is) (?:not able|unable) to|unable to|(?:im"
    r"|not )possible to)\s+(?:be\s+)?"
    r"(?:\w+ly\s+)?(?:determined?|provided?|give|given|answer(?:ed)?|say|tell|conclude|choose|decide|identify|identified|select)\b",
    re.IGNORECASE,
)
_SENTENCE_START = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n")


def own_answer(text: str) -> str:
    r"""The text up to a further question that stands behind an announced answer.

    >>> own_answer("The answer is 5.\n\nQuestion: How many?\nAnswer: 7"), own_answer("Question: Why?\nAnswer: 5")
    ('The answer is 5.', 'Question: Why?\nAnswer: 5')
    """
    lower = text.lower()
    if "question" not in lower and "user" not in lower and "human" not in lower:
        return text
    answered = [found.end() for pattern in (_ANNOUNCED, _CONCLUDED) if (found := pattern.search(text))]
    further = _QUESTION.search(text, min(answered)) if answered else None
    return text[: further.start()].rstrip() if further else text


_CONCLUDED = re.compile(r"^(?:so|thus|hence|therefore|in summary)\b[^\n]*\d[^\n]*$", re.I | re.M)


def without_listed(text: str) -> str:
    r"""The text without the options that it ends with, from the first on, where nothing is said of any of them.

    >>> without_listed("Which one?\n(A) 3\n(B) 4"), without_listed("A. 3 is wrong\nB. 4")
    ('Which one?', 'A. 3 is wrong\nB. 4')
    """
    lines = text.rstrip().split("\n")
    last, letters = len(lines), []
    while last and (not lines[last - 1].strip() or (found := _LISTED.fullmatch(lines[last - 1]))):
        if lines[last - 1].strip() and found:
            if len(found["text"]) > LISTED_CHARACTERS or _JUDGED.search(found["text"]):
                break
            letters.append(found["bracket"] or found["plain"])
            if letters[-1] == "A":
                last -= 1
                break
        last -= 1
    letters.reverse()
    listed = len(letters) > 1 and "".join(letters) == ascii_uppercase[: len(letters)]
    return "\n".join(lines[:last]).rstrip() if listed else text


def without_label(text: str, options: tuple[str, ...]) -> str:
    """The text without "A:" in front that stands for "answer": what is said behind it is not the option A.

    >>> without_label("A: The length is 6.", ("4", "6")), without_label("A: 4", ("4", "6"))
    ('The length is 6.', 'A: 4')
    """
    label = _LABEL.match(text) if options else None
    if label is None:
        return text
    said, own = (plain_text(clean(part)) for part in (label["said"].rstrip(" ."), options[0]))
    words = len(said.split()) > 1 or re.fullmatch(r"[(\[]?[A-J][)\]]?[.]?", label["said"].strip()) is not None
    return text[label.start("said") :] if words and not said.startswith(own) else text


def gives_up(text: str, position: int, answer: str, options: tuple[str, ...]) -> bool:
    """Whether the last sentence, behind an answer at ``position``, says that there is none (and no option does).

    >>> gives_up("If so, the answer is A. Without data we cannot determine it.", 21, "A", ())
    True
    """
    last = max((match.end() for match in _SENTENCE_START.finditer(text.rstrip())), default=0)
    if position >= last or _GIVES_UP.search(text, last) is None or _GIVES_UP.search(answer):
        return False
    return not any(_OPEN.search(option) for option in options)


_OPEN = re.compile(r"\b(?:cannot|not|insufficient|none|unknown|no |neither)\b|n['’]t\b", re.IGNORECASE)
