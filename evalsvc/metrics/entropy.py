"""Entropy of the ids of a data set: the loss of a model that sees no context, or only at which place it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalsvc.metrics.ratio import ratio_of_sums


@dataclass(frozen=True)
class Entropy:
    """In nats per id."""

    plug_in: float
    """Of the frequencies as they are: the least that any model without context can reach on these very ids."""
    corrected: float
    """Less biased for what the ids were drawn from, and what a model without context can hope for on others."""
    stderr: float | None
    """Of either, over sequences; None with fewer than two."""
    sequences: int
    """With ids."""
    ids: int
    distinct: int
    """Different ids; with the place, different pairs of both."""


def unigram_entropy(ids: NDArray[Any], owners: NDArray[Any], places: NDArray[Any] | None = None) -> Entropy | None:
    """H(id), or with `places` H(id | place), of N ids; None without any.

    `ids`, `owners` (the sequence that each is of) and `places` are small whole numbers [N]: there is a table of counts
    of every id at every place. The correction is that of Miller and Madow, (m − 1) / 2N with m different ids; given
    places, its mean over places weighted by their ids, Σ (m_place − 1) / 2N. It is too small where many ids were seen
    once. To first order the entropy is the mean of −ln p̂(id), so its error is that of this mean over ids, with the
    sequences as what varies.

    Source: G. A. Miller, "Note on the bias of information estimates" (Information Theory in Psychology, 1955); the
    error is that of G. P. Basharin, "On a statistical estimate for the entropy of a sequence of independent random
    variables" (Theory of Probability and its Applications 4, 1959), with sequences in the place of single ids.
    """
    if not len(ids):
        return None
    places = np.zeros_like(ids) if places is None else places
    cells = places.astype(np.int64) * (int(ids.max()) + 1) + ids
    counts, at_place = np.bincount(cells), np.bincount(places)
    surprise = np.log(at_place[places] / counts[cells])  # −ln p̂(id | place)
    ratio = ratio_of_sums(np.bincount(owners, surprise).tolist(), np.bincount(owners).tolist())
    assert ratio is not None, "there are ids"
    distinct = int(np.count_nonzero(counts))
    bias = (distinct - int(np.count_nonzero(at_place))) / (2 * len(ids))
    return Entropy(ratio.value, ratio.value + bias, ratio.stderr, ratio.n, len(ids), distinct)
