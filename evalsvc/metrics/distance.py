"""How far two values are apart: with which error, on which basis, and what that says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from evalsvc.metrics.flips import Flips
from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Interval, Spread, require_level
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.paired import Paired, difference_of
from evalsvc.metrics.ratio import Ratio, exp_or_infinity
from evalsvc.spec.documents.comparisons import Basis
from evalsvc.spec.protocol import Direction

Judgement = Literal["better", "worse", "different", "indistinguishable"]
"""Of b, against a. `different`: of a metric that has no better side."""


@dataclass(frozen=True)
class Distance:
    """How far two values are apart, b − a, with which standard error and on which basis."""

    value: float
    """b − a; of pairs over the items that both have. 0 where the two are equal, NaN and infinities included."""
    stderr: float | None
    """The standard error of the difference; None where `basis` is `none`."""
    basis: Basis
    n: int
    """The number of paired items; without pairs, the number of items of the smaller side."""
    lacking: tuple[Literal["a", "b"], ...] = ()
    """Where `basis` is `none`: the sides whose value has no finite standard error."""
    groups: int | None = None
    """Independent groups of the `n` items; None: every item is one."""
    n_only_a: int = 0
    """Items of one side that the other lacks, which are in no pair."""
    n_only_b: int = 0
    p: float | None = None
    """The exact two-sided p-value of no difference, where there is one; see `Paired.p`."""
    spread: Spread | None = None
    """The errors of `estimate`; None where `basis` is `none`."""
    flips: Flips | None = None
    """Of paired items that are right or wrong."""
    log_a: float | None = None
    """Of perplexities, the logarithm of a: `spread` is that of the difference of the logarithms."""

    @property
    def independent(self) -> int:
        """The number of independent items, or of independent groups of items, on which the error rests."""
        return self.n if self.groups is None else self.groups

    @property
    def has_bounds(self) -> bool:
        """Whether bounds of the difference are known: there are enough items, and they vary."""
        if self.spread is None or self.independent < MIN_ITEMS or not math.isfinite(self.value):
            return False
        if self.spread.dof < 1:
            return False
        return self.flips is not None or self.spread.stderr > 0

    def reach(self, tail: float) -> tuple[float, float] | None:
        """Return how far below and above `value` bounds lie that each miss with `tail`; None where none are known."""
        if not self.has_bounds or self.spread is None:
            return None
        if self.flips is not None:
            return self.flips.reach(tail)
        below, above = self.spread.reach(tail)
        if self.log_a is None:
            return below, above
        estimate = self._estimate
        low, high = (
            exp_or_infinity(self.log_a + estimate + side) - exp_or_infinity(self.log_a) for side in (-below, above)
        )
        return self.value - low, high - self.value

    def interval(self, level: float = LEVEL) -> Interval | None:
        """Return the interval of the difference; None where no bounds are known. Raises as `require_level`."""
        require_level(level)
        reach = self.reach((1 - level) / 2)
        return None if reach is None else Interval(self.value - reach[0], self.value + reach[1], level)

    def p_value(self) -> float | None:
        """Return the two-sided p-value of no difference; None where nothing is known.

        `interval(level)` leaves out zero exactly where the p-value is at most 1 − level.
        """
        if self.p is not None:
            return self.p
        return None if not self.has_bounds or self.spread is None else self.spread.p_value(self._estimate)

    def verdict(self, level: float, direction: Direction) -> Judgement | None:
        """Say what the difference says of b at this level; None where nothing is known."""
        p = self.p_value()
        return None if p is None else judge(self.value, p, level, direction)

    def why_no_error(self, a: str, b: str) -> str:
        """Say why there is no interval, naming the sides `a` and `b`; an empty string where there is one."""
        if len(self.lacking) == 1:
            known = b if self.lacking == ("a",) else a
            return f"only {known} has a standard error, and the error of one side is no error of a difference"
        if self.lacking:
            return f"neither {a} nor {b} has a standard error"
        if self.basis == "none" or self.has_bounds or not math.isfinite(self.value):
            return ""
        if self.independent < MIN_ITEMS:
            what = "items" if self.groups is None else "independent groups of items"
            return f"{self.independent} {what} are too few, an interval needs {MIN_ITEMS}"
        if self.spread is not None and self.spread.dof < 1:
            return "one item has nearly all of the weight, so that the spread of items is not known"
        return "all items have the same difference, so that their spread is not known"

    @property
    def _estimate(self) -> float:
        """What `spread` is about: the difference, or that of the logarithms."""
        if self.log_a is None:
            return self.value
        return math.log1p(self.value / math.exp(self.log_a))


def distance(
    a: Ratio,
    b: Ratio,
    pairs: tuple[Numbers, Numbers] | None = None,
    *,
    unit: str = "",
    drawn_from: int | None = None,
) -> Distance:
    """Say how far the value `b` is from the value `a`, with which standard error, and on which basis.

    `pairs` is what the two values are made of; the difference is over the items that both have. Without pairs, or where
    these leave no error, the error is √(a.stderr² + b.stderr²) of independent values, with the degrees of freedom of
    Welch. Of perplexities (`unit` is `perplexity`), whose pairs are those of the loss, all is done on the logarithms,
    so that a loss and its perplexity say the same. `drawn_from`: the items are a sample without replacement of so many.

    Source: B. L. Welch, Biometrika 34 (1947) 28–35.
    """
    if unit == "perplexity" and all(0 < side.value < math.inf for side in (a, b)):
        return _of_logarithms(a, b, pairs, drawn_from)
    equal = a.value == b.value or (math.isnan(a.value) and math.isnan(b.value))
    value = 0.0 if equal else b.value - a.value
    found = None if pairs is None else difference_of(*pairs, drawn_from=drawn_from)
    if found is not None and found.spread is not None and math.isfinite(value):
        # Where no item is left out, the values themselves: theirs is the least rounding. Values that are infinite on
        # both sides, by an item that is, say nothing of the other items.
        whole = math.isfinite(a.value) and not (found.n_only_a or found.n_only_b)
        return _of_pairs(value if whole else found.value, found, found.spread)
    return _of_values(value, a, b)


def _of_pairs(value: float, found: Paired, spread: Spread) -> Distance:
    return Distance(
        value,
        spread.stderr,
        "paired",
        found.n,
        groups=found.groups,
        n_only_a=found.n_only_a,
        n_only_b=found.n_only_b,
        p=found.p,
        spread=spread,
        flips=found.flips,
    )


def _of_values(value: float, a: Ratio, b: Ratio) -> Distance:
    """Return the distance of two independent values; without an error where one of them has none."""
    smaller = min(a, b, key=lambda side: side.independent)
    sides: dict[Literal["a", "b"], Ratio] = {"a": a, "b": b}
    lacking = tuple(name for name, side in sides.items() if side.stderr is None or not math.isfinite(side.stderr))
    if lacking:
        return Distance(value, None, "none", smaller.n, lacking, smaller.groups)
    spread = _welch(a, b)
    return Distance(value, spread.stderr, "unpaired", smaller.n, groups=smaller.groups, spread=spread)


def _of_logarithms(a: Ratio, b: Ratio, pairs: tuple[Numbers, Numbers] | None, drawn_from: int | None) -> Distance:
    """Return the distance of two perplexities from that of their logarithms."""
    logs = [
        replace(side, value=math.log(side.value), stderr=None if side.stderr is None else side.stderr / side.value)
        for side in (a, b)
    ]
    of_logs = distance(logs[0], logs[1], pairs, drawn_from=drawn_from)
    log_a = logs[0].value
    value = b.value - a.value if not (of_logs.n_only_a or of_logs.n_only_b) else a.value * math.expm1(of_logs.value)
    stderr = None if of_logs.stderr is None else (a.value + value) * of_logs.stderr
    return replace(of_logs, value=value, stderr=stderr, log_a=log_a)


def _welch(a: Ratio, b: Ratio) -> Spread:
    squares = [(side.stderr or 0.0) ** 2 for side in (a, b)]
    total = math.fsum(squares)
    if not total:
        return Spread(0.0, min(a.independent, b.independent) - 1)
    shares = [square / total for square in squares]
    terms = [share**2 / max(side.independent - 1, 1) for share, side in zip(shares, (a, b), strict=True) if share]
    return Spread(math.sqrt(total), 1 / math.fsum(terms))


def judge(difference: float, p: float, level: float, direction: Direction) -> Judgement:
    """Say what a difference b − a of this two-sided p-value says of b at a level."""
    if math.isnan(difference) or difference == 0 or p > 1 - level:
        return "indistinguishable"
    if direction == "none":
        return "different"
    return "better" if (difference > 0) == (direction == "higher") else "worse"
