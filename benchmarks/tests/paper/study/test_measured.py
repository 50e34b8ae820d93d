"""What the findings read: intervals between seeds."""

from __future__ import annotations

import pytest
from study.measured import over_seeds


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
