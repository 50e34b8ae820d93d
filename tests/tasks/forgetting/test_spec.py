"""Parameters of `forgetting` that are refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from evalsvc.tasks.forgetting.spec import Forgetting


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "neither `benchmarks` nor `text` is given"),
        ({"benchmarks": ["a"], "text_limit": 3}, "`text_limit` is given without `text`"),
        ({"text": "/a", "icl_positions": [500, 50]}, "the earlier one first"),
        ({"benchmarks": ["a"], "icl": ["b"]}, "icl: 'b' is not one of `benchmarks`, which are a"),
        ({"text": "/a", "icl": True}, "icl: there are no `benchmarks`"),
    ],
)
def test_what_cannot_be_is_refused_with_the_suite(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Forgetting(name="x", **parameters)
