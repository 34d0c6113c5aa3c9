"""Typed characters in the one notation that the other modules read: LaTeX and ASCII."""

from __future__ import annotations

import re
import unicodedata

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ɛ": "epsilon", "ϵ": "epsilon",
    "ζ": "zeta", "η": "eta",
    "θ": "theta", "ϑ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "π": "pi", "Γ": "Gamma",
    "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Π": "Pi",
}  # fmt: skip
_FRACTIONS = {
    "½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅖": "25", "⅗": "35", "⅘": "45", "⅙": "16",
    "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58", "⅞": "78",
}  # fmt: skip
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "﹣": "-", "‐": "-", "‑": "-", "\u3000": " ", "\xa0": " ", "\u202f": " ",
    "\u2009": " ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "√": r"\sqrt ",
    "∛": r"\sqrt[3] ", "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≧": r"\ge ",
    "≠": r"\ne ", "∞": r"\infty ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∅": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "≈": r"\approx ", "∠": r"\angle ",
    "△": r"\triangle ", "∴": r"\therefore ", "⇒": r"\Rightarrow ", "→": r"\to ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "、": ",", "。": ".", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "\u200b": "", "\ufeff": "", "\u2061": "",
    "【": "[", "】": "]", "∶": ":", "⁄": "/", "∕": "/", "⟂": r"\perp ", "⊥": r"\perp ", "∥": r"\parallel ",
    "✓": r"\checkmark ", "✔": r"\checkmark ", "✅": "", "✗": r"\times ", "✘": r"\times ", "…": r"\ldots ",
    "≌": r"\cong ", "≅": r"\cong ", "∽": r"\sim ", "ℝ": r"\mathbb{R} ", "♯": "#", "¬": r"\lnot ",
    "掳": r"^\circ ",  # ° misread
}  # fmt: skip
_CHARACTERS: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width forms
_CHARACTERS |= {ord(c): rf"\{name} " for c, name in _GREEK.items()}
_CHARACTERS |= {ord(c): rf"\frac{digits} " for c, digits in _FRACTIONS.items()}
_CHARACTERS |= {ord(c): text for c, text in _SIGNS.items()}

_RADICAND = re.compile(r"([√∛])\s*(?:\{\s*(\d+)\s*\}|(\d+(?:\.\d+)?))")
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ]+[⁺⁻]?|[⁺⁻]")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_SMALL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ⁺⁻₀₁₂₃₄₅₆₇₈₉", "0123456789n+-0123456789")
_TO_ONE = re.compile(r"(?<=\d)\s*比\s*(?=\d)")  # 2比1
_TILDE = re.compile(r"(?<=\d)\s*[~～〜∼]\s*(?=\d)")


def typed(text: str) -> str:
    r"""Characters beyond ASCII as LaTeX or ASCII; the digits behind a root sign are all under it.

    >>> typed("5√13"), typed("⅔"), typed("x³"), typed("3∶4")
    ('5\\sqrt{13}', '\\frac23 ', 'x^3', '3:4')
    """
    text = unicodedata.normalize("NFC", text)
    text = _RADICAND.sub(lambda match: rf"{_SIGNS[match[1]].strip()}{{{match[2] or match[3]}}}", text)
    text = _SUPERSCRIPT.sub(lambda match: _small("^", match[0]), text)
    text = _SUBSCRIPT.sub(lambda match: _small("_", match[0]), text)
    return text.translate(_CHARACTERS)


def _small(sign: str, characters: str) -> str:
    plain = characters.translate(_SMALL)
    return f"{sign}{plain}" if len(plain) == 1 else f"{sign}{{{plain}}}"


def ranges_marked(text: str) -> str:
    """With a hyphen for the tilde of a range such as 10~20, and a colon for 比; elsewhere a tilde is LaTeX's space."""
    return _TO_ONE.sub(":", _TILDE.sub("-", text))


_PROGRAM = re.compile(r"(?<![\\A-Za-z])(?:(pi)(?![A-Za-z])|(sqrt)\s*(?=[({])|sqrt\s*(\d+(?:\.\d+)?))")
_ROOT = re.compile(r"(\\sqrt)\s*(\[\d+\])?\s*(\d\d+(?:\.\d+)?|\d\.\d+)")
_FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(sin|cos|tan|arcsin|arccos|arctan|ln|log|exp)(?=\s*\(|\s*\d|\s+\\|\s+[a-z](?![A-Za-z]))"
)
_ARROW = re.compile(r"(?<![<=-])-{1,2}>")
_COMPARISON = re.compile(r"[<>]=(?![=>])")
_COMPARISONS = {"<=": r"\le ", ">=": r"\ge "}


def program_names(text: str) -> str:
    r"""Names as programs write them, as LaTeX.

    >>> program_names("sqrt(2)/pi"), program_names("x>=3")
    ('\\sqrt(2)/\\pi ', 'x\\ge 3')
    >>> program_names(r"2\sqrt 95")  # LaTeX itself takes one digit; nobody means that
    '2\\sqrt{95}'
    """
    if "pi" in text or "sqrt" in text:
        text = _PROGRAM.sub(lambda m: r"\pi " if m[1] else r"\sqrt" if m[2] else rf"\sqrt{{{m[3]}}}", text)
        text = _ROOT.sub(r"\1\2{\3}", text)
    if "(" in text or " " in text:
        text = _FUNCTION.sub(r"\\\1", text)
    if "->" in text:
        text = _ARROW.sub(r" \\to ", text)
    if "=" in text:
        text = _COMPARISON.sub(lambda match: _COMPARISONS[match[0]], text)
    return text
