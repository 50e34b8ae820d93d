"""Parameters of `completions` that are refused."""

from typing import Any

import pytest

from evalsvc.errors import InvalidSuite
from evalsvc.spec.suite import parse_suite


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prompts": []}, "prompts: tuple should have at least 1 item"),
        ({"prompts": ["a", "b", "a"]}, "the prompt 'a' is given twice"),
        ({"temperature": 0}, "seeded completions at temperature 0 are the greedy one; set samples to 0"),
        ({"top_p": 2}, "top_p is 2.0"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0, found -1"),
        ({"guidance_scale": 2}, "no key is named 'guidance_scale'"),
    ],
)
def test_parameters_are_checked_when_the_suite_is_given(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSuite, match=message):
        parse_suite({"tasks": [{"kind": "completions", **parameters}]}, "test")
