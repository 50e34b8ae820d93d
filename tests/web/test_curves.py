"""Series as points of a chart: intervals, averages, companions, lines and gaps."""

import math
import random

import numpy as np
import pytest
from curve_series import buckets, curves, gap, series

from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import KnownMetric
from evalsvc.web.curves import (
    Line,
    companions_of,
    curves_of,
    lines_of,
    missing_of,
    with_companions,
)


def lines(steps: list[int], values: list[float], size: int) -> list[float]:
    """At each step, the line through the `size` nearest values with tricube weights, by least squares over all."""
    x, y, smooth = np.array(steps, float), np.array(values), []
    for at in x:
        distances = abs(x - at)
        nearest = np.argsort(distances, kind="stable")[:size]
        root = np.sqrt(np.clip(1 - (distances / distances[nearest].max()) ** 3, 0, None) ** 3)
        design = np.stack([np.ones_like(x), x - at], axis=1)
        level = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0][0]
        smooth.append(float(np.clip(level, y[nearest].min(), y[nearest].max())))
    return smooth


@pytest.mark.parametrize(("weight", "size"), [(0.3, 4), (0.6, 7), (0.97, 14)])
def test_the_average_is_that_of_the_definition(weight: float, size: int) -> None:
    """Fitted anew at every step, over finite values only, and over at most a quarter of these."""
    own = random.Random(1)
    values: list[Number] = [own.gauss(0, 3) for _ in range(60)]
    values[7:9] = ["NaN", "Infinity"]
    [curve] = curves(series(values, x=sorted(own.sample(range(10_000), 60))), smoothing=weight)
    finite = [point for point in curve.points if isinstance(point.value, float)]
    expected = lines([point.x for point in finite], [float(point.value) for point in finite], size)
    assert [point.smooth for point in finite] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert [point.smooth for point in curve.points if not isinstance(point.value, float)] == [None, None]


@pytest.mark.parametrize(("weight", "gain"), [(0.6, 1.9), (0.9, 3), (0.97, 2.5)])
def test_the_average_of_a_falling_curve_stays_within_its_intervals(weight: float, gain: float) -> None:
    """A mean over past buckets lagged behind: it was outside of the 95 % intervals at 87 of these 250 points."""
    own, sides, off = random.Random(0), 0, 0.0
    for _ in range(20):
        truth = [0.8 - 0.5 * math.exp(-4 * at / 250) for at in range(250)]
        noisy = [value + own.gauss(0, 0.01) for value in truth]
        ends = {"low": [value - 0.0196 for value in noisy], "high": [value + 0.0196 for value in noisy]}
        [curve] = curves(series(list(noisy), **ends), smoothing=weight)
        for value, point in zip(truth, curve.points, strict=True):
            assert point.low is not None
            assert point.high is not None
            assert point.smooth is not None
            sides += not point.low <= point.smooth <= point.high
            off += (point.smooth - value) ** 2
    assert sides / 5000 < 0.06, "the interval of a value covers the truth at .95 of the points"
    assert math.sqrt(off / 5000) < 0.01 / gain, "nearer to the truth than the values"


def test_a_straight_line_stays_one_however_its_steps_lie() -> None:
    steps = [0, 10, 20, 80, 300, 3000, 3001, 9000, 10_000, 30_000]
    [curve] = curves(series([2.0 * step for step in steps], x=steps), smoothing=0.9)
    assert [point.smooth for point in curve.points] == pytest.approx([2 * step for step in steps])


def test_an_average_lies_among_its_values_however_large_they_are() -> None:
    [curve] = curves(series([1.7e308, -1.7e308, 1.7e308, 5e-324]), smoothing=0.9)
    assert all(point.smooth is not None and abs(point.smooth) <= 1.7e308 for point in curve.points)
    [plain] = curves(series([1.0, 2.0]))
    assert [point.smooth for point in plain.points] == [None, None]
    [single] = curves(series([1.0]), smoothing=0.9)
    assert [point.smooth for point in single.points] == [1.0]


def test_an_interval_is_the_one_that_is_stored_with_the_value() -> None:
    """value ± t · stderr left [0, 1] in fifty bands of shares, and reached down to zero in others."""
    ends = {"low": [0.91, None, None], "high": [0.995, None, None]}
    [curve] = curves(series([0.98, 0.5, "NaN"], stderr=[0.02, 0.1, None], **ends))
    assert [(point.low, point.high) for point in curve.points] == [(0.91, 0.995), (None, None), (None, None)]


def test_a_bucket_has_the_range_of_its_values() -> None:
    [curve] = curves(
        series([3.0, 4.0], min=[1.0, 4.0], max=[9.0, 4.0], count=[7, 1], imported=[1, 0], virtual=[False, True])
    )
    first, second = curve.points
    assert (first.least, first.most, first.count, first.kind) == (1.0, 9.0, 7, "imported")
    assert (second.least, second.most, second.count, second.kind) == (None, None, 1, "virtual")


KNOWN = [
    KnownMetric(name=name, unit="", direction="lower")
    for name in (
        "loss/text",
        "loss/text_perplexity",
        "loss/text_unigram",
        "loss/image",
        "wiki/bits_per_byte",
        "wiki/word_perplexity",
    )
]


def test_companions_are_read_at_the_same_places() -> None:
    assert companions_of("loss/text", KNOWN) == ["loss/text_perplexity", "loss/text_unigram"]
    assert companions_of("wiki/bits_per_byte", KNOWN) == ["wiki/word_perplexity"]
    assert companions_of("loss/image", KNOWN) == companions_of("loss/text_perplexity", KNOWN) == []
    perplexity = series([7.4, 2.7], "loss/text_perplexity", unit="perplexity", x=[20, 30])
    other = series([0.0, 0.0], "loss/text_perplexity", protocol="p2")
    main, *companions = curves(series([2.0, 1.0]), perplexity, other)
    points = with_companions(main, companions).points
    assert [point.companions for point in points] == [None, {"perplexity": 7.4}]


def test_a_companion_that_never_changes_is_a_line() -> None:
    unigram = series([6.5, 6.5], "loss/text_unigram", protocol="of the data")
    moving = series([6.5, 6.6], "loss/text_unigram_by_place")
    perplexity = series([9.0, 9.0], "loss/text_perplexity", unit="perplexity")
    main, *companions = curves(series([2.0, 1.0], baseline=9.25), unigram, moving, perplexity)
    assert list(lines_of(main, companions)) == [Line(9.25, "chance 9.25"), Line(6.5, "unigram 6.5")]
    [no_chance] = curves(series([1.0], baseline="NaN"))
    assert list(lines_of(no_chance, [])) == []


def test_a_gap_is_of_the_curve_that_lacks_the_value() -> None:
    gaps = tuple(gap(step, variant) for step, variant in ((10, "raw"), (15, "raw"), (15, "ema")))
    given = buckets(series([1.0, 2.0]), gaps=gaps)
    [found] = missing_of(given, list(curves_of(given)))
    assert (found.label, found.gap.step) == ("run-a", 15)
