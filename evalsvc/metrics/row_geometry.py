"""Geometry of the rows of one part of an embedding table relative to another part: nearest rows, shared directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

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
    """Find the k rows with the largest cosine to each query. A row of zeros has the cosine 0 to every query.

    `centred` first subtracts the mean of each set from its members, since embedding tables lie in narrow cones.
    """
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


def subspace_overlap(
    queries: Tensor,  # [Q, D]
    rows: Tensor,  # [V, D]
) -> Overlap:
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
    """Return the mean of rows, float32 [D], summed in float64."""
    step = max(1, CHUNK_BYTES // (8 * rows.shape[1]))
    total = torch.stack([part.double().sum(0) for part in torch.split(rows, step)]).sum(0)
    return (total / len(rows)).float()
