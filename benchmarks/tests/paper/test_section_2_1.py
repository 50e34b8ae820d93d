"""The verdict on other learning rates and batches."""

from __future__ import annotations

from section_2_1 import agrees


def test_one_setting_with_another_conclusion_leaves_agreement_in_part() -> None:
    assert agrees(["yes", "yes", "yes"]) == "yes"
    assert agrees(["yes", "in part", "yes"]) == "in part"
    assert agrees(["no", "yes", "yes"]) == "in part"
    assert agrees(["no", "no", "yes"]) == "no"
