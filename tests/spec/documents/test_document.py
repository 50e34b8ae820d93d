"""Documents: each has an example, all fields are checked, those of another version are ignored or filled in."""

import math
from typing import Any, Literal

import pytest
from example_documents import example
from pydantic import ValidationError

from evalsvc.spec import documents
from evalsvc.spec.documents import Document
from evalsvc.spec.documents.comparisons import DifferenceInterval, MetricDifference
from evalsvc.spec.documents.document import validation_message
from evalsvc.spec.documents.fields import Number, State, Time

KINDS = [kind for kind in vars(documents).values() if isinstance(kind, type) and kind is not Document]


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


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_document_has_an_example(kind: type[Document]) -> None:
    document = example(kind)
    assert kind.model_validate(document.model_dump()) == document
    assert kind.model_validate_json(document.model_dump_json()) == document


def test_what_is_read_is_written_again() -> None:
    curve = Curve.model_validate(CONTENT)
    assert curve.points == [Point(value=1.5, import_=3), Broken(error="gone"), Point(value="NaN")]
    assert curve.model_dump() == CONTENT
    # Fields of a newer version are left out, and those of an older one filled in.
    assert Point.model_validate({"value": 1.5, "colour": "red"}) == Point(value=1.5, import_=None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"x": [1, "2"]}, "x.1: input should be a valid number, found '2'"),
        ({"x": {"1": 2}}, "x: input should be a valid list, found {'1': 2}"),
        ({"x": [True]}, "x.0: input should be a valid number, found True"),
        ({"state": "asleep"}, "state: input should be 'queued', .* found 'asleep'"),
        ({"is_final": 1}, "is_final: input should be a valid boolean, found 1"),
        ({"by_name": {"best": {}}}, "by_name.best.value: field required"),
        ({"points": [{"value": 1, "import": 1.5}]}, "points.0.Point.import: input should be a valid integer"),
        ({"tags": None}, "tags: input should be a valid dictionary, found None"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Curve.model_validate(CONTENT | change)
    assert pytest.raises(ValueError, match=f"^{problem}").matches(ValueError(validation_message(raised.value)))


def test_a_schema_has_the_names_of_json_and_the_docstrings_of_fields() -> None:
    class Leaf(Document):
        from_: Literal["here", "there"]
        """Where the leaf is from."""
        at: Time | None = None

    schema = Leaf.model_json_schema(mode="serialization")
    assert schema["required"] == ["from", "at"], "an answer always has its fields"
    assert schema["properties"]["from"]["description"] == "Where the leaf is from."


def test_a_notebook_shows_documents_as_tables_and_names_as_text() -> None:
    """A comparison was 72,484 characters in one line."""
    hostile = "<script>"
    shown = example(documents.RunSummary, name=hostile, tags={"note": "a" * 1000})._repr_html_()
    assert "<tr><td>name</td><td>&#x27;&lt;script&gt;&#x27;</td></tr>" in shown
    assert len(shown) < 2000
    interval = DifferenceInterval(low=-0.25, high=math.inf, level=0.95)
    change = example(MetricDifference, metric=hostile, verdict="better", difference=1 / 3, interval=interval, b=None)
    shown = example(documents.Comparison, a="a@0", b="b@1", contrasts=[change])._repr_html_()
    row = "<td>better</td><td>&lt;script&gt;</td><td>0.33333</td><td>-0.25</td><td>inf</td><td>0.431</td><td></td>"
    assert f"<td>A: a@0</td><td>B: b@1</td></tr><tr>{row}</tr></table>" in shown


def test_the_best_step_is_said_with_the_steps_within_its_noise() -> None:
    best = documents.NamedStep(run="run-a", step=1000, variant="raw", metric="loss/image", title="Image loss", of=2000)
    begins = "run-a@best is step 1,000 of run-a, the best of 2,000 by Image loss (loss/image); within its noise: "
    for within, words in (
        ([], "no other step"),
        ([900], "step 900"),
        ([900, 1100], "steps 900, 1,100"),
        ([*range(100, 4000, 100)], "39 of the 40 best steps, from 100 to 3,900"),
    ):
        assert best.model_copy(update={"within_noise": within}).words("run-a@best") == begins + words
