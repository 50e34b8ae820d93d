"""Parameters of `alignment` that are refused."""

from typing import Any

import pytest

from evalsvc.errors import InvalidSuite
from evalsvc.spec.suite import parse_suite


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"learn": {"step": 5}}, "learn.step"),
        ({"learn": {"data": "pairs.jsonl"}}, "learn.data: 'pairs.jsonl' is relative"),
        ({"learn": {"rate": 0}}, "learn.rate: input should be greater than 0"),
        ({"learn": {"rate": 1e38}}, "learn.rate: input should be less than or equal to 10"),
        ({"table": "both"}, "table: input should be 'input' or 'output'"),
        ({"batch": 1}, "batch: input should be greater than or equal to 2"),
    ],
)
def test_wrong_parameters_are_refused_with_the_suite(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSuite, match=message):
        parse_suite({"tasks": [{"kind": "alignment", "data": "/pairs.jsonl", **parameters}]}, "test")
