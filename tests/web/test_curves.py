"""Series as points of a chart: intervals, averages, companions, lines and gaps."""

import math
import random

import numpy as np
import pytest
from curve_series import buckets, curves, gap, series

from evalsvc.spec.documents.fields import Number
from evalsvc.web.curves import Line, companions_of, lines_of, missing_of, smoothed


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
    steps = sorted(own.sample(range(10_000), 60))
    smooth = smoothed(series(values, x=steps), weight)
    finite = [at for at, value in enumerate(values) if isinstance(value, float)]
    expected = lines([steps[at] for at in finite], [float(values[at]) for at in finite], size)
    assert [smooth[at] for at in finite] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert smooth[7:9] == [None, None]


@pytest.mark.parametrize(("weight", "gain"), [(0.6, 1.9), (0.9, 3), (0.97, 2.5)])
def test_the_average_of_a_falling_curve_stays_within_its_intervals(weight: float, gain: float) -> None:
    """A mean over past buckets lagged behind: it was outside of the 95 % intervals at 87 of these 250 points."""
    own, sides, off = random.Random(0), 0, 0.0
    for _ in range(20):
        truth = [0.8 - 0.5 * math.exp(-4 * at / 250) for at in range(250)]
        noisy = [value + own.gauss(0, 0.01) for value in truth]
        for value, noise, smooth in zip(truth, noisy, smoothed(series(list(noisy)), weight), strict=True):
            assert smooth is not None
            sides += not noise - 0.0196 <= smooth <= noise + 0.0196
            off += (smooth - value) ** 2
    assert sides / 5000 < 0.06, "the interval of a value covers the truth at .95 of the points"
    assert math.sqrt(off / 5000) < 0.01 / gain, "nearer to the truth than the values"


def test_a_straight_line_stays_one_however_its_steps_lie() -> None:
    steps = [0, 10, 20, 80, 300, 3000, 3001, 9000, 10_000, 30_000]
    smooth = smoothed(series([2.0 * step for step in steps], x=steps), 0.9)
    assert smooth == pytest.approx([2 * step for step in steps])


def test_an_average_lies_among_its_values_however_large_they_are() -> None:
    smooth = smoothed(series([1.7e308, -1.7e308, 1.7e308, 5e-324]), 0.9)
    assert all(value is not None and abs(value) <= 1.7e308 for value in smooth)
    assert smoothed(series([1.0]), 0.9) == [1.0]


def test_companions_are_read_at_the_same_places() -> None:
    perplexity = series([7.4, 2.7], "loss/text_perplexity", unit="perplexity", x=[20, 30])
    other = series([0.0, 0.0], "loss/text_perplexity", protocol="p2")
    assert companions_of(series([2.0, 1.0]), [perplexity, other]) == {"perplexity": {20: 7.4, 30: 2.7}}


def test_a_companion_that_never_changes_is_a_line() -> None:
    unigram = series([6.5, 6.5], "loss/text_unigram", protocol="of the data")
    moving = series([6.5, 6.6], "loss/text_unigram_by_place")
    perplexity = series([9.0, 9.0], "loss/text_perplexity", unit="perplexity")
    main = series([2.0, 1.0], baseline=9.25)
    assert list(lines_of(main, [unigram, moving, perplexity])) == [Line(9.25, "chance 9.25"), Line(6.5, "unigram 6.5")]
    assert list(lines_of(series([1.0], baseline="NaN"), [])) == []


def test_a_gap_is_of_the_curve_that_lacks_the_value() -> None:
    gaps = tuple(gap(step, variant) for step, variant in ((10, "raw"), (15, "raw"), (15, "ema")))
    values = series([1.0, 2.0])
    [found] = missing_of(buckets(values, gaps=gaps), curves(values))
    assert (found.label, found.gap.step) == ("run-a", 15)
