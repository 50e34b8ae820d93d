"""Addresses of pages and panels: each has one meaning, and none is read that no page could make."""

from typing import Annotated, Literal
from urllib.parse import parse_qsl

import pytest
from pydantic import Field

from evalsvc.errors import InvalidRequest
from evalsvc.web.query import Query


class Example(Query):
    """A query with a parameter of each kind."""

    run: Annotated[str, Field(max_length=20)]
    others: Annotated[tuple[Annotated[str, Field(max_length=20)], ...], Field(max_length=2, alias="with")] = ()
    scale: Literal["linear", "log"] = "linear"
    smooth: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    step: Annotated[int, Field(ge=0, le=100)] | None = None


def test_an_address_is_read() -> None:
    query = Example.parse([("run", "a"), ("with", "b"), ("with", "c"), ("step", "7"), ("smooth", "0.5")])
    assert query == Example.model_validate({"run": "a", "with": ("b", "c"), "step": 7, "smooth": 0.5})


def test_fields_of_a_form_that_are_empty_are_left_out() -> None:
    assert Example.parse([("run", "a"), ("step", ""), ("scale", ""), ("with", "")]) == Example(run="a")


@pytest.mark.parametrize(
    "query",
    [
        Example(run="a"),
        Example.model_validate({"run": "a&b=c", "with": ("+ %", "ü🐈"), "scale": "log", "step": 0, "smooth": 0.97}),
        Example.model_validate({"run": "<script>", "with": ("",)}),
    ],
)
def test_the_address_of_a_query_is_read_as_the_same_query(query: Example) -> None:
    given = [value for value in query.others if value]
    assert Example.parse(parse_qsl(query.to_query())) == query.model_copy(update={"others": tuple(given)})


def test_an_address_names_only_what_differs_from_the_default() -> None:
    assert Example(run="a", scale="linear", smooth=0.0).to_query() == "run=a"
    assert Example(run="a", step=0).to_query() == "run=a&step=0"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("run", "a"), ("smoth", "1")], "no parameter is named 'smoth'; did you mean 'smooth'"),
        ([("run", "a"), ("others", "b")], "no parameter is named 'others'"),
        ([("run", "a"), ("run", "b")], "the parameter 'run' is given twice; give it once"),
        ([("with", "b")], "run: Field required"),
        ([("run", "a" * 21)], "run: String should have at most 20 characters"),
        ([("run", "a"), ("with", "b"), ("with", "c"), ("with", "d")], "with: Tuple should have at most 2 items"),
        ([("run", "a"), ("with", "b" * 21)], "with.0: String should have at most 20 characters"),
        ([("run", "a"), ("scale", "cubic")], "scale: Input should be 'linear' or 'log', found 'cubic'"),
        ([("run", "a"), ("smooth", "nan")], "smooth: Input should be less than or equal to 0.99, found 'nan'"),
        ([("run", "a"), ("smooth", "inf")], "smooth: Input should be less than or equal to 0.99, found 'inf'"),
        ([("run", "a"), ("step", "-1")], "step: Input should be greater than or equal to 0, found '-1'"),
        ([("run", "a"), ("step", "9" * 5000)], "step: "),
    ],
)
def test_what_no_page_could_have_made_is_refused(pairs: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Example.parse(pairs)
    assert words in refused.value.message
    assert len(refused.value.message) < 300, "what somebody sends is not sent back at length"
