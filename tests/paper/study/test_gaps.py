"""Gaps between two starts along the steps, with their intervals."""

from __future__ import annotations

from typing import Any

import pytest
from fig_3 import verdict
from study.gaps import GapCurve

from evalsvc.spec.documents.comparisons import DifferenceCurve


def difference(values: list[float], reach: float = 0.05) -> Any:
    """Return the curve of differences of one seed, with intervals of the same width."""
    count = len(values)
    return DifferenceCurve(
        metric="pairs/image",
        task="pairs",
        unit="nats/token",
        direction="lower",
        protocol="0" * 16,
        differs={},
        step_level=0.95,
        simultaneous_level=0.95,
        x=[0, 10, 100][:count],
        a=[2.0] * count,
        a_stderr=[0.1] * count,
        b=[2.0 + value for value in values],
        b_stderr=[0.1] * count,
        difference=list(values),
        stderr=[reach / 2] * count,
        low=[value - reach for value in values],
        high=[value + reach for value in values],
        verdict=["indistinguishable"] * count,
        basis=["paired"] * count,
        n=[300] * count,
        groups=[None] * count,
        n_only_a=[0] * count,
        n_only_b=[0] * count,
        first_indistinguishable=None,
        indistinguishable_from=None,
        largest_not_excluded=None,
        first_apart=None,
        apart_from=None,
        sign_changes=[],
    )


def test_a_gap_rests_on_the_spread_between_seeds() -> None:
    """At step 100 each seed's items exclude zero, and the seeds contradict each other: nothing is shown."""
    gap = GapCurve("pairs/image", [difference([-3.0, -0.5, 0.1]), difference([-3.1, -0.4, -0.1])])
    assert [estimate.covers_zero for estimate in gap.estimates] == [False, True, True]
    assert gap.closed_from() == 10
    assert gap.item_errors == [0.025] * 3
    assert "from step 10 on" in gap.sentence()


def test_a_gap_of_one_seed_has_the_interval_of_its_items() -> None:
    gap = GapCurve("pairs/image", [difference([-3.0, 0.02, -0.2])])
    assert gap.last.low == pytest.approx(-0.25)
    assert gap.closed_from() is None, "zero is left again after step 10"
    assert verdict(gap) == "in part"
    assert verdict(GapCurve("pairs/image", [difference([-1.0, -1.0, -0.9])])) == "no"
    assert verdict(GapCurve("pairs/image", [difference([-1.0, -1.0, 0.01])])) == "yes"
    assert verdict(GapCurve("pairs/image", [difference([-0.2, -1.0, 0.01])])) == "in part", "as wide as the first gap"
