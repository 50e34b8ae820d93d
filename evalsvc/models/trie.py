"""Trie of the tokens to compute: a token that several sequences share is computed once.

Sequences with a common beginning share its tokens, as the options of a question share the context. The sorted sequences
are the depth-first walk of a trie with one node per token, whose position is its depth. `LEAST_SHARE` decides which
beginnings are shared, `Row.takes` which nodes attend together.

    for batch, hidden in read_trie(model, build_trie(sequences, budget)): …

All tokens of a batch are in one line without padding. Only attention is padded, in groups of rows of similar length: a
row has its tokens as queries, and these tokens and those shared with earlier rows as keys. Keys and values that later
batches attend to are carried over.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalsvc.models.attention import KVCache, grouped_attention
from evalsvc.models.layered import Layered

Ints = NDArray[np.int64]
NOTHING: Ints = np.empty(0, dtype=np.int64)

LEAST_SHARE = 1 / 16
"""Smallest share of a sequence that is worth sharing: a shared beginning has to be gathered and masked."""

GATHERED = 20
"""Number of scored pairs that cost as much as attending to a token of another row, whose key and value are copied."""

PADDING = 1.25
"""Pairs of query and key that a group may score per wanted pair."""
LANES = 16
"""Multiple to which keys are padded: 79 keys cost up to half as much again as 80."""
QUERIES = 64
"""Number of queries scored in one call: keys after the last query are left out instead of masked."""
GROUP_PAIRS = 4096
"""Number of extra pairs that are cheaper than another group."""


@dataclass(eq=False)
class Row:
    """Nodes that attend to each other and to their common ancestors in other rows."""

    stem: Ints
    """Nodes of earlier rows, from the root on; every one is an ancestor of the row's first node."""
    start: int
    """First of the row's nodes, which have consecutive numbers."""
    stop: int
    plain: bool
    """Whether the row is a sequence without a stem and without branches, so that attention is causal."""
    complete: list[int] = field(default_factory=list)
    """Indices of the sequences that end in the row."""

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def keys(self) -> int:
        return len(self.stem) + self.size

    def takes(self, share: int, added: int, budget: int) -> bool:
        """Return whether a sequence with `added` new nodes joins the row: a separate row would cost more to gather."""
        size = self.size
        return share > 0 and size + added <= budget and 2 * added * size <= (added + GATHERED) * share


@dataclass(frozen=True)
class Batch:
    """Rows whose nodes are computed together, in order."""

    rows: Sequence[Row]

    @property
    def complete(self) -> list[int]:
        """Indices of the sequences that end in the batch."""
        return [index for row in self.rows for index in row.complete]

    @property
    def start(self) -> int:
        return self.rows[0].start

    @property
    def stop(self) -> int:
        return self.rows[-1].stop

    @cached_property
    def carried(self) -> Ints:
        """Nodes of earlier batches that these rows attend to: a beginning of the path to the last earlier node."""
        stems = (row.stem for row in self.rows)
        return max((stem[stem < self.start] for stem in stems), key=len)

    def places(self, nodes: Ints) -> Ints:
        """Return the places of carried or computed `nodes`, with carried nodes before computed nodes."""
        carried = self.carried
        before = np.searchsorted(carried, nodes)  # carried nodes are a path, so their numbers rise
        return np.where(nodes < self.start, before, nodes - self.start + len(carried))


@dataclass(frozen=True)
class Trie:
    """Nodes to compute for a set of sequences."""

    ids: Ints
    """Id of each node, depth first."""
    positions: Ints
    ends: Ints
    """First node after each node's subtree: `a` is `b` or its ancestor where a ≤ b < ends[a]."""
    paths: Sequence[Sequence[int]]
    """Nodes of each sequence."""
    batches: Sequence[Batch]


def build_trie(sequences: Sequence[tuple[int, ...]], budget: int | None = None) -> Trie:
    """Build the trie of sequences of at least one id. A batch has at most `budget` nodes, or the nodes of one sequence;
    without a budget, there is one batch."""
    nodes = _Nodes(sys.maxsize if budget is None else budget)
    for sequence, share, indices in _walk(sequences):
        nodes.add(sequence, share, indices)
    return nodes.trie(len(sequences))


def _walk(sequences: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], int, list[int]]]:
    """Yield each sequence, the length that it shares with the one before, and its indices. Groups that share nothing
    come with the longest first: rows of one batch have similar lengths, and memory runs out early or never."""
    places: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        places.setdefault(sequence, []).append(index)
    groups: list[list[tuple[tuple[int, ...], int]]] = []
    before: tuple[int, ...] = ()
    for sequence in sorted(places):
        share = _common(before, sequence)
        if share < max(1, LEAST_SHARE * len(sequence)):
            groups.append([])
            share = 0
        groups[-1].append((sequence, share))
        before = sequence
    groups.sort(key=lambda group: -max(len(sequence) for sequence, _ in group))
    return ((sequence, share, places[sequence]) for group in groups for sequence, share in group)


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Return the length of the common beginning, by bisection: comparing slices is faster than a loop."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class _Nodes:
    """Builder of a trie, which adds one sequence after the other, each next to the last."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.path: list[int] = []
        """Nodes of the last sequence."""
        self.open: list[tuple[int, int]] = []
        """Runs of nodes on the path, by first node and its depth, without later nodes so far."""
        self.closed: list[tuple[int, int, int]] = []
        """Runs of nodes: start, stop, and the node after the run's subtree."""
        self.rows: list[Row] = []
        self.paths: dict[int, list[int]] = {}

    def add(self, sequence: tuple[int, ...], share: int, indices: list[int]) -> None:
        start, stop = len(self.ids), len(self.ids) + len(sequence) - share
        if not (self.rows and self.rows[-1].takes(share, stop - start, self.budget)):
            self.rows.append(Row(np.array(self.path[:share], dtype=np.int64), start, start, share == 0))
        elif self.path[share - 1] != start - 1:
            self.rows[-1].plain = False
        self._close(share)
        self.open.append((start, share))
        self.ids.extend(sequence[share:])
        self.positions.extend(range(share, len(sequence)))
        self.path = [*self.path[:share], *range(start, stop)]
        self.rows[-1].stop = stop
        self.rows[-1].complete.extend(indices)
        self.paths.update(dict.fromkeys(indices, self.path))

    def _close(self, depth: int) -> None:
        end = len(self.path)
        while end > depth:
            first, above = self.open.pop()
            kept = max(depth - above, 0)
            self.closed.append((first + kept, first + end - above, len(self.ids)))
            if kept:
                self.open.append((first, above))
            end = above

    def trie(self, count: int) -> Trie:
        self._close(0)
        ends = np.empty(len(self.ids), dtype=np.int64)
        for start, stop, behind in self.closed:
            ends[start:stop] = behind
        ids, positions = (np.array(column, dtype=np.int64) for column in (self.ids, self.positions))
        batches: list[list[Row]] = []
        for row in self.rows:
            if not batches or row.stop - batches[-1][0].start > self.budget:
                batches.append([])
            batches[-1].append(row)
        return Trie(ids, positions, ends, [self.paths[index] for index in range(count)], list(map(Batch, batches)))


def read_trie(model: Layered, trie: Trie) -> Iterator[tuple[Batch, Tensor]]:  # hidden [N, D]
    """Yield each batch with the output of the final norm for its nodes."""
    carried = Carried()
    for batch, following in zip_longest(trie.batches, trie.batches[1:]):
        kept = NOTHING if following is None else following.carried
        hidden, carried = trie_hidden(model, trie, batch, carried, kept)
        yield batch, hidden


@dataclass(frozen=True, eq=False)
class Carried:
    """Keys and values of nodes, by layer [P, KV, head_dim]; empty without nodes."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


@torch.inference_mode()
def trie_hidden(
    model: Layered,
    trie: Trie,
    batch: Batch,
    carried: Carried,
    kept: Ints,  # [P], nodes
) -> tuple[Tensor, Carried]:  # [N, D]
    """Return the output of the final norm for a batch's nodes, and keys and values of the nodes `kept`; `carried` has
    those of `batch.carried`."""
    weight = model.tok_embeddings.weight
    span = slice(batch.start, batch.stop)
    ids, positions, places = (
        torch.from_numpy(part).to(weight.device) for part in (trie.ids[span], trie.positions[span], batch.places(kept))
    )
    model.positions.require_rows(positions)
    groups, results = _attended(trie, batch, weight)
    carried_on = Carried()

    def mix(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if carried.keys:
            keys, values = torch.cat((carried.keys[layer], keys)), torch.cat((carried.values[layer], values))
        if len(kept):
            carried_on.keys.append(keys[places])
            carried_on.values.append(values[places])
        mixed = torch.cat([group.mix(queries, keys, values) for group in groups])
        return mixed[results].flatten(1)

    return model.mixed(ids, positions, mix), carried_on


def read_prompts(model: Layered, prompts: Sequence[tuple[int, ...]], cache: KVCache) -> Tensor:  # [B, D]
    """Fill an empty cache with prompts, padded on the left; return the hidden states at their ends. Padding has the
    keys of the prompt's first token: masked, and finite where the prompt is finite."""
    trie = build_trie(prompts)
    [batch] = trie.batches
    hidden, computed = trie_hidden(model, trie, batch, Carried(), np.arange(len(trie.ids)))
    padded = max(map(len, trie.paths))
    places = torch.tensor([[*[path[0]] * (padded - len(path)), *path] for path in trie.paths], device=hidden.device)
    for layer, (keys, values) in enumerate(zip(computed.keys, computed.values, strict=True)):
        cache.write(layer, keys[places].transpose(1, 2), values[places].transpose(1, 2))
    cache.advance(padded)
    return hidden[places[:, -1]]


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows whose attention is computed in one call."""

    queries: Tensor  # [B, T] int64, tokens of the batch; padding repeats any token, and its result is not used
    keys: Tensor  # [B, S] int64, indices into the carried tokens followed by the tokens of the batch
    bias: Tensor | None  # [B, 1, T, S]
    """0 to attend and -inf not to; None: keys are the queries, and each attends to itself and earlier tokens."""
    before: int
    """Largest number of keys that precede the tokens of a row."""

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # [·, heads, head_dim] → [B·T, H, head_dim]
        gathered = queries[self.queries], keys[self.keys], values[self.keys]
        rows, seen, mixed = (part.transpose(1, 2) for part in gathered)
        count, most = self.queries.shape[1], self.keys.shape[1]
        parts = []
        for start in range(0, count, QUERIES):
            stop = min(start + QUERIES, count)
            span = min(_rounded(self.before + stop), most)  # no query attends to a later node
            bias = None if self.bias is None else self.bias[:, :, start:stop, :span]
            if bias is None and start:
                shape = stop - start, stop
                bias = torch.full(shape, -torch.inf, dtype=rows.dtype, device=rows.device).triu_(start + 1)
            part = grouped_attention(
                rows[:, :, start:stop], seen[:, :, :span], mixed[:, :, :span], bias, causal=bias is None
            )
            parts.append(part.transpose(1, 2))
        return torch.cat(parts, dim=1).flatten(0, 1)


def _attended(trie: Trie, batch: Batch, like: Tensor) -> tuple[list[_Group], Tensor]:  # places [N] int64
    places = np.empty(batch.stop - batch.start, dtype=np.int64)
    groups = []
    start = 0
    for rows in _groups(batch.rows):
        in_rows = [np.arange(row.start, row.stop) for row in rows]
        keys = _pad([np.append(row.stem, nodes) for row, nodes in zip(rows, in_rows, strict=True)], LANES)
        queries = keys if rows[0].plain else _pad(in_rows)
        for number, row in enumerate(rows):
            first = start + number * queries.shape[1]
            places[row.start - batch.start : row.stop - batch.start] = np.arange(first, first + row.size)
        start += queries.size
        bias = None if rows[0].plain else _bias(trie, rows, queries, keys, like)
        at, others = (torch.from_numpy(part).to(like.device) for part in (queries - batch.start, batch.places(keys)))
        groups.append(_Group(at, others, bias, max(len(row.stem) for row in rows)))
    return groups, torch.from_numpy(places).to(like.device)


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield groups of rows of similar length, plain rows apart: attention without a mask is faster."""
    group: list[Row] = []
    longest = wanted = 0
    for row in sorted(rows, key=lambda row: (row.plain, -row.keys, -row.size)):
        longest, wanted = max(longest, row.size), wanted + row.size * row.keys
        if group:
            pairs = (len(group) + 1) * longest * group[0].keys
            if row.plain != group[0].plain or pairs > PADDING * wanted + GROUP_PAIRS:
                yield group
                group, longest, wanted = [], row.size, row.size * row.keys
        group.append(row)
    yield group


def _rounded(count: int, lanes: int = LANES) -> int:
    return -(-count // lanes) * lanes


def _pad(parts: Sequence[Ints], lanes: int = 1) -> Ints:  # [B, T], T a multiple of `lanes`
    """Return rows padded with their first node, so that NaN in one row does not reach another row."""
    padded = np.repeat([[part[0]] for part in parts], _rounded(max(map(len, parts)), lanes), axis=1)
    for row, part in enumerate(parts):
        padded[row, : len(part)] = part
    return padded


def _bias(
    trie: Trie,
    rows: Sequence[Row],
    queries: Ints,  # [B, T], nodes
    keys: Ints,  # [B, S], nodes
    like: Tensor,
) -> Tensor:  # [B, 1, T, S]
    device = like.device
    lengths = torch.tensor([[row.keys] for row in rows], device=device)
    real = torch.arange(keys.shape[1], device=device) < lengths  # [B, S]
    of, seen, ends = (torch.from_numpy(part).to(device) for part in (queries, keys, trie.ends[keys]))
    of = of[:, :, None]  # [B, T, 1]
    allowed = (seen[:, None] <= of) & (of < ends[:, None]) & real[:, None]
    return torch.zeros(allowed.shape, dtype=like.dtype, device=device).masked_fill_(~allowed, -torch.inf)[:, None]
