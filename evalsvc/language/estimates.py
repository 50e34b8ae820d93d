"""From the documents' values of one metric to a number and its error, by lm-eval's aggregations.

Values are lm-eval's. Errors are lm-eval's closed forms where available, and otherwise a small bootstrap in this
process: lm-eval's bootstrap has 100,000 resamples over all cores.
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
from evalsvc.metrics.shares import share_stderr, standard_error

RESAMPLES = 200
"""Number of bootstrap samples for aggregations without a closed form; the error is then known to 5 %."""

LEAST = 20
"""Number of documents that a bootstrap needs. An F1 of 8 documents has an interval that covers .82 instead of .95."""

OTHER_ESTIMATOR = "lm-eval/2"
"""Version in the protocol of metrics of the kind `other`; see `results.ESTIMATOR` for the other kinds."""

LN2 = math.log(2)

Aggregation = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Estimate:
    ratio: Ratio
    kind: Literal["mean", "bits", "loss", "weighted loss", "other"]
    """`mean` of the documents' numbers; `bits`, a ratio of two sums in bits; e to a mean `loss`, or to a `weighted
    loss`, in nats; or none of these.
    """
    numbers: Sequence[tuple[float, ...]] = ()
    """Numbers of each document: its value, NaN without a value; or a sum and a weight. Empty for the kind `other`."""


def estimate(aggregation: Aggregation, values: Sequence[Any]) -> Estimate | None:
    """Return lm-eval's aggregation of the documents' values, with its error; None where the result is no number.

    Perplexities use evalsvc's formulas, equal to lm-eval's, since e to the loss of a very bad model overflows. A Brier
    score is the mean of the documents' Brier scores.
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
    if aggregation is metrics.mean:
        error = standard_error([float(each) for each in values])
        return Estimate(Ratio(float(value), error, len(values)), "mean", numbers)
    if aggregation is metrics.acc_all:  # of questions, each of which has several documents
        questions = len({tuple(document["idx"][key] for key in ("paragraph", "question")) for _, document in values})
        error = share_stderr(round(value * questions), questions)
        return Estimate(Ratio(float(value), error, len(values), questions), "other")
    return Estimate(Ratio(float(value), _bootstrap(aggregation, values), len(values)), "other")


def is_number(value: Any) -> bool:
    """Return whether a value is a number, including numpy's numbers."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


def _of_losses(numbers: Sequence[tuple[float, ...]], kind: Literal["bits", "loss", "weighted loss"]) -> Estimate | None:
    """Return the estimate of documents' losses, with the words or bytes of each document where weighted."""
    weights = [1] * len(numbers) if kind == "loss" else [weight for _, weight in numbers]
    loss = ratio_of_sums([loss for loss, *_ in numbers], weights)
    if loss is None:
        return None
    return Estimate(loss if kind == "bits" else perplexity(loss), kind, numbers)


def _bootstrap(aggregation: Aggregation, values: Sequence[Any]) -> float | None:
    """Return the deviation of the value over seeded resamples; None below `LEAST`, or where none has or moves it."""
    if len(values) < LEAST:
        return None
    chance = random.Random(0)
    resampled = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may lack a class
        for _ in range(RESAMPLES):
            try:
                resampled.append(float(aggregation(chance.choices(values, k=len(values)))))
            except (ValueError, ArithmeticError):
                return None
    return (statistics.stdev(resampled) or None) if all(map(math.isfinite, resampled)) else None
