"""Documents from JSON: all fields checked, those of another version left out or filled in."""

from typing import Any

import pytest

from evalsvc.spec.documents import Document
from evalsvc.spec.documents.fields import Number, State
from evalsvc.spec.documents.reading import content_of, read


class Point(Document):
    value: Number
    import_: int | None = None


class Broken(Document):
    error: str


class Curve(Document):
    points: list[Point | Broken]
    x: list[float]
    by_name: dict[str, Point]
    state: State
    tags: dict[str, object]
    is_final: bool


CONTENT: dict[str, Any] = {
    "points": [{"value": 1.5, "import": 3}, {"error": "gone"}, {"value": "NaN", "import": None}],
    "x": [1, 2.5],
    "by_name": {"best": {"value": 2, "import": None}},
    "state": "queued",
    "tags": {"lr": [1, {}]},
    "is_final": False,
}


def test_what_is_read_is_written_again() -> None:
    curve = read(Curve, CONTENT)
    assert curve.points == [Point(value=1.5, import_=3), Broken(error="gone"), Point(value="NaN")]
    assert content_of(curve) == CONTENT


def test_fields_of_a_newer_version_are_left_out_and_those_of_an_older_one_filled_in() -> None:
    assert read(Point, {"value": 1.5, "colour": "red"}) == Point(value=1.5, import_=None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"x": [1, "2"]}, "x: a number is expected, found '2'"),
        ({"x": {"1": 2}}, "x: a list is expected, found {'1': 2}"),
        ({"x": [True]}, "x: a number is expected, found True"),
        ({"state": "asleep"}, "state: 'queued' or .* is expected, found 'asleep'"),
        ({"is_final": 1}, "is_final: true or false is expected, found 1"),
        ({"by_name": {"best": {}}}, "by_name: best: value is missing"),
        ({"by_name": []}, r"by_name: an object is expected, found \[\]"),
        (
            {"points": [{"value": 1, "import": 1.5}]},
            "points: import: a whole number .*; or error is missing",
        ),
        ({"points": ["a" * 100]}, "points: an object is expected, found 'a{79}…"),
        ({"tags": None}, "tags: an object is expected, found None"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}"):
        read(Curve, CONTENT | change)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"^state is missing$"):
        read(Curve, {key: value for key, value in CONTENT.items() if key != "state"})
