"""How rows of one part of an embedding table lie to those of another: nearest rows, and shared directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Bytes of float32 cosines alive at a time, about."""


class Nearest(NamedTuple):
    rows: Tensor
    """[Q, k] int64, the nearest first."""
    cosines: Tensor
    """[Q, k] float32."""


class Overlap(NamedTuple):
    inside: Tensor
    """[Q] float64: squared length of each query within the subspace, from the queries' mean."""
    whole: Tensor
    """[Q] float64: squared length of each query, from the queries' mean."""
    directions: int
    """Dimensions of the subspace."""


def nearest_rows(
    queries: Tensor,  # [Q, D]
    rows: Tensor,  # [V, D]
    k: int,
    centred: bool,
    report: Callable[[], None] = lambda: None,
) -> Nearest:
    """Find the k rows with the largest cosine to each query; `centred` takes the mean of each set off its members
    first, since embedding tables lie in narrow cones. A row of zeros has the cosine 0 to everything.
    """
    rows = rows.float()
    step = max(1, CHUNK_BYTES // (4 * len(rows)))
    origin = _mean(rows) if centred else torch.zeros_like(rows[0], dtype=torch.float32)
    start = _mean(queries) if centred else torch.zeros_like(origin)
    lengths = torch.cat([(part - origin).norm(dim=1) for part in torch.split(rows, step)])
    lengths = torch.where(lengths > 0, lengths, torch.inf)
    found: list[tuple[Tensor, Tensor]] = []
    for part in torch.split(queries, step):
        report()
        unit = torch.nn.functional.normalize(part.float() - start, dim=1)
        cosines = (unit @ rows.T - (unit @ origin)[:, None]) / lengths
        values, places = cosines.topk(min(k, len(rows)), dim=1)
        found.append((places, values))
    return Nearest(*(torch.cat(column).cpu() for column in zip(*found, strict=True)))


def subspace_overlap(
    queries: Tensor,  # [Q, D]
    rows: Tensor,  # [V, D]
) -> Overlap:
    """How much of the queries' variance lies in the directions that hold half of the rows' variance.

    Σ inside / Σ whole is directions / D for queries that know nothing of the rows. The directions are the fewest
    principal ones of `rows`, which are then taken as given.
    """
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    origin = _mean(rows)
    for part in torch.split(rows, max(1, CHUNK_BYTES // (4 * rows.shape[1]))):
        offset = part.float() - origin
        covariance += offset.T @ offset  # a part in float32, which is enough, and their sum in float64
    variances, directions = torch.linalg.eigh(covariance.cpu())
    share = variances.flip(0).cumsum(0) / variances.sum()
    count = int((share < 0.5).sum()) + 1
    basis = directions[:, -count:]
    offsets = queries.double().cpu() - _mean(queries).double().cpu()
    return Overlap((offsets @ basis).square().sum(1), offsets.square().sum(1), count)


def _mean(rows: Tensor) -> Tensor:
    """float32 [D], summed in float64."""
    step = max(1, CHUNK_BYTES // (8 * rows.shape[1]))
    total = torch.stack([part.double().sum(0) for part in torch.split(rows, step)]).sum(0)
    return (total / len(rows)).float()
