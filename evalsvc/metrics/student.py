"""Student's t distribution, whose tail says how many standard errors a mean of few values must be away from zero."""

from __future__ import annotations

import math

WIDEST = 1e6
"""Standard errors beyond which nothing is asked for."""


def upper_tail(t: float, dof: int) -> float:
    """P(T > t) for t ≥ 0 and whole degrees of freedom.

    Source: Abramowitz, Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: finite sums in θ = atan(t / √ν).
    The sum is subtracted from 1, so nothing below about 1e-15 can be told.
    """
    angle = math.atan(t / math.sqrt(dof))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = dof % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for index in range(1 + odd, dof, 2):
        total += term
        term *= square * index / (index + 1)
    central = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max((1 - central) / 2, 0.0)


def critical_value(level: float, dof: int) -> float:
    """The t whose upper tail is `level`, at most `WIDEST`; infinity without degrees of freedom."""
    if dof < 1:
        return math.inf
    low, high = 0.0, WIDEST
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, dof) > level else (low, middle)
    return high
