"""What a model's embedding and output tables tell of their rows: which were never trained, where blocks begin.

Rows of one kind are initialised and trained alike, so norms and directions change where one block ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

ALIKE = 0.97
"""Cosine from which two output rows count as moved together. Random rows of some hundred dimensions are at 0 ± 0.1."""

CLUSTER = 3
"""Fewer rows than this that lie together are no sign of anything."""

SAMPLE = 4_096
"""Rows among which the common direction is looked for: their cosines are all computed."""

SHORTEST_BLOCK = 6
"""Rows. Special tokens are few."""

MOST_BORDERS = 12


@dataclass(frozen=True)
class Border:
    """A change point of the rows' statistics."""

    row: int
    """The first row of the block that begins here."""
    gain: float
    """log-likelihood in nats that cutting here won."""


@dataclass(frozen=True)
class RowStatistics:
    """What the tables tell."""

    cold: tuple[int, ...]
    """Rows that were never a target of training, as far as output rows that all point the same way say so."""
    borders: tuple[Border, ...]
    """Strongest first."""


def row_statistics(
    embedding: Tensor,  # [V, D]
    output: Tensor,  # [V, D]
) -> RowStatistics:
    """Cold rows and borders of a pair of tables, which may be one and the same."""
    embedding, output = embedding.float(), output.float()
    common = normalize(normalize(output, dim=1).mean(0), dim=0)
    features = torch.stack(
        (embedding.norm(dim=1).log(), output.norm(dim=1).log(), normalize(output, dim=1) @ common), dim=1
    )
    return RowStatistics(tuple(cold_rows(output)), tuple(change_points(features)[:MOST_BORDERS]))


def cold_rows(output: Tensor) -> list[int]:
    """Rows of an output table [V, D] that lie in its largest bundle of one direction.

    A row that is never a target gets nothing but the gradient p · h, a push away from wherever the hidden state points:
    all such rows move the same way, and with decay become parallel. Untrained rows that were made alike, such as new
    ones set to the mean of the old, are in the bundle too. Empty where fewer than `CLUSTER` rows of the sample lie
    together, as in a model that was trained little or without any decay.
    """
    rows = normalize(output.float(), dim=1)
    step = max(1, math.ceil(len(rows) / SAMPLE))
    sample = rows[::step]
    near = sample @ sample.T > ALIKE  # [S, S]
    densest = int(near.sum(1).argmax())
    if int(near[densest].sum()) < CLUSTER:
        return []
    direction = normalize(sample[near[densest]].mean(0), dim=0)
    found: list[int] = (rows @ direction > ALIKE).nonzero()[:, 0].tolist()
    return found


def change_points(features: Tensor) -> list[Border]:
    """Where features [V, F] of consecutive rows change their mean or spread, strongest first.

    Binary segmentation: a stretch of rows is cut where two normal distributions per feature, one on each side, win the
    most likelihood over one, as long as it wins more than three times Schwarz's penalty for the parameters that a cut
    adds (a place, and a mean and a variance per feature).

    Source: A. J. Scott, M. Knott, Biometrics 30 (1974) 507–512; G. Schwarz, Annals of Statistics 6 (1978) 461–464.
    """
    count, width = features.shape
    wide = features.double().cpu()
    zero = wide.new_zeros(1, width)
    sums, squares = torch.cat((zero, wide.cumsum(0))), torch.cat((zero, wide.square().cumsum(0)))
    enough = 3 * (2 * width + 1) / 2 * math.log(max(count, 2))
    found, stretches = [], [(0, count)]
    while stretches:
        start, stop = stretches.pop()
        if stop - start < 2 * SHORTEST_BLOCK:
            continue
        cuts = torch.arange(start + SHORTEST_BLOCK, stop - SHORTEST_BLOCK + 1)
        ends = [torch.tensor([place]) for place in (start, stop)]
        parts = _cost(sums, squares, ends[0], cuts) + _cost(sums, squares, cuts, ends[1])
        gains = (_cost(sums, squares, *ends) - parts) / 2
        best = int(gains.argmax())
        if float(gains[best]) > enough:
            row = int(cuts[best])
            found.append(Border(row, float(gains[best])))
            stretches += [(start, row), (row, stop)]
    return sorted(found, key=lambda border: -border.gain)


def _cost(sums: Tensor, squares: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Twice the negative log-likelihood of rows start…stop as normal, less what does not depend on the cut: [n]."""
    lengths = (stop - start).double()[:, None]
    mean = (sums[stop] - sums[start]) / lengths
    # The smallest spread that counts: rows that are equal to the last bit would be worth any cut.
    variance = ((squares[stop] - squares[start]) / lengths - mean.square()).clamp_min(1e-6)
    return (lengths * variance.log()).sum(1)
