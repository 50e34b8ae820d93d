"""Rows of a model's embedding and output tables: never trained, borders of blocks, nearest rows, shared directions.

Rows of one kind are initialised and trained alike, so norms and directions change where a block ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

ALIKE = 0.97
"""Cosine from which two output rows count as moved together. Random rows of some hundred dimensions are at 0 ± 0.1."""

CLUSTER = 3

SAMPLE = 4_096
"""Number of rows with pairwise cosines in the search for the common direction."""

SHORTEST_BLOCK = 6
"""Smallest number of rows in a block, since special tokens are few."""

MOST_BORDERS = 12


@dataclass(frozen=True)
class Border:
    """Change point of the rows' statistics."""

    row: int
    """First row of the block after the border."""
    gain: float
    """Gain of log-likelihood in nats from cutting at the border."""


@dataclass(frozen=True)
class RowStatistics:
    """Cold rows and borders of a pair of tables."""

    cold: tuple[int, ...]
    """Rows that were never a target of training, judged by output rows that all have the same direction."""
    borders: tuple[Border, ...]
    """Borders, the strongest first."""


def row_statistics(embedding: Tensor, output: Tensor) -> RowStatistics:  # embedding and output: [V, D]
    """Find cold rows and borders of a pair of tables, which may be the same table."""
    embedding, output = embedding.float(), output.float()
    common = normalize(normalize(output, dim=1).mean(0), dim=0)
    features = torch.stack(
        (embedding.norm(dim=1).log(), output.norm(dim=1).log(), normalize(output, dim=1) @ common), dim=1
    )
    return RowStatistics(tuple(cold_rows(output)), tuple(change_points(features)[:MOST_BORDERS]))


def cold_rows(output: Tensor) -> list[int]:
    """Find the rows of an output table [V, D] that lie in its largest bundle of one direction.

    A row that is never a target only gets the gradient p · h, a push away from the direction of the hidden state: all
    such rows move the same way, and with weight decay become parallel. Untrained rows that were made alike, such as new
    rows set to the mean of the old rows, are in the bundle too. Empty where fewer than `CLUSTER` rows of the sample lie
    together, as in a model that was trained little or without weight decay.
    """
    rows = normalize(output.float(), dim=1)
    step = max(1, math.ceil(len(rows) / SAMPLE))
    sample = rows[::step]
    near = sample @ sample.T > ALIKE  # [S, S]
    densest = int(near.sum(1).argmax())
    if int(near[densest].sum()) < CLUSTER:
        return []
    direction = normalize(sample[near[densest]].mean(0), dim=0)
    bundle: list[int] = (rows @ direction > ALIKE).nonzero()[:, 0].tolist()
    return bundle


def change_points(features: Tensor) -> list[Border]:
    """Find where features [V, F] of consecutive rows change their mean or spread, strongest first.

    Binary segmentation: a stretch of rows is cut where two normal distributions per feature, one on each side, gain the
    most likelihood over one, as long as the gain exceeds three times Schwarz's penalty for the parameters that a cut
    adds (a place, and a mean and a variance per feature).

    Source: A. J. Scott, M. Knott, Biometrics 30 (1974) 507–512; G. Schwarz, Annals of Statistics 6 (1978) 461–464.
    """
    count, width = features.shape
    wide = features.double().cpu()
    zero = wide.new_zeros(1, width)
    sums, squares = torch.cat((zero, wide.cumsum(0))), torch.cat((zero, wide.square().cumsum(0)))
    enough = 3 * (2 * width + 1) / 2 * math.log(max(count, 2))
    borders, stretches = [], [(0, count)]
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
            borders.append(Border(row, float(gains[best])))
            stretches += [(start, row), (row, stop)]
    return sorted(borders, key=lambda border: -border.gain)


def _cost(sums: Tensor, squares: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Return twice the negative log-likelihood of rows start…stop as normal, without terms that no cut changes, [n]."""
    lengths = (stop - start).double()[:, None]
    mean = (sums[stop] - sums[start]) / lengths
    # Clamp the spread: rows that are equal to the last bit would favour any cut.
    variance = ((squares[stop] - squares[start]) / lengths - mean.square()).clamp_min(1e-6)
    return (lengths * variance.log()).sum(1)


CHUNK_BYTES = 64 << 20
"""Approximate bytes of float32 cosines in memory at a time."""


class Nearest(NamedTuple):
    """The nearest rows of a table to each of Q queries."""

    rows: Tensor
    """Nearest rows, the nearest first, [Q, k] int64."""
    cosines: Tensor
    """Cosines to the nearest rows, [Q, k] float32."""


class Overlap(NamedTuple):
    """The share of Q queries within a subspace, as squared lengths."""

    inside: Tensor
    """Squared length of each query within the subspace, from the queries' mean, [Q] float64."""
    whole: Tensor
    """Squared length of each query, from the queries' mean, [Q] float64."""
    directions: int
    """Number of dimensions of the subspace."""


def nearest_rows(
    queries: Tensor,  # [Q, D]
    rows: Tensor,  # [V, D]
    k: int,
    centred: bool,
    report: Callable[[], None] = lambda: None,
) -> Nearest:
    """Find the k rows nearest to each query by cosine, less each set's mean if `centred`: tables are narrow cones."""
    rows = rows.float()
    step = max(1, CHUNK_BYTES // (4 * len(rows)))
    origin = _mean(rows) if centred else torch.zeros_like(rows[0], dtype=torch.float32)
    start = _mean(queries) if centred else torch.zeros_like(origin)
    lengths = torch.cat([(part - origin).norm(dim=1) for part in torch.split(rows, step)])
    lengths = torch.where(lengths > 0, lengths, torch.inf)
    parts: list[tuple[Tensor, Tensor]] = []
    for part in torch.split(queries, step):
        report()
        unit = torch.nn.functional.normalize(part.float() - start, dim=1)
        cosines = (unit @ rows.T - (unit @ origin)[:, None]) / lengths
        values, places = cosines.topk(min(k, len(rows)), dim=1)
        parts.append((places, values))
    return Nearest(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def subspace_overlap(queries: Tensor, rows: Tensor) -> Overlap:  # queries [Q, D], rows [V, D]
    """Compute how much of the queries' variance lies in the directions that hold half of the rows' variance.

    Σ inside / Σ whole is directions / D for queries unrelated to the rows. The directions are the fewest principal
    directions of `rows`, and are treated as fixed.
    """
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    origin = _mean(rows)
    for part in torch.split(rows, max(1, CHUNK_BYTES // (4 * rows.shape[1]))):
        offset = part.float() - origin
        covariance += offset.T @ offset  # float32 suffices within a part; the sum needs float64
    variances, directions = torch.linalg.eigh(covariance.cpu())
    share = variances.flip(0).cumsum(0) / variances.sum()
    count = int((share < 0.5).sum()) + 1
    basis = directions[:, -count:]
    offsets = queries.double().cpu() - _mean(queries).double().cpu()
    return Overlap((offsets @ basis).square().sum(1), offsets.square().sum(1), count)


def _mean(rows: Tensor) -> Tensor:
    step = max(1, CHUNK_BYTES // (8 * rows.shape[1]))
    total = torch.stack([part.double().sum(0) for part in torch.split(rows, step)]).sum(0)
    return (total / len(rows)).float()
