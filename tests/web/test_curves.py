"""Series as points of a chart: intervals, averages, companions, lines and gaps."""

import random

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


@pytest.mark.parametrize("weight", [0.3, 0.6, 0.97])
def test_the_average_is_that_of_the_definition(weight: float) -> None:
    """Summed by powers of the weight for every point anew, over finite values only."""
    own = random.Random(1)
    values: list[Number] = [own.gauss(0, 3) for _ in range(60)]
    values[7:9] = ["NaN", "Infinity"]
    [curve] = curves(series(values), smoothing=weight)
    finite: list[float] = []
    for value, point in zip(values, curve.points, strict=True):
        if not isinstance(value, float):
            assert point.smooth is None
            continue
        finite.append(value)
        shares = [weight**age for age in range(len(finite))]
        expected = sum(share * one for share, one in zip(shares, reversed(finite), strict=True)) / sum(shares)
        assert point.smooth == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_an_average_lies_among_its_values_however_large_they_are() -> None:
    [curve] = curves(series([1.7e308, -1.7e308, 1.7e308, 5e-324]), smoothing=0.9)
    assert all(point.smooth is not None and abs(point.smooth) <= 1.7e308 for point in curve.points)
    [plain] = curves(series([1.0, 2.0]))
    assert [point.smooth for point in plain.points] == [None, None]


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
