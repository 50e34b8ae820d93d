"""The rules of the verdicts, and how often they are wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest
from study.claims import Claim, verdicts

REPETITIONS = 1_200


def share(verdict: str, spread: float, items: float, seed: int, **claim: Any) -> float:
    """Return how often a verdict is reached, with three seeds that share their items."""
    draw, reached = random.Random(seed), 0
    truth = claim.pop("truth")
    for _ in range(REPETITIONS):
        common = draw.gauss(0, items)
        values = [truth + common + draw.gauss(0, spread) for _ in range(3)]
        one = Claim("", values, [items] * 3, **claim)
        reached += verdicts({"finding": [one]})["finding"] == verdict
    return reached / REPETITIONS


@pytest.mark.parametrize(("spread", "items"), [(0.3, 0.0), (0.1, 0.1), (1.0, 0.3)])
@pytest.mark.parametrize(
    ("region", "bound", "at_bound", "holds"),
    [("within", 1.0, 1.0, 0.0), ("above", 0.5, 0.5, 0.5), ("below", 0.2, 0.2, 0.2)],
)
def test_verdicts_are_wrong_in_one_of_twenty_at_most(
    region: Any, bound: float, at_bound: float, holds: float, spread: float, items: float
) -> None:
    """A true value at the bound is no `yes`, and one that the claim allows no `no`; 3.5 deviations of 1,200 draws."""
    claim = {"region": region, "bound": bound}
    assert share("yes", spread, items, 1, truth=at_bound, **claim) < 0.072
    assert share("no", spread, items, 2, truth=holds, **claim) < 0.072


def test_a_rule_says_yes_and_no_where_the_truth_is_far() -> None:
    assert share("yes", 0.1, 0.05, 1, truth=0.0, region="within", bound=1.0) > 0.95
    assert share("no", 0.1, 0.05, 1, truth=2.0, region="within", bound=1.0) > 0.95
    assert share("undecided", 2.0, 0.05, 1, truth=0.0, region="within", bound=1.0) > 0.9, (
        "no agreement by wide intervals"
    )


def test_a_finding_holds_with_all_of_its_claims_and_at_a_level_of_all_findings() -> None:
    """Exact values: the error is that of the items alone, and 1.96 errors are a p-value of 0.025."""

    def claim(errors: float) -> Claim:
        return Claim("", [errors, errors], [1.0, 1.0], "above", 0.0)

    sure, likely, against = claim(9.0), claim(1.96), claim(-9.0)
    assert likely.p_values[0] == pytest.approx(0.025, abs=1e-3)
    assert verdicts({"a": [sure, likely], "b": [sure, against], "c": [], "d": [sure]}) == {
        "a": "yes",
        "b": "no",
        "c": "not measured",
        "d": "yes",
    }
    twice = verdicts({"a": [likely], "b": [likely], "c": [claim(0.0)]})
    assert set(twice.values()) == {"undecided"}, "three findings, so the first needs a third of the level"
    assert verdicts({"a": [Claim("", [9.0], [1.0], "above", 0.0)]}) == {"a": "undecided"}, "one seed says nothing"
