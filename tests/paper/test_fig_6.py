"""The verdict on images without captions."""

from __future__ import annotations

from fig_6 import agrees
from study.measured import Estimate


def test_a_part_that_beats_the_random_start_contradicts_the_paper() -> None:
    below, covering, above = Estimate(-0.05, -0.06, -0.04), Estimate(-0.05, -0.2, 0.1), Estimate(0.3, 0.2, 0.4)
    assert agrees({"pretrained": covering, "tables": above}) == "yes"
    assert agrees({"pretrained": below, "tables": above}) == "in part"
    assert agrees({"pretrained": below, "tables": below}) == "no"
