"""Curves of differences between two runs, as the service returns them."""

from __future__ import annotations

from typing import Any

from evalsvc.spec.documents.comparisons import DifferenceCurve


def difference(values: list[float], reach: float = 0.05) -> Any:
    """Return the curve of differences of one seed, with intervals over items of the same width."""
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
