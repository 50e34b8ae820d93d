"""Difference of two values, with its standard error, its basis and a judgement."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Interval, Spread, require_level
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.mcnemar import Flips
from evalsvc.metrics.paired import Paired, difference_of
from evalsvc.metrics.ratio import Ratio, exp_or_infinity
from evalsvc.spec.documents.comparisons import Basis
from evalsvc.spec.protocol import Direction

Judgement = Literal["better", "worse", "different", "indistinguishable"]
"""Judgement of b against a. `different` is for metrics without a better direction."""


@dataclass(frozen=True)
class Distance:
    """Difference b − a of two values, with its standard error and basis."""

    value: float
    """b − a, for pairs over the items that both sides have. 0 where both are equal, NaN and infinities included."""
    stderr: float | None
    """Standard error of the difference; None where `basis` is `none`."""
    basis: Basis
    """Basis of the standard error: paired items, independent values, or none."""
    n: int
    """Number of paired items; without pairs, the number of items of the smaller side."""
    lacking: tuple[Literal["a", "b"], ...] = ()
    """Sides whose value has no finite standard error, where `basis` is `none`."""
    groups: int | None = None
    """Number of independent groups among the `n` items; None if every item is independent."""
    n_only_a: int = 0
    """Number of items of `a` that `b` lacks, which are in no pair."""
    n_only_b: int = 0
    """Number of items of `b` that `a` lacks, which are in no pair."""
    p: float | None = None
    """Exact two-sided p-value of no difference, where defined; see `Paired.p`."""
    spread: Spread | None = None
    """Errors of the estimate: the difference, or the difference of the logarithms; None where `basis` is `none`."""
    flips: Flips | None = None
    """Counts of paired items that are right or wrong; None for other items."""
    log_a: float | None = None
    """Logarithm of a, for perplexities, whose `spread` is that of the difference of the logarithms."""

    @property
    def independent(self) -> int:
        """Number of independent items, or of independent groups of items, on which the error rests."""
        return self.n if self.groups is None else self.groups

    @property
    def has_bounds(self) -> bool:
        """Whether bounds of the difference are known: there are enough items, and the items vary."""
        if self.spread is None or self.independent < MIN_ITEMS or not math.isfinite(self.value):
            return False
        if self.spread.dof < 1:
            return False
        return self.flips is not None or self.spread.stderr > 0

    def reach(self, tail: float) -> tuple[float, float] | None:
        """Return the distances from `value` to the lower and upper bound, each missed with `tail`; None if unknown."""
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
        """Return the two-sided p-value of no difference; None where no bounds are known.

        `interval(level)` excludes zero exactly where the p-value is at most 1 − level.
        """
        if self.p is not None:
            return self.p
        return None if not self.has_bounds or self.spread is None else self.spread.p_value(self._estimate)

    def verdict(self, level: float, direction: Direction) -> Judgement | None:
        """Return the judgement of b against a at this level; None where no p-value is known."""
        p = self.p_value()
        return None if p is None else judge(self.value, p, level, direction)

    def why_no_error(self, a: str, b: str) -> str:
        """Return why there is no interval between the sides named `a` and `b`; an empty string if there is one."""
        if len(self.lacking) == 1:
            known = b if self.lacking == ("a",) else a
            return f"only {known} has a standard error, and the error of one side is not the error of a difference"
        if self.lacking:
            return f"neither {a} nor {b} has a standard error"
        if self.basis == "none" or self.has_bounds or not math.isfinite(self.value):
            return ""
        if self.independent < MIN_ITEMS:
            counted = "items" if self.groups is None else "independent groups of items"
            return f"{self.independent} {counted} are too few, an interval needs {MIN_ITEMS}"
        if self.spread is not None and self.spread.dof < 1:
            return "one item has nearly all of the weight, so that the spread of items is not known"
        return "all items have the same difference, so that their spread is not known"

    @property
    def _estimate(self) -> float:
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
    """Compute the difference of the value `b` from the value `a`, with its standard error and basis.

    `pairs` are the per-item numbers of the two values; the difference is over the items that both sides have. Without
    pairs, or where the pairs give no error, the error is √(a.stderr² + b.stderr²) of independent values, with Welch's
    degrees of freedom. For perplexities (`unit` is `perplexity`), whose pairs are those of the loss, the difference is
    computed on logarithms, so that a loss and its perplexity get the same judgement. `drawn_from` is the size of the
    set from which the items are a sample without replacement.

    Source: B. L. Welch, Biometrika 34 (1947) 28–35.
    """
    if unit == "perplexity" and all(0 < side.value < math.inf for side in (a, b)):
        return _of_logarithms(a, b, pairs, drawn_from)
    equal = a.value == b.value or (math.isnan(a.value) and math.isnan(b.value))
    value = 0.0 if equal else b.value - a.value
    paired = None if pairs is None else difference_of(*pairs, drawn_from=drawn_from)
    if paired is not None and paired.spread is not None and math.isfinite(value):
        # The values themselves have the least rounding, where no item is left out. Values that are infinite on both
        # sides, because of an item, say nothing about the other items.
        covers_all = math.isfinite(a.value) and not (paired.n_only_a or paired.n_only_b)
        return _of_pairs(value if covers_all else paired.value, paired, paired.spread)
    return _of_values(value, a, b)


def _of_pairs(value: float, paired: Paired, spread: Spread) -> Distance:
    return Distance(
        value,
        spread.stderr,
        "paired",
        paired.n,
        groups=paired.groups,
        n_only_a=paired.n_only_a,
        n_only_b=paired.n_only_b,
        p=paired.p,
        spread=spread,
        flips=paired.flips,
    )


def _of_values(value: float, a: Ratio, b: Ratio) -> Distance:
    smaller = min(a, b, key=lambda side: side.independent)
    sides: dict[Literal["a", "b"], Ratio] = {"a": a, "b": b}
    lacking = tuple(name for name, side in sides.items() if side.stderr is None or not math.isfinite(side.stderr))
    if lacking:
        return Distance(value, None, "none", smaller.n, lacking, smaller.groups)
    spread = _welch(a, b)
    return Distance(value, spread.stderr, "unpaired", smaller.n, groups=smaller.groups, spread=spread)


def _of_logarithms(a: Ratio, b: Ratio, pairs: tuple[Numbers, Numbers] | None, drawn_from: int | None) -> Distance:
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
    """Return the judgement of a difference b − a with this two-sided p-value at a level."""
    if math.isnan(difference) or difference == 0 or p > 1 - level:
        return "indistinguishable"
    if direction == "none":
        return "different"
    return "better" if (difference > 0) == (direction == "higher") else "worse"
