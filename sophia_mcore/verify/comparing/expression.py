r"""LaTeX expressions as trees: the small grammar that final answers are mostly written in.

What is written in two ways that mean different things (1/2x, sin^{-1} x) is left to others, as is all that is not here.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

# ("number", Fraction) ("name", str) ("+", a, b, ...) ("*", a, b) ("neg", a) ("call", function, a) ("root", n, a) ...
Node = tuple[Any, ...]

MAX_SYMBOLS = 2_000
MAX_DIGITS = 2_000  # of one number; Python turns no more than 4,300 into an integer
CONSTANTS = frozenset({r"\pi", "e", "i"})
FUNCTIONS = frozenset(
    {
        *(r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc", r"\arcsin", r"\arccos", r"\arctan"),
        *(r"\sinh", r"\cosh", r"\tanh", r"\exp", r"\ln"),
    }
)
GREEK = frozenset(
    "\\" + name
    for name in (
        *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu"),
        *(
            "nu",
            "xi",
            "rho",
            "sigma",
            "tau",
            "phi",
            "varphi",
            "chi",
            "psi",
            "omega",
            "Delta",
            "Omega",
            "Sigma",
            "Phi",
            "hbar",
            "ell",
        ),
    )
)
_SYMBOL = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\.|[A-Za-z]|\S)")
_NAMES = re.compile(r"(?<![\\a-zA-Z])(?:sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|frac|pi|arcsin|arccos|arctan|deg)")
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*d(?![a-zA-Z]*[+-])")
_UPRIGHT = re.compile(r"\\(?:mathrm|mathit|mathbf|text|rm|operatorname)\s*\{\s*([A-Za-z])\s*\}")


_INDEX = re.compile(  # V_{\mathrm{th}}
    r"_\s*\{\s*\\(?:mathrm|mathit|mathbf|text|rm|operatorname)\s*\{\s*([A-Za-z0-9][A-Za-z0-9 ,]*?)\s*\}\s*\}"
)


def _is_number(symbol: str) -> bool:
    return symbol[:1].isdecimal() or (symbol[:1] == "." and symbol != ".")


class Unsupported(Exception):
    """Outside the grammar."""


class Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str) -> None:
        if _NAMES.search(text) or _DERIVATIVE.search(text):
            raise Unsupported
        text = _UPRIGHT.sub(r" \1 ", _INDEX.sub(r"_{\1}", text)) if "\\" in text else text
        self.symbols = _SYMBOL.findall(text)
        if len(self.symbols) > MAX_SYMBOLS:
            raise Unsupported
        self.position = 0
        self.bars = 0  # open absolute values
        self.decimal = False
        self.in_function = False  # where an angle in degrees is not the same as its number

    def peek(self) -> str:
        return self.symbols[self.position] if self.position < len(self.symbols) else ""

    def take(self, *expected: str) -> str:
        symbol = self.peek()
        if not symbol or (expected and symbol not in expected):
            raise Unsupported
        self.position += 1
        return symbol

    def parse(self) -> Node:
        node = self.sum()
        if self.peek():
            raise Unsupported
        return node

    def sum(self) -> Node:
        terms = [self.product()]
        while self.peek() in ("+", "-"):
            sign = self.take()
            terms.append(self.product() if sign == "+" else ("neg", self.product()))
        return terms[0] if len(terms) == 1 else ("+", *terms)

    def product(self) -> Node:
        node = self.run()
        while self.peek() in ("*", "/", r"\cdot", r"\times", r"\div"):
            operator = self.take()
            start = self.position
            right = self.run()
            if operator in ("/", r"\div"):
                if right[0] == "*" and self.symbols[start] not in ("(", "{"):
                    raise Unsupported  # 1/2x is read in two ways
                node = ("/", node, right)
            else:
                node = ("*", node, right)
        return node

    def run(self) -> Node:
        """Factors side by side, with a sign."""
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        node = self.factors()
        return ("neg", node) if negative else node

    def factors(self) -> Node:
        node = self.factor()
        if node[0] == "number" and self.peek() == r"\frac" and node[1].denominator == 1:
            part = self.factor()
            if part[0] == "/" and part[1][0] == "number" == part[2][0]:
                node = ("+", node, part)  # a mixed number
            else:
                node = ("*", node, part)
        while self._starts_factor():
            node = ("*", node, self.factor())
        return node

    def _starts_factor(self) -> bool:
        symbol = self.peek()
        if not symbol:
            return False
        if _is_number(symbol):
            raise Unsupported  # a number after a factor: x2, 2 3
        if symbol == "|":
            return not self.bars
        if self._is_argument():
            raise Unsupported  # p(0): a value of a function?
        return (
            symbol in ("(", "[", "{", r"\frac", r"\sqrt", r"\binom", r"\log")
            or self._is_name(symbol)
            or symbol in FUNCTIONS
        )

    def _is_argument(self) -> bool:
        """Whether a number in round brackets follows a name."""
        before, *here = self.symbols[self.position - 1 : self.position + 3]
        inside = _is_number(here[1]) if len(here) == 3 and here[0] + here[2] == "()" else False
        return inside and before not in CONSTANTS and self._is_name(before)

    @staticmethod
    def _is_name(symbol: str) -> bool:
        return symbol in CONSTANTS or symbol in GREEK or (len(symbol) == 1 and symbol.isalpha() and symbol.isascii())

    def factor(self) -> Node:
        node = self.base()
        powered = False
        while self.peek() in ("^", "!"):
            if powered:
                raise Unsupported  # x^2^3 and x^2! are read in two ways
            if self.take() == "!":
                node = ("!", node)
            elif self._degree_sign():
                if self.in_function:
                    node = ("/", ("*", node, ("name", r"\pi")), ("number", Fraction(180)))
            else:
                node, powered = ("^", node, self.exponent()), True
        return node

    def _degree_sign(self) -> bool:
        """Take the \\circ of an exponent if it is one."""
        for sign in ([r"\circ"], ["{", r"\circ", "}"]):
            if self.symbols[self.position : self.position + len(sign)] == sign:
                self.position += len(sign)
                return True
        return False

    def exponent(self) -> Node:
        symbol = self.peek()
        if symbol == "{":
            return self.group("{", "}")
        if symbol == "(":
            return self.group("(", ")")
        if symbol == "-":
            self.take()
            return ("neg", self.number())
        if _is_number(symbol):
            return self.number()
        if self._is_name(symbol):
            return ("name", self.take())
        raise Unsupported

    def number(self) -> Node:
        symbol = self.take()
        if not _is_number(symbol) or len(symbol) > MAX_DIGITS:
            raise Unsupported
        self.decimal = self.decimal or "." in symbol
        return ("number", Fraction(symbol))

    def group(self, left: str, right: str) -> Node:
        self.take(left)
        node = self.sum()
        self.take(right)
        return node

    def base(self) -> Node:
        symbol = self.peek()
        if not symbol:
            raise Unsupported
        if _is_number(symbol):
            return self.number()
        if symbol == "(":
            return self.group("(", ")")
        if symbol == "{":
            return self.group("{", "}")
        if symbol == "[":
            return self.square()
        if symbol == "|" and not self.bars:
            self.bars += 1
            node = self.group("|", "|")
            self.bars -= 1
            return ("call", "|", node)
        if symbol == r"\lfloor" or symbol == r"\lceil":
            return ("call", symbol, self.group(symbol, symbol.replace(r"\l", r"\r")))
        if symbol == r"\frac":
            self.take()
            return ("/", self.argument(), self.argument())
        if symbol == r"\binom":
            self.take()
            return ("binom", self.argument(), self.argument())
        if symbol == r"\sqrt":
            return self.root()
        if symbol == r"\log" or symbol in FUNCTIONS:
            return self.function()
        if self._is_name(symbol):
            return self.name()
        raise Unsupported

    def square(self) -> Node:
        """A sum in square brackets; around anything else they may round it down."""
        node = self.group("[", "]")
        if node[0] != "+":
            raise Unsupported
        return node

    def argument(self) -> Node:
        """A braced group or a single character, as LaTeX reads arguments."""
        if self.peek() == "{":
            return self.group("{", "}")
        symbol = self.peek()
        if symbol.isdecimal() and len(symbol) > 1:  # \frac12: split the symbol
            self.symbols[self.position : self.position + 1] = [symbol[0], symbol[1:]]
            symbol = symbol[0]
        if symbol.isdecimal():
            return self.number()
        if self._is_name(symbol):
            return ("name", self.take())
        raise Unsupported

    def root(self) -> Node:
        self.take(r"\sqrt")
        degree: Node = ("number", Fraction(2))
        if self.peek() == "[":
            degree = self.group("[", "]")
        if self.peek() == "(":
            return ("root", degree, self.group("(", ")"))
        return ("root", degree, self.argument())

    def name(self) -> Node:
        name = self.take()
        if self.peek() == "_":
            self.take()
            if self.peek() == "{":
                start = self.position
                while self.take() != "}":
                    pass
                name += "_" + "".join(self.symbols[start + 1 : self.position - 1])
            else:
                name += "_" + self.take()
        return ("name", name)

    def function(self) -> Node:
        name = self.take()
        base: Node | None = None
        power: Node | None = None
        if name == r"\log" and self.peek() == "_":
            self.take()
            base = self.argument()
        if self.peek() == "^":
            self.take()
            power = self.exponent()
            if power[0] != "number":
                raise Unsupported  # sin^{-1} is not 1/sin
        outside, self.in_function = self.in_function, True
        if self.peek() == "(":
            argument = self.group("(", ")")
        elif self.peek() == "{":
            argument = self.group("{", "}")
        else:
            argument = self.simple_product()
        self.in_function = outside
        if self.peek() in ("^", "("):
            raise Unsupported  # sin(x)^2 and sin x(y) are read in two ways
        node: Node = ("log", base, argument) if name == r"\log" else ("call", name, argument)
        return ("^", node, power) if power is not None else node

    def simple_product(self) -> Node:
        node = self.factor()
        if node[0] not in ("number", "name", "^", "/", "root"):
            raise Unsupported
        while self._is_name(self.peek()):
            node = ("*", node, self.factor())
        return node
