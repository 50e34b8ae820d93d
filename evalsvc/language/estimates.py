"""From the documents' values of one metric to a number and its error: lm-eval's aggregations, and the errors they lack.

Values are lm-eval's. Errors are its closed forms where it has them, and otherwise a small bootstrap in this process:
its own is 100,000 resamples over all cores.
"""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lm_eval.api import metrics

from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.metrics.shares import standard_error

RESAMPLES = 200
"""Of the bootstrap for what has no closed form; the error is then known to 5 %."""

LN2 = math.log(2)

Aggregation = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Estimate:
    ratio: Ratio
    kind: Literal["mean", "bits", "other"]
    """`mean` of the documents' numbers; `bits`, a ratio of two sums in bits; or neither."""


def estimate(aggregation: Aggregation, values: Sequence[Any]) -> Estimate | None:
    """What lm-eval's aggregation makes of the documents' values, with a standard error; None where it is no number.

    Perplexities are taken by our own formulas, which are theirs, since e to the loss of a hopeless model overflows.
    """
    if aggregation is metrics.nanmean:
        values, aggregation = [value for value in values if not math.isnan(value)], metrics.mean
    if aggregation is metrics.bypass_agg or not values:
        return None
    if aggregation is metrics.perplexity:
        return _of_ratio(aggregation, ratio_of_sums([-value for value in values], [1] * len(values)))
    if aggregation in (metrics.weighted_perplexity, metrics.bits_per_byte):
        return _of_ratio(aggregation, ratio_of_sums([-total for total, _ in values], [count for _, count in values]))
    value = aggregation(values)
    if not is_number(value):
        return None
    kind: Literal["mean", "other"] = "mean" if aggregation is metrics.mean else "other"
    return Estimate(Ratio(float(value), _standard_error(aggregation, values), len(values)), kind)


def is_number(value: Any) -> bool:
    """Whether it counts as one; numpy's do."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


def _of_ratio(aggregation: Aggregation, loss: Ratio | None) -> Estimate | None:
    """`loss` in nats per token, word or byte."""
    if loss is None:
        return None
    if aggregation is not metrics.bits_per_byte:
        return Estimate(perplexity(loss), "other")
    return Estimate(Ratio(loss.value / LN2, None if loss.stderr is None else loss.stderr / LN2, loss.n), "bits")


def _standard_error(aggregation: Aggregation, values: Sequence[Any]) -> float | None:
    if aggregation is metrics.mean:
        return standard_error([float(value) for value in values])
    if len(values) < 2:
        return None
    return float(metrics.acc_all_stderr(values)) if aggregation is metrics.acc_all else _bootstrap(aggregation, values)


def _bootstrap(aggregation: Aggregation, values: Sequence[Any]) -> float | None:
    """The standard deviation of the value over resamples; always the same. None where it is not defined on one."""
    chance = random.Random(0)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may lack a class
        for _ in range(RESAMPLES):
            try:
                found.append(float(aggregation(chance.choices(values, k=len(values)))))
            except (ValueError, ArithmeticError):
                return None
    return statistics.stdev(found) if all(map(math.isfinite, found)) else None
