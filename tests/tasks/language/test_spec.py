"""Parameters of `language` that are refused."""

from typing import Any

import pytest

from evalsvc.errors import InvalidSuite
from evalsvc.spec.suite import parse_suite


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"benchmarks": []}, "benchmarks: tuple should have at least 1 item"),
        ({"benchmarks": ["piqa", {"name": "piqa", "limit": 3}]}, "the benchmark 'piqa' is there twice; put one of"),
        (
            {"benchmarks": [{"name": "piqa", "limit": 3, "samples": [1]}]},
            "benchmarks.0: `limit` and `samples` are both given",
        ),
        (
            {"benchmarks": [{"name": "piqa", "sample": 3, "samples": [1]}]},
            "benchmarks.0: `samples` and `sample` are both given",
        ),
        ({"benchmarks": ["piqa"], "sample": 3, "limit": 3}, "`limit` and `sample` are both given; give the one"),
        ({"benchmarks": ["piqa"], "include_path": ["here"]}, "include_path.0: 'here' is relative; give an absolute"),
        ({"benchmarks": ["piqa"], "limits": 3}, "no key is named 'limits'; did you mean 'limit'"),
    ],
)
def test_a_wrong_suite_is_refused_when_it_is_given(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSuite) as error:
        parse_suite({"tasks": [{"kind": "language", **parameters}]}, "test")
    assert message in error.value.message
