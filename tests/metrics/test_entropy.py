import math
from collections import Counter

import numpy as np
import pytest

from evalsvc.metrics.entropy import unigram_entropy


def slow(ids: list[int], places: list[int]) -> tuple[float, float]:
    """The definition, plug-in and corrected: of every place the entropy of its own frequencies, weighted."""
    plug_in = corrected = 0.0
    for place in set(places):
        counts = Counter(token for token, where in zip(ids, places, strict=True) if where == place)
        here = counts.total()
        entropy = -sum(count / here * math.log(count / here) for count in counts.values())
        plug_in += here / len(ids) * entropy
        corrected += here / len(ids) * (entropy + (len(counts) - 1) / (2 * here))
    return plug_in, corrected


def test_equals_the_definition() -> None:
    generator = np.random.default_rng(0)
    ids, places = generator.integers(3, 40, 600) ** 2, generator.integers(2, 9, 600)
    owners = np.sort(generator.integers(0, 20, 600))
    alone, placed = unigram_entropy(ids, owners), unigram_entropy(ids, owners, places)
    assert alone is not None
    assert placed is not None
    assert (alone.plug_in, alone.corrected) == pytest.approx(slow(ids.tolist(), [0] * 600), rel=1e-12)
    assert (placed.plug_in, placed.corrected) == pytest.approx(slow(ids.tolist(), places.tolist()), rel=1e-12)
    assert (alone.ids, alone.sequences, alone.distinct) == (600, 20, len(set(ids.tolist())))
    assert placed.distinct == len(set(zip(ids.tolist(), places.tolist(), strict=True)))


def test_by_hand() -> None:
    """Uniform over four ids; and nothing is left to learn where the place says which id it is."""
    ids, owners = np.array([0, 1, 2, 3] * 25), np.arange(100) // 4
    entropy = unigram_entropy(ids, owners)
    assert entropy is not None
    assert entropy.plug_in == pytest.approx(math.log(4))
    assert entropy.corrected == pytest.approx(math.log(4) + 3 / 200)
    assert entropy.stderr == pytest.approx(0, abs=1e-12)
    known = unigram_entropy(ids, owners, ids)
    assert known is not None
    assert (known.plug_in, known.corrected) == (0, 0)
    assert unigram_entropy(np.zeros(0, int), np.zeros(0, int)) is None


def test_the_correction_takes_most_of_the_bias() -> None:
    """Of ids that were drawn from a known distribution, over many draws."""
    generator = np.random.default_rng(1)
    p = np.full(50, 1 / 50)
    found = [unigram_entropy(generator.choice(50, 400, p=p), np.arange(400)) for _ in range(200)]
    plug_in, corrected = (
        np.mean([getattr(entropy, name) for entropy in found]) - math.log(50) for name in ("plug_in", "corrected")
    )
    assert plug_in < -0.05
    assert abs(corrected) < 0.005


def test_the_error_is_that_of_a_bootstrap_over_sequences() -> None:
    """Ids of one sequence hang together, so the error over single ids would be far too small."""
    generator = np.random.default_rng(2)
    sequences = [generator.choice(12, 30, p=generator.dirichlet(np.full(12, 0.5))) for _ in range(150)]

    def entropy(some: list[np.ndarray]) -> float:
        found = unigram_entropy(np.concatenate(some), np.repeat(np.arange(len(some)), 30))
        assert found is not None
        return found.plug_in

    whole = unigram_entropy(np.concatenate(sequences), np.repeat(np.arange(150), 30))
    assert whole is not None
    resampled = [entropy([sequences[index] for index in generator.integers(0, 150, 150)]) for _ in range(600)]
    assert whole.stderr == pytest.approx(np.std(resampled), rel=0.15)
    alone = unigram_entropy(np.concatenate(sequences), np.arange(150 * 30))
    assert alone is not None
    assert alone.stderr is not None
    assert whole.stderr is not None
    assert whole.stderr > 2 * alone.stderr
