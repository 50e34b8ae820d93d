"""Numbers, times and names as pages show them."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import BestPoint, HeadlineSeries
from evalsvc.web import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (1234567, "1,234,567"),
        (0.123456, "0.12346"),
        (-1e-12, "-1e-12"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (True, "True"),
        ("NaN", "NaN"),
        ("<b>", "<b>"),
    ],
)
def test_numbers(value: object, text: str) -> None:
    assert formats.number(value) == text


@pytest.mark.parametrize(
    ("shown", "value", "text"),
    [
        *((formats.error, stderr, text) for stderr, text in ((0.01234, "± 0.012"), (None, ""), ("NaN", ""))),
        *(
            (formats.bytes_, n, text)
            for n, text in ((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_536_000, "1.54 MB"))
        ),
        (formats.bytes_, 5 * 10**15, "5e+03 TB"),
        *((formats.duration, s, text) for s, text in ((0.2, "0 s"), (89, "89 s"), (91, "2 min"), (5500, "2 h"))),
        (formats.duration, 86_400 * 3, "3 days"),
        *(
            (formats.segment, name, text)
            for name, text in (("a/b", "a%2Fb"), ("..", ".."), ("ü ?#", "%C3%BC%20%3F%23"))
        ),
    ],
)
def test_errors_sizes_durations_and_segments_of_a_path(shown: Callable[[Any], str], value: Any, text: str) -> None:
    assert shown(value) == text


def small(steps: list[int], values: list[Number], best: int | None = None) -> tuple[str, tuple[str, str] | None] | None:
    points = {
        step: BestPoint(step=step, value=value, stderr=None, n=None, groups=None, import_=None)
        for step, value in zip(steps, values, strict=True)
    }
    head: dict[str, Any] = {"metric": "x", "variant": "raw", "protocol": "", "unit": "", "direction": "lower"}
    head |= {"baseline": None, "differs": {}, "base": None, "base_name": None, "x": steps, "values": values}
    series = HeadlineSeries(**head, latest=points[steps[-1]], best=None if best is None else points[best])
    return formats.sparkline(series, width=92, height=22)


def line(curve: tuple[str, tuple[str, str] | None] | None) -> list[tuple[float, float]]:
    assert curve is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in curve[0].split())]


def test_a_sparkline_goes_through_the_finite_values_at_their_steps() -> None:
    """Placed by index, values of rare late steps took as much room as those of many early ones."""
    assert line(small([0, 10, 20, 30], [1.0, "NaN", 3.0, 2.0])) == [(1, 21), (61, 1), (91, 11)]
    assert line(small([0, 20, 30], [1.0, 3.0, 2.0])) == [(1, 21), (61, 1), (91, 11)]


def test_steps_of_several_decades_are_placed_by_their_logarithm() -> None:
    steps = [0, 10, 20, 80, 300, 3000]
    across = [x for x, _ in line(small(steps, [9.4, 7.0, 5.0, 4.0, 3.3, 3.2]))]
    assert across == pytest.approx([1 + 90 * math.log1p(step) / math.log1p(3000) for step in steps], abs=0.1)


def test_a_dot_marks_the_best_value() -> None:
    curves = [small([0, 10, 30], [3.0, 1.0, 2.0], best=best) for best in (10, None)]
    assert [curve and curve[1] for curve in curves] == [("31.0", "21.0"), None]


def test_one_value_is_no_line_and_equal_values_are_a_level_one() -> None:
    values: list[list[Number]] = [[1.0], ["NaN", "NaN"], ["NaN", 1.0]]
    assert [small([*range(len(each))], each) for each in values] == [None] * 3
    assert {y for _, y in line(small([0, 10, 20], [2.0, 2.0, 2.0]))} == {21.0}
