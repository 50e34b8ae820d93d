"""Means of a kernel over pairs of rows, block by block, as parts of maximum mean discrepancies."""

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
"""Kernel function from [a, d] and [b, d] to [a, b]."""

CHUNK_ROWS = 1024


def mean_to(rows: Rows, others: Rows, kernel: Kernel) -> Array:  # [n]
    """Return the mean kernel of each of `rows` with all of `others`, summed in float64."""
    starts = range(0, len(rows), CHUNK_ROWS)
    parts = [kernel(rows[start : start + CHUNK_ROWS], others).mean(1, dtype=np.float64) for start in starts]
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Within:
    """Kernel over all pairs of different rows of one block."""

    sums: Array
    """Sum of the kernel of each row with the other rows, [n]."""
    squares: float
    """Sum of the squared kernel over all ordered pairs."""

    @property
    def means(self) -> Array:  # [n]
        """Mean kernel of each row with the other rows, of which there is at least one, [n]."""
        means: Array = self.sums / (len(self.sums) - 1)
        return means

    @property
    def surplus(self) -> float:
        """Excess of n times the squared error from the block's shares: 2 σ₂²/(n - 1)."""
        return 2 * pair_variance(self.sums, self.squares) / (len(self.sums) - 1)


def within(rows: Rows, kernel: Kernel) -> Within:
    """Sum the kernel over pairs of different `rows`, in float64."""
    sums, squares = np.empty(len(rows)), 0.0
    for start in range(0, len(rows), CHUNK_ROWS):
        gram = kernel(rows[start : start + CHUNK_ROWS], rows)
        gram[np.arange(len(gram)), np.arange(start, start + len(gram))] = 0
        sums[start : start + len(gram)] = gram.sum(1, dtype=np.float64)
        squares += float(np.einsum("ij,ij->", gram, gram, dtype=np.float64))
    return Within(sums, squares)


def shares_of_mmd(blocks: Sequence[Within], inside: Sequence[Array], across: Sequence[Array], value: float) -> Array:
    """Return the share of each sample in a squared MMD with the estimate `value`, from blocks of samples, [n].

    The shares are the Hoeffding projection on the samples: in E k(x, x') - 2 E k(x, y) + E k(y, y'), a sample x adds
    twice its mean kernel with the other samples (`inside`), and -2 times its mean kernel with the reference (`across`).
    The mean of the shares is `value`. Each block is centred by itself: what its samples share comes by chance from its
    reference block.

    The variance of pairs, which such shares count twice, is subtracted; see `evalsvc.metrics.second_order`.
    """
    moved = [2 * (to_samples - to_real) for to_samples, to_real in zip(inside, across, strict=True)]
    shares = np.concatenate([value + block - block.mean() for block in moved])
    n = len(shares)
    surplus = sum(len(block.sums) / n * block.surplus for block in blocks) / n
    return without_surplus(shares, surplus)
