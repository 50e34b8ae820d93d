"""Gaps between two starts along the steps, with their intervals."""

from __future__ import annotations

import pytest
from fig_3 import verdict
from gap_curves import difference
from study.gaps import GapCurve


def test_a_gap_rests_on_the_spread_between_seeds() -> None:
    """At step 100 each seed's items exclude zero, and the seeds contradict each other: nothing is shown."""
    gap = GapCurve("pairs/image", [difference([-3.0, -0.5, 0.1]), difference([-3.1, -0.4, -0.1])])
    assert [estimate.covers_zero for estimate in gap.estimates] == [False, True, True]
    assert gap.closed_from() == 10
    assert gap.item_errors == [0.025] * 3
    assert gap.sentence().endswith("from step 10 on; not excluded at the end: a gap of up to 1.27")


def test_a_gap_of_one_seed_has_the_interval_of_its_items() -> None:
    gap = GapCurve("pairs/image", [difference([-3.0, 0.02, -0.2])])
    assert gap.last.low == pytest.approx(-0.25)
    assert gap.closed_from() is None, "zero is left again after step 10"
    assert verdict(gap) == "in part"
    assert verdict(GapCurve("pairs/image", [difference([-1.0, -1.0, -0.9])])) == "no"
    assert verdict(GapCurve("pairs/image", [difference([-1.0, -1.0, 0.01])])) == "yes"
    assert verdict(GapCurve("pairs/image", [difference([-0.2, -1.0, 0.01])])) == "in part", "as wide as the first gap"
