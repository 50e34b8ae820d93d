"""Aggregations of lm-eval and their errors, where they are hopeless and where they have no formula."""

import math
import random
import statistics

import pytest
from lm_eval.api import metrics as lm_metrics

from evalsvc.language.estimates import estimate


def test_estimates_survive_hopeless_models() -> None:
    """exp of 1,000 nats overflows, which lm-eval dies of; resamples without a class must not warn or end it."""
    hopeless = estimate(lm_metrics.perplexity, [-1000.0, -2000.0])
    assert hopeless is not None
    assert hopeless.ratio.value == math.inf
    one_class = estimate(lm_metrics.matthews_corrcoef, [(0, 0)] * 5 + [(1, 1)])
    assert one_class is not None
    assert one_class.ratio.stderr is not None
    ragged = estimate(lm_metrics.nanmean, [1.0, math.nan, 0.0])
    assert ragged is not None
    assert (ragged.ratio.value, ragged.ratio.n) == (0.5, 2)
    assert estimate(lm_metrics.nanmean, [math.nan]) is None
    assert estimate(lambda values: {"a": 1}, [1.0]) is None


def test_errors_without_a_formula_are_those_of_a_bootstrap() -> None:
    chance = random.Random(1)
    losses = [chance.gauss(-2, 0.5) for _ in range(300)]
    for aggregation in (lm_metrics.median, lm_metrics.perplexity):
        found = estimate(aggregation, losses)
        assert found is not None
        resampled = [aggregation(chance.choices(losses, k=300)) for _ in range(1000)]
        assert found.ratio.stderr == pytest.approx(statistics.stdev(resampled), rel=0.15)
    assert estimate(lm_metrics.median, losses) == estimate(lm_metrics.median, losses)
