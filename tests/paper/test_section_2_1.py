"""The verdict on other learning rates and batches."""

from __future__ import annotations

from section_2_1 import agrees
from study.measured import Estimate


def test_a_gap_within_the_spread_of_seeds_shows_no_advantage_for_sure() -> None:
    below, above = Estimate(-0.05, -0.06, -0.04), Estimate(0.01, -0.01, 0.03)
    assert agrees([above, above, above], 0.02) == "yes"
    assert agrees([below, below, above], 0.02) == "no"
    assert agrees([below, below, above], 0.08) == "in part"
    assert agrees([below, above, above], 0.02) == "in part"
