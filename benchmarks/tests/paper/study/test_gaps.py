"""Gaps between two starts along the steps, with their intervals."""

from __future__ import annotations

import pytest
from gap_curves import difference
from study.gaps import GapCurve


def test_a_gap_rests_on_the_spread_between_seeds() -> None:
    """At step 100 each seed's items exclude zero, and the seeds contradict each other: nothing is shown."""
    gap = GapCurve("pairs/image", [difference([-3.0, -0.5, 0.1]), difference([-3.1, -0.4, -0.1])])
    assert gap.last.low is not None
    assert gap.last.low < -1 < 0 < 1 < (gap.last.high or 0)
    assert gap.tolerance == pytest.approx(0.02 * 2.0), "of the random side's loss"
    claim = gap.claim("first", "below", 0.0, place=0)
    assert (claim.values, claim.errors) == ([-3.0, -3.1], [0.025] * 2)
    assert gap.sentence().endswith("by seed 0.1, −0.1; the bound is ± 0.04")


def test_a_gap_of_one_seed_has_the_interval_of_its_items() -> None:
    gap = GapCurve("pairs/image", [difference([-3.0, 0.02, -0.2])])
    assert gap.last.low == pytest.approx(-0.25)
    assert len(gap.curves()) == 1
