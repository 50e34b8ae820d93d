"""CLIP's loss, retrieval and permutation tests: how well two sets of embeddings identify the pairs across the sets.

Similarities are a matrix [B, B] float64: row i is the i-th image, column j the j-th text, and the diagonal has the
pairs. *Parts* are one number per pair. Their mean is the value, and their scatter is, to first order, that of the value
over samples of pairs (the infinitesimal jackknife; B. Efron, "The Jackknife, the Bootstrap and Other Resampling Plans",
1982, chapter 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_SCALE = 100.0
"""Largest factor of similarities, 1 / temperature, that CLIP allows (Radford et al. 2021, section 2.5)."""

HALVINGS = 32
"""Number of halvings of the interval that holds the best factor, which bounds the factor's error by 3e-8."""


def clip_loss(similarity: Tensor, scale: float) -> Tensor:  # similarity [B, B] float64, to [B] float64, parts
    """Compute CLIP's symmetric cross-entropy in nats: the mean loss of text given image and of image given text.

    The value is the mean over pairs of ½ (ln Σ_j exp s·S_ij + ln Σ_j exp s·S_ji) − s·S_ii, which is ln B where the
    similarities carry no information. Source: Radford et al., "Learning Transferable Visual Models From Natural
    Language Supervision" (2021), figure 3.
    """
    logits = scale * similarity
    rows, columns = logits.logsumexp(1), logits.logsumexp(0)
    pair_losses = (rows + columns) / 2 - logits.diagonal()
    among_others = ((logits - rows[:, None]).exp().sum(0) + (logits - columns).exp().sum(1)) / 2
    return pair_losses + among_others - 1


def fit_scale(similarities: Sequence[Tensor]) -> float:
    """Return the factor in [0, MAX_SCALE] with the smallest mean CLIP loss, which is convex in the factor."""
    low, high = 0.0, MAX_SCALE
    if _slope(similarities, low) >= 0:
        return low
    if _slope(similarities, high) <= 0:
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(similarities, middle) > 0 else (middle, high)
    return (low + high) / 2


def _slope(similarities: Sequence[Tensor], scale: float) -> float:
    total = 0.0
    for similarity in similarities:
        logits = scale * similarity
        expected = sum(float((logits.softmax(way) * similarity).sum()) for way in (0, 1)) / 2
        total += expected / len(similarity) - float(similarity.diagonal().mean())
    return total


def hits_at(scores: Tensor, right: Tensor, k: int) -> Tensor:  # scores and right (bool): [Q, C], to [Q] float64
    """Compute the probability that one of the k best is right, with ties in random order: k / C by chance."""
    best = scores.masked_fill(~right, -math.inf).amax(1, keepdim=True)
    above = (scores > best).sum(1)
    tied = scores == best
    wrong, all_tied = (tied & ~right).sum(1).double(), tied.sum(1).double()
    missed = torch.ones(len(scores), dtype=torch.float64, device=scores.device)
    for drawn in range(min(k, scores.shape[1])):
        still = ((wrong - drawn) / (all_tied - drawn).clamp(min=1)).clamp(min=0)
        missed *= torch.where(above + drawn < k, still, 1)
    return 1 - missed


def excess_similarity(similarity: Tensor) -> Tensor:  # [B, B] float64, B > 1, to [B] float64, parts
    """Compute how much more alike pairs are than other combinations: mean of the diagonal less mean of the rest."""
    rows, columns = similarity.mean(1), similarity.mean(0)
    parts = similarity.diagonal() - rows - columns + similarity.mean()
    return parts * len(similarity) / (len(similarity) - 1)


def mean_off_diagonal(similarity: Tensor) -> Tensor:  # [B, B] float64, B > 1, to [B] float64, parts
    """Compute the mean similarity of combinations that are no pair; of a set to itself, of different members."""
    others = (similarity.sum(1) + similarity.sum(0) - 2 * similarity.diagonal()) / (len(similarity) - 1)
    return others - others.mean() / 2


@dataclass(frozen=True)
class PermutationTest:
    """Result of a test whether pairs score higher than random combinations."""

    p: float
    """(1 + number of permutations that score at least as high) / (1 + permutations)."""
    mean: float
    """Mean of the permutations' scores."""
    deviation: float
    """Standard deviation of the permutations' scores."""


def permutation_test(
    scores: Sequence[Tensor],  # of each batch [B, B] float64
    permutations: int,
    seed: int,
    report: Callable[[], None] = lambda: None,
) -> PermutationTest:
    """Test one-sided whether the mean score of the pairs exceeds that of texts permuted at random within each batch.

    For similarities, this is also the test of CLIP's loss, at any factor and at the fitted factor: permuting texts
    keeps the sums over rows and columns, and the loss falls as the mean of the diagonal grows. Source of the p-value:
    Phipson and Smyth, "Permutation P-values Should Never Be Zero" (2010), equation 2.
    """
    generator = torch.Generator().manual_seed(seed)
    observed = float(torch.cat([score.diagonal() for score in scores]).mean())
    # Values that differ only by rounding count as equal: many texts are the same.
    threshold = observed - 1e-12 * max(1.0, *(float(score.abs().max()) for score in scores))
    permuted_means = []
    for _ in range(permutations):
        report()
        pairs = [score[torch.arange(len(score)), torch.randperm(len(score), generator=generator)] for score in scores]
        permuted_means.append(float(torch.cat(pairs).mean()))
    values = torch.tensor(permuted_means, dtype=torch.float64)
    at_least = int((values >= threshold).sum())
    return PermutationTest((1 + at_least) / (1 + permutations), float(values.mean()), float(values.std(correction=0)))
