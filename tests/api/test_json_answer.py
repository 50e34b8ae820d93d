"""Responses are JSON whatever is in them."""

import json
import math

from evalsvc.api.answers import JsonAnswer


def test_numbers_that_are_none_become_strings_wherever_they_are() -> None:
    """A plug-in's provenance may hold them; a response that cannot be rendered would be a 500."""
    content = {"a": [1.5, {"b": math.nan}], "c": -math.inf, "d": None}
    assert json.loads(JsonAnswer(content).body) == {"a": [1.5, {"b": "NaN"}], "c": "-Infinity", "d": None}
