"""What the findings read: intervals between seeds, and of shares."""

from __future__ import annotations

from dataclasses import replace

import pytest
from study.measured import Estimate, of_share, over_seeds, plain_curve


def test_an_interval_between_seeds_is_students() -> None:
    """t of 2 degrees of freedom is 4.3027 for 95 %; mean 2, deviation 1, n = 3."""
    estimate = over_seeds([1.0, 2.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.deviation == 1.0
    assert estimate.high == pytest.approx(2 + 4.3027 / 3**0.5, rel=1e-4)
    assert estimate.low == pytest.approx(2 - 4.3027 / 3**0.5, rel=1e-4)


def test_one_seed_has_no_interval_between_seeds() -> None:
    estimate = over_seeds([1.5])
    assert (estimate.value, estimate.low, estimate.deviation) == (1.5, None, None)


def test_a_share_of_right_answers_stays_below_one() -> None:
    point = plain_curve("pretrained", "cloze/acc", "fraction", [(0, Estimate(0.96, None, None))]).points[0]
    share = of_share(replace(point, n=24, stderr=(0.96 * 0.04 / 23) ** 0.5))
    assert share.value == 0.96
    assert share.low is not None
    assert share.high is not None
    assert share.low < 0.96 < share.high < 1
