r"""One way of writing the marks around formulas and values: "\(x\)" is "$x$", "$x =$ **5**" is "$x = 5$"."""

from __future__ import annotations

import re

_BRACKET = re.compile(r"(?<!\\)\\[()]")
_BARE_DOLLAR = re.compile(r"(?<!\\)\$")
_JOINED = re.compile(r"(?<=[^\s$])[ ]*(?<!\\)\$[ ]*=[ ]*\$(?=[^\s$])")  # "$5!$ = $120$" is one chain
_BOLD_BEHIND = re.compile(r"=[ ]*(?<!\\)\$[ ]*\*\*(?P<value>[^*$\n]{1,40})\*\*")  # "$x = 3 + 4 =$ **7**"
_BOLD_LAST = re.compile(r"=[ ]*\*\*(?P<value>[^*$\n=]{1,40})\*\*(?=[\s.]|$)")  # "x = 3 + 4 = **7**"
_BOLD_YES_NO = re.compile(r"^\*\*(?P<word>yes|no|true|false)(?P<stop>[.,;!]?)\*\*(?=[\s,.;!]|$)", re.I | re.M)
_POWER_APART = re.compile(r"\$\s*(?P<unit>[mcdk]?m|in|ft|units?)\s*\$\^\{?(?P<power>[23])\}?\$")  # "$21\\pi$ cm$^2$"
_SAID = r"(?P<said>(?:final\s+)?answer\s*[:：]\s*[^\n{}\"'“”]{1,60}?)"
_QUOTED = re.compile(
    rf"(?<!\w)(?:\\(?:text|textbf|mathrm|mathbf)\{{\s*{_SAID}\s*\}}"
    rf"|[\"'“‘]{_SAID.replace('said', 'quoted')}[\"'”’](?!\w))",
    re.I,
)


def plain_marks(text: str) -> str:
    r"""A response with dollars around its formulas, bold values behind an equation inside of it, "yes" not in bold.

    Brackets stay where a dollar may be one of money.

    >>> plain_marks(r"So \(x = 3\)."), plain_marks("$x = 3 + 4 =$ **7**"), plain_marks("**Yes**, it is.")
    ('So $x = 3$.', '$x = 3 + 4 = 7$', 'Yes, it is.')
    """
    if "nswer" in text:
        text = _QUOTED.sub(lambda match: match["said"] or match["quoted"], text)
    if "\\(" in text and _BARE_DOLLAR.search(text) is None:
        text = _BRACKET.sub("$", text)
    if "$" in text and "=" in text:
        text = _JOINED.sub(" = ", text)
        text = _BOLD_BEHIND.sub(r"= \g<value>$", text) if "**" in text else text
    if "**" in text and "=" in text:
        text = _BOLD_LAST.sub(r"= \g<value>", text)
    if "$^" in text:
        text = _POWER_APART.sub(r"\\text{ \g<unit>}^\g<power>$", text)
    return _BOLD_YES_NO.sub(r"\g<word>\g<stop>", text) if "**" in text else text
