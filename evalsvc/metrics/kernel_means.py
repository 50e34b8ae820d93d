"""Means of a kernel over pairs of rows, block by block: what maximum mean discrepancies are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalsvc.metrics.frechet import Array
from evalsvc.metrics.second_order import pair_variance, without_surplus

Rows = NDArray[Any]
Kernel = Callable[[Rows, Rows], Rows]
"""[a, d] and [b, d] to [a, b]."""

ROWS_AT_ONCE = 1024


def mean_to(rows: Rows, others: Rows, kernel: Kernel) -> Array:  # [n]
    """The mean kernel of each of `rows` with all of `others`, summed in float64."""
    starts = range(0, len(rows), ROWS_AT_ONCE)
    parts = [kernel(rows[start : start + ROWS_AT_ONCE], others).mean(1, dtype=np.float64) for start in starts]
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Within:
    """A kernel over all pairs of different rows of one block."""

    sums: Array
    """[n]: of each row with the others."""
    squares: float
    """The sum of the squared kernel over all ordered pairs."""

    @property
    def means(self) -> Array:  # [n]
        """The mean kernel of each row with all but itself, of which there must be some."""
        means: Array = self.sums / (len(self.sums) - 1)
        return means

    @property
    def surplus(self) -> float:
        """By how much n times the squared error that the block's shares suggest is too large: 2 σ₂²/(n - 1)."""
        return 2 * pair_variance(self.sums, self.squares) / (len(self.sums) - 1)


def within(rows: Rows, kernel: Kernel) -> Within:
    """Sum the kernel of `rows` with each other, in float64 and without the pairs of a row with itself."""
    sums, squares = np.empty(len(rows)), 0.0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        gram = kernel(rows[start : start + ROWS_AT_ONCE], rows)
        gram[np.arange(len(gram)), np.arange(start, start + len(gram))] = 0
        sums[start : start + len(gram)] = gram.sum(1, dtype=np.float64)
        squares += float(np.einsum("ij,ij->", gram, gram, dtype=np.float64))
    return Within(sums, squares)


def shares_of_mmd(blocks: Sequence[Within], inside: Sequence[Array], across: Sequence[Array], value: float) -> Array:
    """What each sample adds to a squared MMD of which `value` is the estimate, from blocks of samples; [n].

    The Hoeffding projection on the samples: of E k(x, x') - 2 E k(x, y) + E k(y, y') a sample x moves twice its mean
    kernel with the others (`inside`), and -2 times that with the reference (`across`). The mean of the shares is
    `value`. Each block is centred by itself: what its samples have in common is chance of the block across.

    The variance of pairs, which such shares count twice, is taken off; see `evalsvc.metrics.second_order`.
    """
    moved = [2 * (own - other) for own, other in zip(inside, across, strict=True)]
    shares = np.concatenate([value + block - block.mean() for block in moved])
    n = len(shares)
    surplus = sum(len(block.sums) / n * block.surplus for block in blocks) / n
    return without_surplus(shares, surplus)
