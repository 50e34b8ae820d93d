"""The verdict on the FID of both starts."""

from __future__ import annotations

from fid import agrees
from study.measured import Estimate


def test_a_wide_interval_of_a_fid_is_no_agreement() -> None:
    assert agrees(Estimate(0.01, -0.02, 0.04), 0.1) == "yes"
    assert agrees(Estimate(0.01, -0.09, 0.11), 0.1) == "in part"
    assert agrees(Estimate(0.03, 0.01, 0.05), 0.1) == "no"
