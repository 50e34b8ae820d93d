"""Means of a kernel over pairs of rows, block by block: what maximum mean discrepancies are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalsvc.metrics.frechet import Array

Rows = NDArray[Any]
Kernel = Callable[[Rows, Rows], Rows]
"""[a, d] and [b, d] to [a, b]."""

ROWS_AT_ONCE = 1024


def mean_to(rows: Rows, others: Rows, kernel: Kernel) -> Array:  # [n]
    """The mean kernel of each of `rows` with all of `others`, summed in float64."""
    starts = range(0, len(rows), ROWS_AT_ONCE)
    parts = [kernel(rows[start : start + ROWS_AT_ONCE], others).mean(1, dtype=np.float64) for start in starts]
    return np.concatenate(parts)


def mean_to_others(rows: Rows, kernel: Kernel) -> Array:  # [n]
    """The mean kernel of each of `rows` with all but itself, of which there must be some."""
    gram = kernel(rows, rows).astype(np.float64)
    np.fill_diagonal(gram, 0)
    means: Array = gram.sum(1) / (len(rows) - 1)
    return means


def shares_of_mmd(within: Sequence[Array], across: Sequence[Array], value: float) -> Array:  # [n]
    """What each sample adds to a squared MMD of which `value` is the estimate, from blocks of samples.

    The Hoeffding projection on the samples: of E k(x, x') - 2 E k(x, y) + E k(y, y') a sample x moves twice its mean
    kernel with the others, and -2 times that with the reference. The mean of the shares is `value`. Each block is
    centred by itself: what all of its samples have in common is the chance of the block that they are compared with,
    and counted as theirs it would make the error several times too large.
    """
    moved = [2 * (inside - outside) for inside, outside in zip(within, across, strict=True)]
    return np.concatenate([value + block - block.mean() for block in moved])
