"""What a verification finds, and when it counts as right."""

import json
import math

from evalsvc.verify.agreement import COLUMNS, Agreement, Untried, all_agree, table_row, to_json

UNTRIED = Untried("fid", "torch-fidelity", "torch-fidelity is not installed")


def test_numbers_agree_within_the_tolerance() -> None:
    assert Agreement.of_numbers("fid", "a program", 1.0, 1.5, 0.5).agrees
    assert not Agreement.of_numbers("fid", "a program", 1.0, 1.6, 0.5).agrees


def test_nan_never_agrees() -> None:
    assert not Agreement.of_numbers("fid", "a program", math.nan, math.nan, 1.0).agrees
    assert not Agreement.of_arrays("logits", "a program", [0.0, math.nan], [0.0, 0.0], 1.0).agrees


def test_arrays_are_compared_element_by_element() -> None:
    found = Agreement.of_arrays("logits", "a program", [[1.0, 2.0]], [[1.0, 2.25]], 0.1)
    assert (found.difference, found.verdict) == (0.25, "WRONG")


def test_arrays_of_other_shapes_do_not_agree() -> None:
    found = Agreement.of_arrays("logits", "a program", [1.0], [[1.0]], 1e9)
    assert not found.agrees
    assert found.note == "shapes [1] and [1, 1]"


def test_where_nothing_was_tried_nothing_is_right() -> None:
    right = Agreement.of_numbers("fid", "a program", 1.0, 1.0, 0.0)
    assert not all_agree([])
    assert not all_agree([UNTRIED])
    assert all_agree([UNTRIED, right])


def test_a_finding_is_a_row_and_a_document() -> None:
    findings = [UNTRIED, Agreement.of_arrays("logits", "golden values", [math.inf], [0.0], 1e-5)]
    assert [len(table_row(finding)) for finding in findings] == [len(COLUMNS)] * 2
    document = to_json(findings)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert [item["verdict"] for item in document["findings"]] == ["not tried", "WRONG"]
