"""Testing a difference several times while the data come in, without more false alarms than one test would give.

A difference that is looked at eight times, each time against 1.96 of its standard errors, is called significant in one
case of five although there is none. Here the error that a test may make is spent over the looks.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evalsvc.errors import InvalidRequest

Array = NDArray[np.float64]

Spending = Literal["obrien-fleming", "pocock"]
"""How the error is spent over the looks."""

DEFAULT_SPENDING: Spending = "obrien-fleming"
"""Where nothing else is said."""

NODES = 400
"""Of the quadrature per look; the tails of the early boundaries ask for so many."""

WIDEST = 40.0
"""In standard deviations: beyond it the tail of a normal distribution is no number in float64."""


def level_of(standard_errors: float) -> float:
    """The two-sided error of one test against so many standard errors: 0.05 for 1.96, 0.0027 for 3."""
    return math.erfc(standard_errors / math.sqrt(2))


def tail_of(standard_errors: float) -> float:
    """Return the one-sided error of one test against so many standard errors: 0.0228 for 2, 0.00135 for 3."""
    return level_of(standard_errors) / 2


def spent(level: float, fraction: float, spending: Spending = "obrien-fleming") -> float:
    """How much of the two-sided error `level` may be spent by the time that `fraction` of all data is there.

    O'Brien and Fleming's type keeps nearly all for the end, so that the last look asks for hardly more than a single
    test; Pocock's spends evenly. For each of the two sides, α = level / 2:

        obrien-fleming  α(t) = 2 - 2 Φ(z / √t),  Φ(z) = 1 - α / 2
        pocock          α(t) = α ln(1 + (e - 1) t)

    Source: K. K. G. Lan, D. L. DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70 (1983), α₁*
    and α₂*.
    """
    if spending == "pocock":
        return level * math.log1p((math.e - 1) * fraction)
    return 2 * math.erfc(_upper_point(level / 4) / math.sqrt(2 * fraction))


@lru_cache(maxsize=256)
def boundaries(level: float, fractions: tuple[float, ...], spending: Spending = "obrien-fleming") -> tuple[float, ...]:
    """How many standard errors a difference must exceed at each look, so that the looks together spend `level`.

    The estimates at the looks are jointly normal with independent increments, as means over growing samples are. At the
    boundary of a look, the probability of crossing it there and none before is what `spent` adds since the look before.
    Intervals of so many standard errors cover at all looks together with probability 1 - level. A boundary is infinite
    where the chance is no number in float64.

    Sources: P. Armitage, C. McPherson, B. Rowe, Repeated significance tests on accumulating data, JRSS A 132 (1969),
    for the recursion; C. Jennison, B. Turnbull, Interim analyses: the repeated confidence interval approach, JRSS B 51
    (1989).

    `level` is two-sided, in (0, 1); `fractions` are of all data, at each look, growing and at most 1. Raises
    InvalidRequest where they are not.
    """
    if not 0 < level < 1:
        raise InvalidRequest(f"the level {level:g} is not between 0 and 1")
    if not fractions or list(fractions) != sorted(set(fractions)) or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise InvalidRequest(f"the looks are at {list(fractions)}; give growing fractions of the data, at most 1")
    found: list[float] = []
    walk = _Walk()
    before = 0.0
    for fraction in fractions:
        total = spent(level, fraction, spending) / 2
        found.append(walk.advance(fraction, total - before))
        before = total
    return tuple(found)


class _Walk:
    """A Brownian motion that is stopped where it leaves the boundaries: its density where it has not."""

    def __init__(self) -> None:
        self._time = 0.0
        self._places: Array = np.zeros(1)
        self._masses: Array = np.ones(1)

    def advance(self, time: float, chance: float) -> float:
        """Go on to `time`; the boundary, in standard deviations there, that is crossed upwards with this `chance`."""
        step, scale = math.sqrt(time - self._time), math.sqrt(time)
        boundary = self._crossed_with(chance, step, scale)
        half = min(boundary, WIDEST) * scale
        nodes, weights = _quadrature()
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


@lru_cache(maxsize=1)
def _quadrature() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return nodes, weights


def _upper_point(tail: float) -> float:
    """z with 1 - Φ(z) = tail."""
    low, high = 0.0, WIDEST
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) / 2 > tail else (low, middle)
    return high
