"""Numbers, times and names as pages show them."""

import math

import pytest

from evalsvc.web import shown


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
    assert shown.number(value) == text


@pytest.mark.parametrize(("stderr", "text"), [(0.01234, "± 0.012"), (None, ""), ("NaN", "")])
def test_errors(stderr: object, text: str) -> None:
    assert shown.error(stderr) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_536_000, "1.54 MB"), (5 * 10**15, "5e+03 TB")]
)
def test_bytes(count: int, text: str) -> None:
    assert shown.bytes_(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (89, "89 s"), (91, "2 min"), (5500, "2 h"), (86_400 * 3, "3 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert shown.duration(seconds) == text


@pytest.mark.parametrize(("name", "text"), [("a/b", "a%2Fb"), ("..", ".."), ("ü ?#", "%C3%BC%20%3F%23")])
def test_a_name_is_one_segment_of_a_path(name: str, text: str) -> None:
    assert shown.segment(name) == text


def test_a_sparkline_goes_through_the_finite_values_at_their_places() -> None:
    points = shown.sparkline([1.0, "NaN", 3.0, 2.0], width=92, height=22)
    assert points == "1.0,21.0 61.0,1.0 91.0,11.0"


@pytest.mark.parametrize("values", [[], [1.0], ["NaN", "NaN"], [None, 1.0]])
def test_one_value_is_no_line(values: list[object]) -> None:
    assert shown.sparkline(values) == ""


def test_equal_values_are_a_level_line() -> None:
    assert {point.partition(",")[2] for point in shown.sparkline([2.0, 2.0, 2.0]).split()} == {"21.0"}
