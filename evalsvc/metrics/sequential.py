"""Repeated tests of a difference while data arrive, with no more false alarms than one test.

A difference that is tested eight times, each time against 1.96 of its standard errors, is called significant in one
case of five although there is none. Sequential tests spend one test's error over the looks.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evalsvc.errors import InvalidRequest
from evalsvc.spec.looks import DEFAULT_SPENDING, Spending

Array = NDArray[np.float64]

NODES = 400
"""Number of quadrature nodes per look, which the tails of the early boundaries need."""

WIDEST = 40.0
"""Largest boundary in standard deviations: beyond, the tail of a normal distribution underflows float64."""


def level_of(standard_errors: float) -> float:
    """Return the two-sided error of one test at this number of standard errors: 0.05 for 1.96, 0.0027 for 3."""
    return math.erfc(standard_errors / math.sqrt(2))


def tail_of(standard_errors: float) -> float:
    """Return the one-sided error of one test at this number of standard errors: 0.0228 for 2, 0.00135 for 3."""
    return level_of(standard_errors) / 2


def spent(level: float, fraction: float, spending: Spending = DEFAULT_SPENDING) -> float:
    """Return the part of the two-sided error `level` that may be spent when `fraction` of all data has arrived.

    O'Brien and Fleming's schedule keeps nearly all of the error for the end, so that the last look is hardly stricter
    than a single test; Pocock's schedule spends evenly. For each of the two sides, α = level / 2:

        obrien-fleming  α(t) = 2 - 2 Φ(z / √t),  Φ(z) = 1 - α / 2
        pocock          α(t) = α ln(1 + (e - 1) t)

    Source: K. K. G. Lan, D. L. DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70 (1983), α₁*
    and α₂*.
    """
    if spending == "pocock":
        return level * math.log1p((math.e - 1) * fraction)
    return 2 * math.erfc(_upper_point(level / 4) / math.sqrt(2 * fraction))


@lru_cache(maxsize=256)
def boundaries(level: float, fractions: tuple[float, ...], spending: Spending = DEFAULT_SPENDING) -> tuple[float, ...]:
    """Return the number of standard errors that a difference must exceed at each look, so that all looks spend `level`.

    The estimates at the looks are jointly normal with independent increments, as means over growing samples are. At the
    boundary of a look, the probability of a first crossing there is the increase of `spent` since the look before.
    Intervals of this many standard errors cover at all looks together with probability 1 - level. A boundary is
    infinite where the probability underflows float64.

    Sources: P. Armitage, C. McPherson, B. Rowe, Repeated significance tests on accumulating data, JRSS A 132 (1969),
    for the recursion; C. Jennison, B. Turnbull, Interim analyses: the repeated confidence interval approach, JRSS B 51
    (1989).
    """
    if not 0 < level < 1:
        raise InvalidRequest(f"the level is {level:g}; give a number between 0 and 1")
    if not fractions or list(fractions) != sorted(set(fractions)) or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise InvalidRequest(f"the looks are at {list(fractions)}; give growing fractions of the data, at most 1")
    bounds: list[float] = []
    walk = _Walk()
    before = 0.0
    for fraction in fractions:
        total = spent(level, fraction, spending) / 2
        bounds.append(walk.advance(fraction, total - before))
        before = total
    return tuple(bounds)


class _Walk:
    """Brownian motion that stops at the boundaries: the density of the paths that have not crossed."""

    def __init__(self) -> None:
        self._time = 0.0
        self._places: Array = np.zeros(1)
        self._masses: Array = np.ones(1)

    def advance(self, time: float, chance: float) -> float:
        """Advance to `time`; return the boundary, in standard deviations, that is crossed upwards with `chance`."""
        step, scale = math.sqrt(time - self._time), math.sqrt(time)
        boundary = self._crossed_with(chance, step, scale)
        half = min(boundary, WIDEST) * scale
        nodes, weights = _quadrature(NODES)
        places = nodes * half
        gaps = (places[:, None] - self._places[None, :]) / step
        density = np.exp(-gaps * gaps / 2) @ self._masses / (step * math.sqrt(2 * math.pi))
        self._time, self._places, self._masses = time, places, density * weights * half
        return boundary

    def _crossed_with(self, chance: float, step: float, scale: float) -> float:
        low, high = 0.0, WIDEST
        if self._beyond(WIDEST * scale, step) >= chance:
            return math.inf
        while high - low > 1e-10:
            middle = (low + high) / 2
            low, high = (middle, high) if self._beyond(middle * scale, step) > chance else (low, middle)
        return high

    def _beyond(self, place: float, step: float) -> float:
        tails = [math.erfc(gap) for gap in ((place - self._places) / (step * math.sqrt(2))).tolist()]
        return float(self._masses @ np.array(tails)) / 2


_quadrature = lru_cache(maxsize=1)(np.polynomial.legendre.leggauss)


def _upper_point(tail: float) -> float:
    low, high = 0.0, WIDEST
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) / 2 > tail else (low, middle)
    return high
