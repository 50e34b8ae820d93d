"""How much of an accuracy above chance is left, and the interval of that."""

import random
import statistics
from collections.abc import Sequence

import pytest

from evalsvc.metrics.intervals import Interval
from evalsvc.metrics.ratio import Ratio, interval_of_centred, ratio_of_centred
from evalsvc.metrics.shares import standard_error

CHANCE = 0.25


def forgetful(
    rng: random.Random, n: int, base_right: float, kept: float, gained: float
) -> tuple[list[float], list[float]]:
    """Answers of a base, and of a checkpoint that keeps a part of what it gets right and gains a part of the rest."""
    base = [float(rng.random() < base_right) for _ in range(n)]
    return base, [float(rng.random() < (kept if right else gained)) for right in base]


def test_a_ratio_by_hand() -> None:
    """3/4 before and 1/2 after, at chance 1/4: half of what was above chance is left."""
    found = ratio_of_centred([1, 1, 1, 0], [1, 1, 0, 0], CHANCE)
    parts = [1 - 0.25 - 0.5 * (1 - 0.25), 1 - 0.25 - 0.5 * (1 - 0.25), -0.25 - 0.5 * 0.75, -0.25 + 0.5 * 0.25]
    assert found == Ratio(0.5, pytest.approx(standard_error([part / 0.5 for part in parts])), 4)


def test_its_error_is_that_of_a_bootstrap() -> None:
    n, draw = 400, random.Random(4)
    base, values = forgetful(random.Random(10), n, 0.7, 0.8, 0.07)

    def retained(chosen: Sequence[int]) -> float:
        return (sum(values[i] for i in chosen) / n - CHANCE) / (sum(base[i] for i in chosen) / n - CHANCE)

    found = ratio_of_centred(base, values, CHANCE)
    assert found is not None
    spread = statistics.stdev(retained(draw.choices(range(n), k=n)) for _ in range(1000))
    assert found.stderr == pytest.approx(spread, rel=0.1)


def test_a_base_at_chance_has_no_ratio() -> None:
    assert ratio_of_centred([1, 0], [1, 1], 0.5) is None
    assert ratio_of_centred([], [], 0.5) is None


def test_an_interval_by_hand() -> None:
    """Its ends are where the difference x̄ − ρ ȳ is z standard errors from nothing."""
    base, values = forgetful(random.Random(21), 400, 0.7, 0.8, 0.07)
    found = interval_of_centred(base, values, CHANCE, level=0.9)
    assert found is not None
    for ratio in (found.low, found.high):
        parts = [x - CHANCE - ratio * (y - CHANCE) for y, x in zip(base, values, strict=True)]
        assert abs(statistics.fmean(parts)) == pytest.approx(1.6487 * (standard_error(parts) or 0), rel=1e-3)


@pytest.mark.parametrize(
    ("n", "base_right", "kept", "gained"),
    [(200, 0.35, 0.6, 0.2), (100, 0.6, 0.3, 0.2)],
    ids=["weak base", "nothing left"],
)
def test_it_covers_as_often_as_it_says(n: int, base_right: float, kept: float, gained: float) -> None:
    """Also where the base is two standard errors above chance, where a linearised interval misses on one side."""
    rng, draws = random.Random(n), 2000
    truth = (base_right * kept + (1 - base_right) * gained - CHANCE) / (base_right - CHANCE)
    missed = {"low": 0, "high": 0}
    for _ in range(draws):
        found = interval_of_centred(*forgetful(rng, n, base_right, kept, gained), CHANCE)
        missed["low"] += found is not None and truth < found.low
        missed["high"] += found is not None and truth > found.high
    share = {side: count / draws for side, count in missed.items()}
    assert 0.03 < share["low"] + share["high"] < 0.07
    assert all(0.005 < each < 0.05 for each in share.values())


def test_a_base_that_may_be_at_chance_has_no_interval() -> None:
    assert interval_of_centred([1, 0, 0, 0] * 9 + [1], [1, 0, 0, 0] * 9 + [0], CHANCE) is None
    assert interval_of_centred([1], [1], CHANCE) is None


def test_where_nothing_has_changed_all_is_left() -> None:
    base = [1.0] * 70 + [0.0] * 30
    one = pytest.approx(1)
    assert interval_of_centred(base, base, CHANCE) == Interval(one, one, 0.95)  # type: ignore[arg-type]
