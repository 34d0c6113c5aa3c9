"""How a plan prints its figures."""

from __future__ import annotations


def number(value: float, digits: int) -> str:
    """With `digits` decimals; a value that would round to zero gets one significant digit.

    >>> number(1234.5678, 1), number(0.004, 1)
    ('1,234.6', '0.004')
    """
    return f"{value:,.{digits}f}" if value < 1e-9 or value >= 10**-digits / 2 else f"{value:.1g}"
