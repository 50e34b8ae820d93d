"""How well two sets of embeddings tell which of the one belongs to which of the other: CLIP's loss, retrieval, chance.

Similarities are a matrix [B, B] float64: row i is the i-th image, column j the j-th text, and the diagonal has the
pairs. *Parts* are one number a pair, whose mean is the value and whose scatter is, to first order, that of the value
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
"""The largest factor of similarities, 1 / temperature, that CLIP allows (Radford et al. 2021, section 2.5)."""

HALVINGS = 32
"""Of the interval that holds the best factor, which is then known to 3e-8."""


def clip_loss(
    similarity: Tensor,  # [B, B] float64
    scale: float,
) -> Tensor:  # [B] float64, parts
    """CLIP's symmetric cross-entropy in nats: of the text given the image and of the image given the text, halved.

    Its value is the mean over pairs of ½ (ln Σ_j exp s·S_ij + ln Σ_j exp s·S_ji) − s·S_ii, which is ln B where nothing
    is known. Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021),
    figure 3.
    """
    logits = scale * similarity
    rows, columns = logits.logsumexp(1), logits.logsumexp(0)
    own = (rows + columns) / 2 - logits.diagonal()
    among_others = ((logits - rows[:, None]).exp().sum(0) + (logits - columns).exp().sum(1)) / 2
    return own + among_others - 1


def fit_scale(similarities: Sequence[Tensor]) -> float:
    """The factor in [0, MAX_SCALE] at which the mean CLIP loss of several batches is smallest.

    The loss is convex in it, so its slope changes sign once. 0 where the pairs are no more alike than others.
    """
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
    """d loss / d scale: the similarity that the softmax expects, less that of the pairs."""
    total = 0.0
    for similarity in similarities:
        logits = scale * similarity
        expected = sum(float((logits.softmax(way) * similarity).sum()) for way in (0, 1)) / 2
        total += expected / len(similarity) - float(similarity.diagonal().mean())
    return total


def hits_at(
    scores: Tensor,  # [Q, C]
    right: Tensor,  # [Q, C] bool; every query has one at least
    k: int,
) -> Tensor:  # [Q] float64
    """The probability that one of the k candidates with the highest scores is right, equal ones in random order.

    Of scores that say nothing, such as all zero, it is the chance of a random order: k / C where one is right.
    """
    best = scores.masked_fill(~right, -math.inf).amax(1, keepdim=True)
    above = (scores > best).sum(1)
    tied = scores == best
    wrong, all_tied = (tied & ~right).sum(1).double(), tied.sum(1).double()
    missed = torch.ones(len(scores), dtype=torch.float64, device=scores.device)
    for drawn in range(min(k, scores.shape[1])):
        still = ((wrong - drawn) / (all_tied - drawn).clamp(min=1)).clamp(min=0)
        missed *= torch.where(above + drawn < k, still, 1)
    return 1 - missed


def excess_similarity(
    similarity: Tensor,  # [B, B] float64, B > 1
) -> Tensor:  # [B] float64, parts
    """How much more alike pairs are than what is no pair: the mean of the diagonal less that of the rest."""
    rows, columns = similarity.mean(1), similarity.mean(0)
    parts = similarity.diagonal() - rows - columns + similarity.mean()
    return parts * len(similarity) / (len(similarity) - 1)


def mean_off_diagonal(
    similarity: Tensor,  # [B, B] float64, B > 1
) -> Tensor:  # [B] float64, parts
    """The mean similarity of what is no pair; of the similarities of one set to itself, that of two of its members."""
    others = (similarity.sum(1) + similarity.sum(0) - 2 * similarity.diagonal()) / (len(similarity) - 1)
    return others - others.mean() / 2


@dataclass(frozen=True)
class PermutationTest:
    """Whether pairs score higher than what is put together at random."""

    p: float
    """(1 + how many permutations score at least as high) / (1 + permutations)."""
    mean: float
    """Of the permutations' scores."""
    deviation: float
    """Standard deviation of the permutations' scores."""


def permutation_test(
    scores: Sequence[Tensor],  # of each batch [B, B] float64
    permutations: int,
    seed: int,
    report: Callable[[], None] = lambda: None,
) -> PermutationTest:
    """One-sided test of the mean score of the pairs: texts are put to images anew, at random within their batch.

    Of similarities it is the test of CLIP's loss too, at any factor and at the fitted one: the sums over rows and
    columns stay the same when texts change places, and the loss falls as the mean of the diagonal grows. Source of the
    p-value: Phipson and Smyth, "Permutation P-values Should Never Be Zero" (2010), equation 2.
    """
    generator = torch.Generator().manual_seed(seed)
    observed = _mean_of([score.diagonal() for score in scores])
    # What is equal but for rounding counts as equal: many texts are the same.
    threshold = observed - 1e-12 * max(1.0, *(float(score.abs().max()) for score in scores))
    found = []
    for _ in range(permutations):
        report()
        found.append(_mean_of([_pairs(score, generator) for score in scores]))
    values = torch.tensor(found, dtype=torch.float64)
    at_least = int((values >= threshold).sum())
    return PermutationTest((1 + at_least) / (1 + permutations), float(values.mean()), float(values.std(correction=0)))


def _pairs(score: Tensor, generator: torch.Generator) -> Tensor:
    """The scores of a random pairing, [B]."""
    return score[torch.arange(len(score)), torch.randperm(len(score), generator=generator)]


def _mean_of(parts: Sequence[Tensor]) -> float:
    return float(torch.cat(list(parts)).mean())


@dataclass(frozen=True)
class Plateau:
    """Where a loss that falls with the steps comes to rest."""

    first: float
    """Loss of the first step."""
    last: float
    """Mean of the last tenth of the steps."""
    step: int
    """The first step, from 0, at which the mean of a twentieth of the steps is within 5 % of the fall from `last`."""
    still_falling: float
    """Fall of the loss within the last fifth of the steps, by the fitted line; near zero on a plateau."""
    stderr: float | None
    """Standard error of it; None with fewer than three steps in the last fifth."""


def plateau(losses: Sequence[float]) -> Plateau:
    """Find where `losses`, one a step and one at least, come to rest."""
    values = torch.tensor(losses, dtype=torch.float64)
    count = len(values)
    first, last = float(values[0]), float(values[-max(1, count // 10) :].mean())
    window = max(1, count // 20)
    smooth = values.unfold(0, window, 1).mean(1)
    near = (smooth - last) <= 0.05 * max(first - last, 0.0)
    step = int(near.nonzero()[0]) if bool(near.any()) else count - 1
    return Plateau(first, last, step, *_fall(values[-max(1, count // 5) :]))


def _fall(values: Tensor) -> tuple[float, float | None]:
    """By least squares."""
    n = len(values)
    if n < 3:
        return float(values[0] - values[-1]), None
    steps = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    slope = (steps * values).sum() / steps.square().sum()
    rest = values - values.mean() - slope * steps
    error = (rest.square().sum() / (n - 2) / steps.square().sum()).sqrt()
    return -float(slope) * (n - 1), float(error) * (n - 1)
