"""What the output head says of some ids, without ever holding the logits of all.

The vocabulary is gone through in tiles: a tile's logits are computed, read for their maximum and their sum of
exponentials while they are in the caches, and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evalsvc.metrics.token_loss import belongs, gaps
from evalsvc.spec.layout import VocabularyLayout

CPU_TILE_BYTES = 4 << 20
"""Of float32 logits: they stay in the caches between the passes over them."""
GPU_TILE_BYTES = 64 << 20
"""A GPU wants few and large launches."""
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
    """Of each target its log-likelihood and whether another id is likelier, of several equal ones the first counting as
    the likeliest, over all ids; the same within text ids; and the probability of all image ids together."""
    tiles = list(_tiles(layout, len(hidden), hidden.is_cuda))
    targets = torch.full(ids.shape, torch.nan, device=ids.device)
    first = torch.ones_like(ids, dtype=torch.bool)  # no id before the target in its own tile is as likely
    found = []
    for tile in tiles:
        logits = head(hidden, slice(tile.ids.start, tile.ids.stop))
        most = logits.amax(1)
        here = belongs(ids, tile.ids).nonzero()[:, 0]
        if len(here):
            rows, columns = at[here], ids[here] - tile.ids.start
            targets[here] = logits[rows, columns]
            first[here] = _is_first(logits, most, rows, columns)
        found.append((most, logits.sub_(most[:, None]).exp_().sum(1)))
    maxima, sums = (torch.stack(column, dim=1) for column in zip(*found, strict=True))  # [P, tiles]
    masses = maxima.double() + sums.double().log()
    text, image = (
        torch.tensor([getattr(tile, kind) for tile in tiles], device=ids.device) for kind in ("text", "image")
    )
    starts = torch.tensor([tile.ids.start for tile in tiles], device=ids.device)
    own = torch.searchsorted(starts, ids, right=True) - 1
    everything = masses.logsumexp(1)
    within = torch.where(belongs(ids, layout.text_ids), targets - masses[:, text].logsumexp(1)[at], -torch.inf)
    found_columns = (
        targets - everything[at],
        ~(first & _is_most(maxima[at], targets, own, torch.ones_like(text))),
        within,
        ~(first & _is_most(maxima[at], targets, own, text) & text[own]),
        (masses[:, image].logsumexp(1) - everything).exp()[at],
    )
    return torch.stack([column.double() for column in found_columns], dim=1)


def _tiles(layout: VocabularyLayout, rows: int, gpu: bool) -> Iterator[_Tile]:
    """Every id in one tile, in their order; a tile is all text, all image or neither."""
    assert layout.rows is not None, "the layout is resolved"
    width = max(LEAST_COLUMNS, (GPU_TILE_BYTES if gpu else CPU_TILE_BYTES) // (4 * max(rows, 1)))
    text, image = layout.text_ids, layout.image_range
    blocks = [text, *([] if image is None else [image]), *gaps(layout.rows, text, image)]
    for block in sorted(blocks, key=lambda block: block.start):
        for start in range(block.start, block.stop, width):
            ids = range(start, min(start + width, block.stop))
            yield _Tile(ids, block is text, block is image)


def _is_first(logits: Tensor, most: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Whether each target is its tile's likeliest, of equals the first. Few are, so that few rows are searched."""
    found = logits[rows, columns] == most[rows]
    likely = found.nonzero()[:, 0]
    if len(likely):
        found[likely] = logits[rows[likely]].argmax(1) == columns[likely]
    return found


def _is_most(
    maxima: Tensor,  # [N, tiles]
    targets: Tensor,  # [N]
    own: Tensor,  # [N], each target's tile
    some: Tensor,  # [tiles] bool
) -> Tensor:  # [N] bool
    """No tile among `some` before the target's own reaches it, and none behind it exceeds it."""
    before = torch.arange(len(some), device=own.device) < own[:, None]
    beaten = torch.where(before, maxima >= targets[:, None], maxima > targets[:, None])
    return ~(beaten & some).any(1)
