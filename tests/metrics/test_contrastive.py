"""CLIP's loss and what comes with it, against loops by hand, torch's cross-entropy and scipy."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test as scipy_permutation_test
from torch import Tensor
from torch.nn import functional

from evalsvc.metrics.contrastive import (
    MAX_SCALE,
    clip_loss,
    excess_similarity,
    fit_scale,
    hits_at,
    mean_off_diagonal,
    permutation_test,
)


def cosines(seed: int, batch: int = 12, signal: float = 0.5) -> Tensor:
    """Of images and texts that have something in common with their own."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    images = signal * texts + torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    return functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T


@pytest.mark.parametrize("scale", [0.0, 1.0, 14.3, 100.0])
def test_the_loss_is_clips(scale: float) -> None:
    similarity = cosines(0)
    targets = torch.arange(12)
    both = [functional.cross_entropy(scale * way, targets) for way in (similarity, similarity.T)]
    assert float(clip_loss(similarity, scale).mean()) == pytest.approx(float(sum(both)) / 2, rel=1e-12)


def weighted_loss(similarity: Tensor, scale: float, weights: Tensor) -> Tensor:
    """The loss of a sample in which pair i comes `weights[i]` times, less that of one which knows nothing."""
    shares = weights / weights.sum()
    ways = [((scale * way).exp() @ shares).log() for way in (similarity, similarity.T)]
    return (shares * ((ways[0] + ways[1]) / 2 - scale * similarity.diagonal())).sum()


@pytest.mark.parametrize("scale", [2.0, 20.0])
def test_its_parts_are_what_a_pair_does_to_it_as_itself_and_as_a_candidate(scale: float) -> None:
    """An error from each pair's own loss alone leaves out that a sample's other pairs are the candidates."""
    similarity = cosines(1)
    weights = torch.ones(12, dtype=torch.float64, requires_grad=True)
    weighted_loss(similarity, scale, weights).backward()
    parts = clip_loss(similarity, scale)
    torch.testing.assert_close((parts - parts.mean()) / 12, weights.grad)


def test_parts_of_the_cosines_are_their_slopes_too() -> None:
    similarity = cosines(2, batch=400)
    diagonal, rest = similarity.diagonal().mean(), (similarity.sum() - similarity.diagonal().sum()) / (400 * 399)
    excess, off = excess_similarity(similarity), mean_off_diagonal(similarity)
    assert float(excess.mean()) == pytest.approx(float(diagonal - rest), rel=1e-10)
    assert float(off.mean()) == pytest.approx(float(rest), rel=1e-10)

    def without(pair: int) -> tuple[float, float]:
        kept = [row for row in range(400) if row != pair]
        left = similarity[kept][:, kept]
        return float(excess_similarity(left).mean()), float(mean_off_diagonal(left).mean())

    for pair in range(0, 400, 57):
        for parts, value in zip((excess, off), without(pair), strict=True):
            jackknife = 400 * float(parts.mean()) - 399 * value
            assert jackknife == pytest.approx(float(parts[pair]), abs=0.01)


@pytest.mark.parametrize("signal", [0.2, 0.6, 1.5])
def test_the_fitted_scale_is_the_best(signal: float) -> None:
    some = [cosines(seed, 20, signal) for seed in (3, 4)]

    def loss(scale: float) -> float:
        return sum(float(clip_loss(one, scale).mean()) for one in some)

    best = fit_scale(some)
    grid = min(np.linspace(0, MAX_SCALE, 2001), key=loss)
    assert best == pytest.approx(grid, abs=0.05)
    assert loss(best) <= loss(float(grid)) + 1e-12


def test_where_pairs_are_no_more_alike_than_others_nothing_is_known() -> None:
    """The loss of a scale that is not zero would be above ln B, as if the table knew less than nothing."""
    assert fit_scale([-cosines(5)]) == 0
    assert fit_scale([torch.full((4, 4), 0.9, dtype=torch.float64)]) == 0
    assert fit_scale([torch.eye(3, dtype=torch.float64)]) == MAX_SCALE
    assert clip_loss(-cosines(5), 0.0).tolist() == pytest.approx([math.log(12)] * 12)


def slow_hits(scores: Tensor, right: Tensor, k: int, shuffles: int = 4000) -> list[float]:
    """How often one of the first k is right when candidates of equal scores are shuffled."""
    generator = np.random.default_rng(0)
    found = np.zeros(len(scores))
    for _ in range(shuffles):
        order = np.lexsort((generator.random(scores.shape), -scores.numpy()))[:, :k]
        found += np.take_along_axis(right.numpy(), order, 1).any(1)
    return list(found / shuffles)


@pytest.mark.parametrize("k", [1, 3, 7, 30])
def test_hits_count_ties_as_shuffling_them_would(k: int) -> None:
    """A table that gives everything one score is no better than chance, whichever way a sort puts equal ones."""
    generator = torch.Generator().manual_seed(6)
    scores = torch.randint(4, (15, 9), generator=generator).double()
    right = torch.rand(15, 9, generator=generator) < 0.25
    right[:, 0] |= ~right.any(1)
    assert hits_at(scores, right, k).tolist() == pytest.approx(slow_hits(scores, right, k), abs=0.03)
    similarity = cosines(7, batch=9)
    alone = right[:9].gather(1, similarity.topk(min(k, 9)).indices).any(1).double()
    assert hits_at(similarity, right[:9], k).tolist() == alone.tolist(), "without ties a hit is a hit"


def test_chance_is_what_scores_without_meaning_get() -> None:
    right = torch.eye(50, dtype=torch.bool)
    assert hits_at(torch.zeros(50, 50), right, 5).tolist() == pytest.approx([0.1] * 50)
    right[0, :3] = True
    expected = 1 - math.comb(47, 5) / math.comb(50, 5)
    assert float(hits_at(torch.zeros(50, 50), right, 5)[0]) == pytest.approx(expected)


def test_the_permutation_test_is_scipys() -> None:
    """With every permutation of six texts, as scipy goes through them; and with thousands at random."""
    similarity = cosines(8, batch=6, signal=0.3)

    def mean_of(order: Sequence[int]) -> float:
        return float(similarity[torch.arange(6), torch.tensor(order).long()].mean())

    exact = scipy_permutation_test(
        (np.arange(6),), mean_of, permutation_type="pairings", n_resamples=np.inf, alternative="greater"
    )
    found = permutation_test([similarity], 4000, seed=0)
    assert 0.02 < exact.pvalue < 0.98
    error = math.sqrt(exact.pvalue * (1 - exact.pvalue) / 4000)
    assert found.p == pytest.approx(exact.pvalue, abs=3 * error + 1 / 4001)
    assert found.mean == pytest.approx(float(similarity.mean()), abs=4 * found.deviation / math.sqrt(4000))
    assert found.deviation == pytest.approx(np.std(exact.null_distribution), rel=0.1)


def test_one_shuffle_by_hand_counts_itself() -> None:
    """p is never zero, the same seed gives the same, and pairs that beat every permutation get 1 / (1 + N)."""
    similarity = torch.eye(40, dtype=torch.float64)
    assert permutation_test([similarity], 99, seed=1).p == 1 / 100
    assert permutation_test([-similarity], 99, seed=1).p == 1
    weak = [cosines(9, 20, 0.1), cosines(10, 20, 0.1)]
    assert permutation_test(weak, 99, seed=1) == permutation_test(weak, 99, seed=1)
    generator = torch.Generator().manual_seed(1)
    by_hand = []
    for _ in range(99):
        orders = [torch.randperm(20, generator=generator).tolist() for _ in weak]
        pairs = [float(one[i, j]) for one, order in zip(weak, orders, strict=True) for i, j in enumerate(order)]
        by_hand.append(sum(pairs) / 40)
    observed = sum(float(one.trace()) for one in weak) / 40
    assert permutation_test(weak, 99, seed=1).p == (1 + sum(value >= observed for value in by_hand)) / 100
    # Sums in another order differ in the last bit, and half of all permutations that change nothing seemed lower.
    assert permutation_test([cosines(11, 30)[:, :1].expand(30, 30).clone()], 199, seed=0).p == 1
