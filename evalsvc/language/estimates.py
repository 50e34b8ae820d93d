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
    kind: Literal["mean", "bits", "loss", "weighted loss", "other"]
    """`mean` of the documents' numbers; `bits`, a ratio of two sums in bits; e to a mean `loss`, or to a `weighted
    loss`, in nats; or none of these."""
    numbers: Sequence[tuple[float, ...]] = ()
    """What each document adds: its number, NaN where it has none; or a sum and a weight. Empty of the kind `other`."""


def estimate(aggregation: Aggregation, values: Sequence[Any]) -> Estimate | None:
    """Return what lm-eval's aggregation makes of the documents' values, with its error; None where that is no number.

    Perplexities are taken by our own formulas, which are theirs, since e to the loss of a hopeless model overflows. A
    Brier score is the mean of the documents' own, and is taken as such.
    """
    if aggregation is metrics.bypass_agg or not values:
        return None
    if aggregation is metrics.perplexity:
        return _of_losses([(-value,) for value in values], "loss")
    if aggregation is metrics.weighted_perplexity:
        return _of_losses([(-total, count) for total, count in values], "weighted loss")
    if aggregation is metrics.bits_per_byte:
        return _of_losses([(-total / LN2, count) for total, count in values], "bits")
    if aggregation is metrics.brier_score:
        values, aggregation = [metrics.brier_score([value]) for value in values], metrics.mean
    numbers = [(value,) for value in values]
    if aggregation is metrics.nanmean:
        values, aggregation = [value for value in values if not math.isnan(value)], metrics.mean
        if not values:
            return None
    value = aggregation(values)
    if not is_number(value):
        return None
    ratio = Ratio(float(value), _standard_error(aggregation, values), len(values))
    if aggregation is not metrics.mean:
        return Estimate(ratio, "other")
    return Estimate(ratio, "mean", numbers)


def is_number(value: Any) -> bool:
    """Whether it counts as one; numpy's do."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


def _of_losses(numbers: Sequence[tuple[float, ...]], kind: Literal["bits", "loss", "weighted loss"]) -> Estimate | None:
    """Return the estimate of documents' losses, with the words or bytes of each where they are weighted."""
    weights = [1] * len(numbers) if kind == "loss" else [weight for _, weight in numbers]
    loss = ratio_of_sums([loss for loss, *_ in numbers], weights)
    if loss is None:
        return None
    return Estimate(loss if kind == "bits" else perplexity(loss), kind, numbers)


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
