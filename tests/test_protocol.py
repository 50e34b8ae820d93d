import json
import math

import pytest

from evalsvc.protocol import (
    ABSENT,
    MetricValue,
    Protocol,
    canonical_json,
    describe_differences,
    differences,
    digest,
    distinguishing,
    number_to_json,
)


def test_canonical_json_has_one_spelling_per_value() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'


def test_nan_has_no_identity() -> None:
    """NaN is not JSON and not equal to itself: a protocol with it would be another series every time."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"x": math.nan})


def test_digest_is_stable() -> None:
    """Stored series carry it: a change of the canonical form would split every history in two."""
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_protocol_id_is_of_the_content() -> None:
    protocol = Protocol({"task": "loss", "limit": None})
    assert protocol.id == digest({"limit": None, "task": "loss"})[:16]
    assert protocol.id != Protocol({"task": "loss", "limit": 1}).id


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.5, 1.5), (None, None), (math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (3, 3)],
)
def test_numbers_that_json_has_no_words_for(value: float | None, expected: float | str | None) -> None:
    assert number_to_json(value) == expected


def test_metric_value_to_json() -> None:
    protocol = Protocol({"task": "loss"})
    metric = MetricValue("pairs/text", math.nan, None, 3, "nats/token", "lower", protocol, 6.5)
    assert json.loads(json.dumps(metric.to_json(), allow_nan=False)) == {
        "name": "pairs/text",
        "value": "NaN",
        "stderr": None,
        "n": 3,
        "unit": "nats/token",
        "direction": "lower",
        "protocol": protocol.id,
        "baseline": 6.5,
        "items": [],
    }


def test_differences_are_named_by_dotted_keys() -> None:
    one, other = {"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [2], "d": 2}, "data": "0" * 64}
    assert differences(one, other) == {"b.c": ([1], [2]), "data": (ABSENT, "0" * 64)}
    assert differences(one, dict(one)) == {}
    assert describe_differences(differences(one, other)) == 'b.c [1] → [2], data (none) → "000000000000000…'


def test_several_protocols_are_told_apart_by_the_fields_that_differ() -> None:
    guided = [{"data": "ab", "sampling": {"seed": 0, "guidance_scale": scale}} for scale in (1.0, 3.0)]
    assert distinguishing([*guided, {**guided[0], "limit": 64}]) == [
        {"sampling.guidance_scale": 1.0},
        {"sampling.guidance_scale": 3.0},
        {"sampling.guidance_scale": 1.0, "limit": 64},
    ]
    assert distinguishing(guided[:1]) == [{}]
