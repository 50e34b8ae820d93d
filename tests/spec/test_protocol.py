import json
import math
from dataclasses import replace
from typing import Any

import pytest

from evalsvc.errors import InvalidData
from evalsvc.spec import protocol
from evalsvc.spec.protocol import ABSENT, MetricValue, Protocol, describe_fields, differences, digest


def test_digest_is_stable() -> None:
    """Stored series carry it: a change of the canonical form would split every history in two. NaN is not JSON and not
    equal to itself: a protocol with it would be another series every time."""
    assert protocol.canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert Protocol({"task": "loss", "limit": None}).id == digest({"limit": None, "task": "loss"})[:16]
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"x": math.nan})


@pytest.mark.parametrize(("name", "unit"), [("coco/fid\x1b[2J", ""), ("coco/fid", "nats\r"), ("a\nb", "nats")])
def test_names_and_units_are_shown_on_terminals(name: str, unit: str) -> None:
    """A benchmark of somebody's own, or a plug-in, says what they are."""
    with pytest.raises(InvalidData, match=r"the (name|unit) of a metric, .* has the control character .*; remove it"):
        MetricValue(name, 1.0, None, 3, unit, "lower", Protocol({}))


def test_metric_value_to_json() -> None:
    protocol = Protocol({"task": "loss"})
    metric = MetricValue("pairs/text", math.nan, None, 3, "nats/token", "lower", protocol, 6.5)
    numbers = {"value": "NaN", "stderr": None, "n": 3, "baseline": 6.5, "groups": None, "drawn_from": None}
    words = {"name": "pairs/text", "unit": "nats/token", "direction": "lower", "items": [], "grouped_by": None}
    whole = {**numbers, **words, "protocol": protocol.id}
    assert json.loads(json.dumps(metric.to_json(), allow_nan=False)) == whole
    assert replace(metric, ends=(1.0, None)).to_json() == whole | {"low": 1.0, "high": None}


def test_differences_are_named_by_dotted_keys() -> None:
    one, other = {"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [2], "d": 2}, "data": "0" * 64}
    assert differences(one, other) == {"b.c": ([1], [2]), "data": (ABSENT, "0" * 64)}
    assert differences(one, dict(one)) == {}
    assert differences({"n": 1}, {"n": True}) == {"n": (1, True)}, "equal for Python"
    assert protocol.describe_differences(differences(one, other)) == 'b.c [1] → [2], data (none) → "000000000000000…"'


def told(*contents: dict[str, Any]) -> list[dict[str, Any]]:
    """What tells these protocols apart; their ids are `p0`, `p1`, …"""
    return list(protocol.distinguishing({f"p{place}": content for place, content in enumerate(contents)}).values())


def guided(scale: float, **more: Any) -> dict[str, Any]:
    return {"task": "text_to_image", "data": "ab", "sampling": {"seed": 0, "guidance_scale": scale}, **more}


class TestToldApart:
    def test_by_the_fields_that_differ(self) -> None:
        assert told(guided(1.0), guided(3.0), guided(1.0, limit=64)) == [
            {"sampling.guidance_scale": 1.0},
            {"sampling.guidance_scale": 3.0},
            {"sampling.guidance_scale": 1.0, "limit": 64},
        ]
        assert told(guided(1.0)) == [{}]
        assert told(guided(1.0), guided(3.0, limit=64))[1] == {"sampling.guidance_scale": 3.0, "limit": 64}

    def test_what_a_protocol_lacks_is_not_filled_in(self) -> None:
        """An imported value was shown with the guidance scale of the first measured one."""
        assert told(guided(1.0), guided(3.0), {"stated": "torch-fidelity 0.3"}) == [
            {"sampling.guidance_scale": 1.0},
            {"sampling.guidance_scale": 3.0},
            {"stated": "torch-fidelity 0.3"},
        ]
        assert told(guided(1.0), {"stated": "by hand"}, {"tool": "x", "n": 5}) == [
            {"protocol": "p0"},
            {"stated": "by hand"},
            {"tool": "x", "n": 5},
        ]

    def test_a_key_does_not_stand_beside_its_parent(self) -> None:
        """Where one protocol had no `sampling`, the others had both `sampling` and `sampling.guidance_scale`."""
        for fields in told(guided(1.0), guided(2.0), {"task": "text_to_image", "sampling": None}):
            assert not {"sampling"} < fields.keys()
        assert told({"a": {"b": 1}}, {"a": {}}, {"a": 2}) == [{"a.b": 1}, {"a": {}}, {"a": 2}]
        # A protocol of 100,000 fields made every read of the history take seconds, and show them.
        assert told({str(place): 0 for place in range(2_000)}, guided(1.0)) == [{"protocol": "p0"}, {"protocol": "p1"}]

    def test_every_field_is_as_its_own_protocol_has_it(self) -> None:
        contents = [guided(1.0), guided(2.0, limit=8), {"sampling": 3}, {"stated": "x"}, {"task": "fid", "n": 3}, {}]
        for content, fields in zip(contents, told(*contents), strict=True):
            for key, value in fields.items():
                place: Any = content
                for part in key.split(".") if key != "protocol" else ():
                    place = place[part]
                assert key == "protocol" or place == value

    @pytest.mark.parametrize(
        "contents",
        [
            [{}, {}],
            [{"stated": "x" * 60 + "a"}, {"stated": "x" * 60 + "b"}],
            [{"a.b": 1}, {"a": {"b": 1}}],
            [{"n": 1}, {"n": 1.0}, {"n": True}],
            [{str(place): 0} for place in range(40)],
            [{str(place): side for place in range(2_000)} for side in (0, 1)],
        ],
        ids=["unknown", "cut in words", "a dot in a key", "equal for Python", "many forms", "many fields"],
    )
    def test_no_two_have_the_same_words(self, contents: list[dict[str, Any]]) -> None:
        words = [describe_fields(fields) for fields in told(*contents)]
        assert len({*words, ""}) == len(contents) + 1


def test_numbers_and_texts_that_json_or_a_database_does_not_hold_are_replaced() -> None:
    """Half of a surrogate pair in a completion made every answer with the completion an internal error."""
    numbers = {1.5: 1.5, None: None, math.nan: "NaN", math.inf: "Infinity", -math.inf: "-Infinity", 3: 3}
    assert list(map(protocol.number_to_json, numbers)) == list(numbers.values())
    assert protocol.plain_json({"a\0": ["b\ud800c", "🐈"]}) == {"a\ufffd": ["b\ufffdc", "🐈"]}
