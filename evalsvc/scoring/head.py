"""Log-likelihoods by the output head, without holding the logits of all ids.

The vocabulary is processed in tiles: a tile's logits are computed, reduced to their maximum and sum of exponentials
while they are in the caches, and discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evalsvc.metrics.token_loss import belongs, gaps
from evalsvc.spec.layout import VocabularyLayout

CPU_TILE_BYTES = 4 << 20
"""Bytes of float32 logits per tile on a CPU, so that they stay in the caches between passes."""
GPU_TILE_BYTES = 64 << 20
"""Bytes of float32 logits per tile on a GPU, which needs few and large launches."""
LEAST_COLUMNS = 256

COLUMNS = 5


@dataclass(frozen=True)
class _Tile:
    ids: range
    text: bool
    image: bool


def target_columns(
    hidden: Tensor,  # [P, D]
    head: Callable[[Tensor, slice], Tensor],  # of [P, D] and some rows, logits [P, rows] float32
    at: Tensor,  # [N] int64, which of the P each target is predicted from
    ids: Tensor,  # [N] int64
    layout: VocabularyLayout,
) -> Tensor:  # [N, COLUMNS] float64
    """Return for each target: its log-likelihood and whether another id is likelier (the first of equal ids counts as
    the likeliest), over all ids and within text ids, and the total probability of all image ids."""
    tiles = list(_tiles(layout, len(hidden), hidden.is_cuda))
    targets = torch.full(ids.shape, torch.nan, device=ids.device)
    first = torch.ones_like(ids, dtype=torch.bool)  # no earlier id in the target's own tile is as likely
    reductions = []
    for tile in tiles:
        logits = head(hidden, slice(tile.ids.start, tile.ids.stop))
        most = logits.amax(1)
        in_tile = belongs(ids, tile.ids).nonzero()[:, 0]
        if len(in_tile):
            rows, columns = at[in_tile], ids[in_tile] - tile.ids.start
            targets[in_tile] = logits[rows, columns]
            first[in_tile] = _is_first(logits, most, rows, columns)
        reductions.append((most, logits.sub_(most[:, None]).exp_().sum(1)))
    maxima, sums = (torch.stack(column, dim=1) for column in zip(*reductions, strict=True))  # [P, tiles]
    masses = maxima.double() + sums.double().log()
    text, image = (
        torch.tensor([getattr(tile, kind) for tile in tiles], device=ids.device) for kind in ("text", "image")
    )
    starts = torch.tensor([tile.ids.start for tile in tiles], device=ids.device)
    target_tiles = torch.searchsorted(starts, ids, right=True) - 1
    everything = masses.logsumexp(1)
    within = torch.where(belongs(ids, layout.text_ids), targets - masses[:, text].logsumexp(1)[at], -torch.inf)
    found_columns = (
        targets - everything[at],
        ~(first & _is_most(maxima[at], targets, target_tiles, torch.ones_like(text))),
        within,
        ~(first & _is_most(maxima[at], targets, target_tiles, text) & text[target_tiles]),
        (masses[:, image].logsumexp(1) - everything).exp()[at],
    )
    return torch.stack([column.double() for column in found_columns], dim=1)


def _tiles(layout: VocabularyLayout, rows: int, gpu: bool) -> Iterator[_Tile]:
    """Yield tiles that cover every id once, in order. A tile is all text, all image or neither."""
    assert layout.rows is not None, "the layout is resolved"
    width = max(LEAST_COLUMNS, (GPU_TILE_BYTES if gpu else CPU_TILE_BYTES) // (4 * max(rows, 1)))
    text, image = layout.text_ids, layout.image_range
    blocks = [text, *([] if image is None else [image]), *gaps(layout.rows, text, image)]
    for block in sorted(blocks, key=lambda block: block.start):
        for start in range(block.start, block.stop, width):
            ids = range(start, min(start + width, block.stop))
            yield _Tile(ids, block is text, block is image)


def _is_first(logits: Tensor, most: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return whether each target is its tile's likeliest id, or the first of equals. Only few rows are searched."""
    is_first = logits[rows, columns] == most[rows]
    likely = is_first.nonzero()[:, 0]
    if len(likely):
        is_first[likely] = logits[rows[likely]].argmax(1) == columns[likely]
    return is_first


def _is_most(
    maxima: Tensor,  # [N, tiles]
    targets: Tensor,  # [N]
    target_tiles: Tensor,  # [N], each target's tile
    chosen: Tensor,  # [tiles] bool
) -> Tensor:  # [N] bool
    """Return whether each target is the likeliest among chosen tiles: no earlier tile reaches it, and no later tile
    exceeds it."""
    before = torch.arange(len(chosen), device=target_tiles.device) < target_tiles[:, None]
    beaten = torch.where(before, maxima >= targets[:, None], maxima > targets[:, None])
    return ~(beaten & chosen).any(1)
