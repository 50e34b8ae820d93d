"""When a recorded value is held to what another program computes, and what is said where it is not."""

from typing import Any

from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.recorded import RecordedMetric
from evalsvc.verify.recorded_values import RecordedValues

NOW = Agreement.of_numbers("loss/text", "open_lm", 1.0, 1.0, 0.1, "as measured")
PROTOCOL = {"task": "loss", "data": "d1", "limits": (1, 2)}


def compare(recorded: RecordedValues) -> list[Finding]:
    return list(recorded.compare(NOW, PROTOCOL))


def recorded(value: float = 3.0, dtype: str = "float32", **protocol: Any) -> RecordedValues:
    """As a service's answer has it: a tuple has become a list."""
    return RecordedValues.of([RecordedMetric("loss/text", value, 9, {**PROTOCOL, "limits": [1, 2], **protocol})], dtype)


def test_a_recorded_value_takes_the_place_of_ours() -> None:
    [finding] = compare(recorded())
    assert isinstance(finding, Agreement)
    assert (finding.ours, finding.theirs, finding.verdict) == (3.0, 1.0, "WRONG")
    assert finding.note == "recorded; as measured"


def test_without_a_recorded_value_ours_is_computed_here() -> None:
    [finding] = compare(RecordedValues({}))
    assert finding == Agreement.of_numbers("loss/text", "open_lm", 1.0, 1.0, 0.1, "computed here; as measured")


def test_a_part_of_the_data_says_how_to_compare_all() -> None:
    [finding] = compare(recorded().over(4, 9))
    assert isinstance(finding, Agreement)
    assert (finding.ours, finding.verdict) == (1.0, "ok")
    assert finding.note == "computed here; over 4 of 9; --n 9 compares the recorded value; as measured"
    assert compare(recorded().over(9, 9)) == compare(recorded())


def test_another_type_is_not_compared() -> None:
    [finding] = compare(recorded(dtype="bfloat16").over(9, 9))
    assert isinstance(finding, Agreement)
    assert (finding.ours, finding.verdict) == (1.0, "ok")
    assert "the recorded value was computed in bfloat16, this in float32" in finding.note


def test_another_protocol_is_told() -> None:
    """The file has changed since: neither number is wrong."""
    now, then = compare(recorded(data="d0"))
    assert now.verdict == "ok"
    assert isinstance(then, Untried)
    assert then.quantity == "loss/text as recorded"
    assert then.reason == "recorded by another protocol, with another data; evaluate again"
