"""Student's t distribution: the number of standard errors by which a mean of few values must differ from zero."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

WIDEST = 1e6
"""Largest critical value, in standard errors."""

TERMS = 10_000
"""Largest number of terms of the continued fraction; a few dozen suffice."""


def upper_tail(t: float, dof: float) -> float:
    """Return P(T > t) for t ≥ 0 and `dof` > 0 degrees of freedom, whole or not, with a relative error below 1e-7.

    P(T > t) = ½ I_x(ν / 2, ½) with x = ν / (ν + t²) and I the regularised incomplete beta function.

    Source: NIST Digital Library of Mathematical Functions, 8.17.5 (symmetry) and 8.17.22 (continued fraction).
    """
    if math.isinf(t):
        return 0.0
    if math.isinf(dof):
        return math.erfc(t / math.sqrt(2)) / 2
    square = t * t
    x, y = dof / (dof + square), square / (dof + square)
    a, b = dof / 2, 0.5
    if x < (a + 1) / (a + b + 2):
        return _beta_by_fraction(x, y, a, b) / 2
    return (1 - _beta_by_fraction(y, x, b, a)) / 2


def _beta_by_fraction(x: float, y: float, a: float, b: float) -> float:
    """Return I_x(a, b), where y = 1 − x, by the continued fraction with Lentz's method."""
    if x == 0:
        return 0.0
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = fraction
        for term in (even, odd):
            d, c = 1 / (1 + term * d or tiny), 1 + term / c or tiny
            fraction *= c * d
        if abs(fraction - before) <= 1e-15 * abs(fraction):
            break
    return math.exp(scale) * fraction / a


@lru_cache(maxsize=4096)
def critical_value(level: float, dof: float) -> float:
    """Return the t whose upper tail is `level`, at most `WIDEST`; infinity with less than one degree of freedom.

    `level` is in [0, ½], and infinity is the result for 0.
    """
    if dof < 1 or level <= 0:
        return math.inf
    if math.isinf(dof):
        return NormalDist().inv_cdf(1 - level) if level > 1e-9 else _bisect(level, dof)
    return _bisect(level, dof)


def _bisect(level: float, dof: float) -> float:
    low, high = 0.0, 1.0
    while high < WIDEST and upper_tail(high, dof) > level:
        low, high = high, 2 * high
    high = min(high, WIDEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, dof) > level else (low, middle)
    return high
