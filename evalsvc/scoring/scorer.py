"""Scoring continuations.

`score` → `pack` (what requests have in common) → `LanguageModel.read_trie` → `target_columns` (the output head)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from evalsvc.errors import InvalidData, NonFinite
from evalsvc.metrics.token_loss import belongs, gaps
from evalsvc.models.language_model import LanguageModel, first_nonfinite, nonfinite_cause
from evalsvc.models.trie import Batch, Ints, Trie, build_trie
from evalsvc.spec.layout import VocabularyLayout

CPU_BATCH_TOKENS = 1024
"""Maximum number of tokens in a CPU's batch: larger batches exceed its caches and are not faster."""


@dataclass(frozen=True)
class Request:
    """A request for the likelihood of a continuation. Ids are rows of the model's table."""

    context: tuple[int, ...]
    """Ids before the continuation, at least one."""
    continuation: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """Return the ids that the model reads: all but the last, so that options of one id cost nothing."""
        return self.context + self.continuation[:-1]


@dataclass(frozen=True)
class Score:
    """The likelihood of a continuation, with the softmax over all ids and over the text ids."""

    logprob: float
    """log p(continuation | context) in nats, summed over its ids."""
    greedy: bool
    """Whether each id of the continuation is the likeliest, or the first of equally likely ids."""
    logprob_within: float
    """log p(continuation | context) in nats within text ids; for an id that is not text, within this id and text."""
    greedy_within: bool
    image_mass: float
    """Total probability of image ids at each id of the continuation, summed; 0 where these have a head of their own."""


def score(
    model: LanguageModel,
    layout: VocabularyLayout,
    requests: Sequence[Request],
    batch_tokens: int,
    report: Callable[[int], None] = lambda done: None,
    *,
    name: Callable[[int], str] = "request {}".format,
) -> list[Score]:
    """Return the score of each request; batches of at most `batch_tokens` tokens (see `pack`) affect scores by rounding
    only. `report` gets the number of finished requests, and may raise to stop. `name` returns a request's name in
    messages."""
    for index, request in enumerate(requests):
        if not (request.context and request.continuation):
            part = "continuation" if request.context else "context"
            raise InvalidData(f"{name(index)} has an empty {part}; add at least one token")
    device = model.device
    budget = min(batch_tokens, CPU_BATCH_TOKENS) if device.type == "cpu" else batch_tokens
    first: dict[Request, int] = {}
    for index, request in enumerate(requests):
        first.setdefault(request, index)
    asked = list(first)
    report(0)
    done: dict[Request, Score] = {}
    for answered in _answered(model, layout, pack(asked, budget), len(asked)):
        bad = sorted(first[asked[index]] for index, (logprob, *_) in answered.items() if not isfinite(logprob))
        if bad:
            index = bad[first_nonfinite(model, [requests[index].read for index in bad])]
            cause = nonfinite_cause(model, torch.tensor([requests[index].read], device=device))
            raise NonFinite(f"the log-likelihood of {name(index)} is not finite; {cause}")
        for index, (logprob, misses, within, misses_within, mass) in answered.items():
            done[asked[index]] = Score(logprob, misses == 0, within, misses_within == 0, mass)
        report(len(requests) * len(done) // len(asked))
    return [done[request] for request in requests]


def _answered(
    model: LanguageModel, layout: VocabularyLayout, packed: Packed, count: int
) -> Iterator[dict[int, list[float]]]:
    device = model.device
    columns_of = partial(target_columns, layout=layout, heads_apart=model.config.heads_apart)
    sums = torch.zeros(count, COLUMNS, dtype=torch.float64, device=device)
    for batch, hidden in model.read_trie(packed.trie):
        due = packed.due(batch)
        if due.size:
            nodes, places = np.unique(due[0] - batch.start, return_inverse=True)
            scored, at, ids, owners = (torch.from_numpy(part).to(device) for part in (nodes, places, due[1], due[2]))
            with torch.inference_mode():
                sums.index_add_(0, owners, columns_of(hidden[scored], model.head, at, ids))
        totals: list[list[float]] = sums[list(batch.complete)].tolist()
        yield dict(zip(batch.complete, totals, strict=True))


# the nodes to compute


@dataclass(frozen=True)
class Packed:
    """The nodes that answer every request."""

    trie: Trie
    targets: Ints
    """Targets [3, N]: the node before the target, the target's id, and the index of its request; sorted by node."""

    def due(self, batch: Batch) -> Ints:
        start, stop = np.searchsorted(self.targets[0], (batch.start, batch.stop))
        return self.targets[:, start:stop]

    @cached_property
    def scored(self) -> int:
        return len(np.unique(self.targets[0]))


def pack(requests: Sequence[Request], budget: int) -> Packed:
    trie = build_trie([request.read for request in requests], budget)
    columns: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, (request, path) in enumerate(zip(requests, trie.paths, strict=True)):
        columns[0].extend(path[len(request.context) - 1 :])
        columns[1].extend(request.continuation)
        columns[2].extend([index] * len(request.continuation))
    targets = np.array(columns, dtype=np.int64)
    return Packed(trie, np.ascontiguousarray(targets[:, np.argsort(targets[0], kind="stable")]))


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of `lengths`, longest first, so that memory runs out first or never, in batches of at most
    `batch_tokens` tokens including padding; a longer sequence is a batch of its own."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


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
    heads_apart: bool = False,
) -> Tensor:  # [N, COLUMNS] float64
    """Return for each target: its log-likelihood and whether another id is likelier (the first of equal ids counts as
    the likeliest), over all ids and within text ids, and the total probability of all image ids.

    With `heads_apart`, an image target is compared with image ids only, and any other target with all other ids."""
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
    described = [(tile.text, tile.image, tile.ids.start) for tile in tiles]
    text, image, starts = (torch.tensor(column, device=ids.device) for column in zip(*described, strict=True))
    target_tiles = torch.searchsorted(starts, ids, right=True) - 1
    everything, of_images = masses.logsumexp(1), masses[:, image].logsumexp(1)
    mass, normaliser, chosen = (of_images - everything).exp()[at], everything[at], torch.ones_like(text)
    if heads_apart:
        is_image = image[target_tiles]
        normaliser = torch.where(is_image, of_images[at], masses[:, ~image].logsumexp(1)[at])
        mass, chosen = torch.zeros_like(mass), image == is_image[:, None]
    of_text = masses[:, text].logsumexp(1)[at]
    of_text = torch.where(text[target_tiles], of_text, torch.logaddexp(of_text, targets.double()))
    found_columns = (
        targets - normaliser,
        ~(first & _is_most(maxima[at], targets, target_tiles, chosen)),
        targets - of_text,
        ~(first & _is_most(maxima[at], targets, target_tiles, text) & text[target_tiles]),
        mass,
    )
    return torch.stack([column.double() for column in found_columns], dim=1)


def _tiles(layout: VocabularyLayout, rows: int, gpu: bool) -> Iterator[_Tile]:
    assert layout.rows is not None, "the layout is resolved"
    width = max(LEAST_COLUMNS, (GPU_TILE_BYTES if gpu else CPU_TILE_BYTES) // (4 * max(rows, 1)))
    text, image = layout.text_ranges, layout.image_range
    blocks = [*text, *([] if image is None else [image]), *gaps(layout.rows, *text, image)]
    for block in sorted(blocks, key=lambda block: block.start):
        for start in range(block.start, block.stop, width):
            ids = range(start, min(start + width, block.stop))
            yield _Tile(ids, block in text, block is image)


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
    chosen: Tensor,  # [tiles] or [N, tiles] bool
) -> Tensor:  # [N] bool
    """Return whether each target is the likeliest among chosen tiles: no earlier tile reaches it, and no later tile
    exceeds it."""
    before = torch.arange(maxima.shape[1], device=target_tiles.device) < target_tiles[:, None]
    beaten = torch.where(before, maxima >= targets[:, None], maxima > targets[:, None])
    return ~(beaten & chosen).any(1)
