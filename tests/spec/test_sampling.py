"""Parameters of sampling, and looks at a task."""

import math
from typing import Any

import numpy as np
import pytest

from evalsvc.errors import InvalidRequest
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.ratio import Ratio
from evalsvc.metrics.shares import share_stderr
from evalsvc.metrics.value_interval import value_interval
from evalsvc.spec.looks import FEWEST_UNITS, MOST, Until, schedule
from evalsvc.spec.sampling import SamplingParams


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0, or 0.001 or more"),
        ({"temperature": 1e-4}, "temperature is 0.0001"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number above 0"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"guidance_scale": -1}, "guidance_scale is -1; it must be 0 to 1,000,000"),
        ({"guidance_scale": 1e308}, "guidance_scale is 1e\\+308; it must be 0 to"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"temperature": 0, "top_k": 5}, "top_k has no effect at temperature 0"),
        ({"temperature": 0, "top_p": 0.9}, "top_p has no effect at temperature 0"),
    ],
)
def test_wrong_params_name_the_field(fields: dict[str, Any], fragment: str) -> None:
    with pytest.raises(InvalidRequest, match=fragment):
        SamplingParams(**fields)


def test_equal_draws_have_equal_params() -> None:
    """They are part of a series' identity: 1 and 1.0 must not be two series."""
    plain = {"temperature": 1.0, "top_k": None, "top_p": None, "guidance_scale": 1.0, "seed": 0}
    assert SamplingParams(temperature=1, top_p=1, guidance_scale=1).to_json() == plain
    assert str(SamplingParams(temperature=1)) == str(SamplingParams())
    assert [SamplingParams(guidance_scale=scale).guided for scale in (1, 0)] == [False, True]


@pytest.mark.parametrize(
    ("units", "before", "looks"),
    [
        ([256] * 16, 0, ((1, 256), (2, 512), (4, 1024), (8, 2048), (16, 4096))),
        ([400, *[256] * 4], 1, ((2, 256), (3, 512), (5, 1024))),
        ([128, 128], 0, ((2, 256),)),
        ([1000], 0, ((1, 1000),)),
        ([300, 300, 300, 100], 0, ((1, 300), (2, 600), (4, 1000))),
        ([7] * 3, 1, ((3, 14),)),
        ([], 0, ()),
        ([5], 1, ()),
    ],
)
def test_each_look_has_twice_the_units_of_the_one_before(units: list[int], before: int, looks: Any) -> None:
    assert schedule(units, before) == looks
    many = schedule([256] * 117 + [48])
    assert [units for _, units in many] == [256, 512, 1024, 2048, 3840, 7680, 15104, 30000], "few at many images"
    assert (many[-1], len(schedule([FEWEST_UNITS] * 5000))) == ((118, 30000), MOST)


class TestUntil:
    def metric(self, name: str, stderr: Any, **fields: Any) -> dict[str, Any]:
        return {"name": name, "value": 0.5, "stderr": stderr, "n": 100, "unit": "distance", **fields}

    def share(self, hits: float, n: int) -> dict[str, Any]:
        return self.metric("coco/agreement", share_stderr(hits, n), value=hits / n, n=n, unit="fraction")

    @pytest.mark.parametrize("errors", [[0.0011], [None], ["NaN"], [], [0.001, 0.002], [0.0], [0.0005, "NaN"], [0.001]])
    def test_the_error_of_the_named_metric(self, errors: list[Any]) -> None:
        """An error that is not known, or not finite, is not a small one. That of a distance of zero is no share's."""
        metrics = [self.metric("coco/fid", 1e-9), *(self.metric("coco/kid", error, value=0.0) for error in errors)]
        reason = "the standard error of kid, 0.001, is at most 0.001" if errors == [0.001] else None
        assert Until(stderr=0.001, metric="kid").reached(metrics) == reason

    def test_a_share_without_a_hit_stops_nothing_that_a_hit_would_keep_going(self) -> None:
        """At a look without any hit a share stood beside an error of zero, and ended its task as 0 ± 0."""
        until = Until(stderr=0.002, metric="agreement")
        for hits, n, enough in ((0, 256, False), (256, 256, False), (1, 256, False), (0, 1024, True), (3, 1024, False)):
            assert (until.reached([self.share(hits, n)]) is not None) is enough
        for counts in ({"n": 256}, {"n": 1024, "groups": 256}):
            assert until.reached([self.metric("coco/agreement", 0.0, value=0.0, unit="fraction", **counts)]) is None

    def test_the_error_of_a_share_is_that_of_as_many_independent_items_as_its_error_says(self) -> None:
        """Shares of a stratified sample have the error of more items, and are stopped by it."""
        assert Until(stderr=0.0101, metric="x").reached([self.metric("t/x", 0.01, value=0.5, n=100, unit="fraction")])
        assert not Until(stderr=0.0099, metric="x").reached([self.metric("t/x", 0.01, value=0.5, unit="fraction")])

    @pytest.mark.parametrize("chance", [0.003, 0.02, 0.997])
    def test_the_interval_of_a_stopped_share_holds_the_truth(self, chance: float) -> None:
        """Looks at 256, 512, …, 8,192 images, and the error of 1,024 asked for: the interval of 95 % at the look that
        stops it. By its plain error a share of 0.003 is stopped too low, by three quarters of the error."""
        random = np.random.default_rng(0)
        ns = [256 * 2**look for look in range(6)]
        until = Until(stderr=math.sqrt(chance * (1 - chance) / 1024), metric="agreement")
        held, biases = 0, []
        for counts in random.binomial(np.diff(ns, prepend=0), chance, (400, len(ns))).cumsum(axis=1).tolist():
            looks = list(zip(counts, ns, strict=True))
            hits, n = next((look for look in looks if until.reached([self.share(*look)])), looks[-1])
            answers = Numbers([], [[0.0, 1.0]])
            interval = value_interval(Ratio(hits / n, share_stderr(hits, n), n), "fraction", "share", answers)
            held += interval.low <= chance <= interval.high
            biases.append((hits / n - chance) / until.stderr)
        assert held >= 0.92 * 400
        assert abs(np.mean(biases)) < 0.35
