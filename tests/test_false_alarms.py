"""How often the gate that samples until it is decided is wrong, and what it saves, on features of real samples.
`golden/anytime` has the features of 256 prompts' images under many seeds, from one checkpoint and from two others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from gate_documents import PROTOCOL, result
from numpy.typing import NDArray

from evalsvc.compare.gate_rules import Rule, Rules
from evalsvc.compare.result import Result
from evalsvc.metrics.fid import FID64
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import Estimate, FeatureSets
from evalsvc.metrics.sequential import boundaries
from evalsvc.spec.looks import Spending
from evalsvc.spec.protocol import MetricValue
from evalsvc.worker.trial import Both, Trial

LEVEL, LOOKS = 0.05, (256, 512, 1024, 2048)
FRACTIONS = tuple(n / LOOKS[-1] for n in LOOKS)

Features = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pool:
    same: Features  # [256, 16, 64]
    one: Features  # [256, 8, 64]
    other: Features  # [256, 8, 64]
    reference: Moments

    def alike(self, seed: int) -> tuple[Features, Features]:
        """Two samples of one checkpoint, [2048, 64] each: every prompt's images are dealt out to both sides."""
        random = np.random.default_rng(seed)
        dealt = random.permuted(np.broadcast_to(np.arange(16), (256, 16)), axis=1)
        order = [(prompt, place) for place in range(8) for prompt in random.permutation(256)]
        first = [self.same[prompt, dealt[prompt, place]] for prompt, place in order]
        second = [self.same[prompt, dealt[prompt, place + 8]] for prompt, place in order]
        return np.stack(first), np.stack(second)

    def different(self, seed: int) -> tuple[Features, Features]:
        """Both checkpoints on the same prompts and with the same noise, in another order for each seed."""
        random = np.random.default_rng(seed)
        order = np.array([(prompt, draw) for draw in random.permutation(8) for prompt in random.permutation(256)])
        prompts, draws = order[:, 0], order[:, 1]
        return self.other[prompts, draws], self.one[prompts, draws]


@pytest.fixture(scope="module")
def pool() -> Pool:
    with np.load(Path(__file__).parent / "golden" / "anytime" / "features.npz") as kept:
        arrays = {name: kept[name].astype(np.float32) for name in kept.files}
    return Pool(arrays["same"], arrays["one"], arrays["other"], Moments.of(arrays["reference"]))


def estimates(sides: tuple[Features, Features], pool: Pool) -> Iterator[tuple[Estimate, Estimate]]:
    for n in LOOKS:
        first, second = (FID64.estimate(FeatureSets(side[:n], pool.reference)) for side in sides)
        yield first, second


def scores(sides: tuple[Features, Features], pool: Pool) -> list[float]:
    gaps = [np.asarray(second.per_image) - first.per_image for first, second in estimates(sides, pool)]
    return [float(gap.mean() / (gap.std(ddof=1) / np.sqrt(len(gap)))) for gap in gaps]


@pytest.mark.usefixtures("many_cases")
def test_two_samples_of_one_checkpoint_are_seldom_told_apart(pool: Pool) -> None:
    """200 pairs, four looks at each; a plain test at every look is wrong nearly twice as often as it says."""
    walks = np.abs([scores(pool.alike(seed), pool) for seed in range(200)])
    for spending in get_args(Spending):
        alarms = (walks > np.array(boundaries(LEVEL, FRACTIONS, spending))).any(axis=1)
        assert alarms.mean() <= LEVEL, spending
    assert (walks > 1.96).any(axis=1).mean() > 1.5 * LEVEL


def side(estimate: Estimate) -> Result:
    assert estimate.per_image is not None
    items = [{"index": index, "fid64": share} for index, share in enumerate(estimate.per_image.tolist())]
    numbers: dict[str, Any] = {"unit": "distance", "direction": "lower", "protocol": PROTOCOL, "items": ("fid64",)}
    return result(MetricValue("t/fid64", estimate.value, estimate.stderr, estimate.n, **numbers), items={"t": items})


def test_two_different_checkpoints_take_a_part_of_the_images(pool: Pool) -> None:
    used = []
    for seed in range(5):
        trial = Trial("t", Rules((Rule(metric="t/fid64", standard_errors=1.96, relative=0.0),)))
        pair = pool.different(seed)
        for n, (first, second) in zip(LOOKS, estimates(pair, pool), strict=True):
            if trial.judge(Both(side(second), side(first), n, LOOKS[-1], "images", last=n == LOOKS[-1])):
                break
        assert trial.comparisons[0].verdict == "worse"
        used.append(n)
        crossed = np.abs(scores(pair, pool)) > np.array(boundaries(LEVEL, FRACTIONS, trial.spending))
        assert n == LOOKS[int(crossed.argmax())], "the gate does what the test above counts"
    assert np.mean(used) <= LOOKS[-1] / 2
