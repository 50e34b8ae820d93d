import math

import pytest
from scipy import stats

from evalsvc.metrics.student import critical_value, upper_tail


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 15, 16, 63])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.0, 6.0, 12.0])
def test_tail_is_scipys(dof: int, t: float) -> None:
    """Odd and even degrees of freedom have sums of their own, and each has a first term that is easily lost."""
    assert upper_tail(t, dof) == pytest.approx(stats.t.sf(t, dof), abs=1e-14)


@pytest.mark.parametrize("dof", [1, 2, 7, 15, 100])
@pytest.mark.parametrize("level", [0.05, 1e-3, 1e-5])
def test_critical_value_is_scipys(dof: int, level: float) -> None:
    assert critical_value(level, dof) == pytest.approx(stats.t.isf(level, dof), rel=1e-6)


def test_one_value_decides_nothing() -> None:
    assert critical_value(0.05, 0) == math.inf
