"""Trie of the tokens to compute, without torch: a token that several sequences share is computed once.

Sequences with a common beginning share its tokens, as the options of a question share the context. The sorted sequences
are the depth-first walk of a trie with one node per token, whose position is its depth. `LEAST_SHARE` decides which
beginnings are shared, `Row.takes` which nodes attend together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
NOTHING: Ints = np.empty(0, dtype=np.int64)

LEAST_SHARE = 1 / 16
"""Smallest share of a sequence that is worth sharing: a shared beginning has to be gathered and masked."""

GATHERED = 20
"""Number of scored pairs that cost as much as attending to a token of another row, whose key and value are copied."""


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
    """Position of each node."""
    ends: Ints
    """First node after each node's subtree: `a` is `b` or its ancestor where a ≤ b < ends[a]."""
    paths: Sequence[Sequence[int]]
    """Nodes of each sequence."""
    batches: Sequence[Batch]


def build_trie(sequences: Sequence[tuple[int, ...]], budget: int | None = None) -> Trie:
    """Build the trie of sequences of at least one id.

    A batch has at most `budget` nodes, or the nodes of one sequence; without a budget, there is one batch.
    """
    nodes = _Nodes(sys.maxsize if budget is None else budget)
    for sequence, share, indices in _walk(sequences):
        nodes.add(sequence, share, indices)
    return nodes.trie(len(sequences))


def _walk(sequences: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], int, list[int]]]:
    """Yield each sequence, the length that it shares with the sequence before, and its indices.

    Sequences with a common beginning are neighbours. Groups that share nothing with each other come with the longest
    first, so that rows of one batch have similar lengths, and memory runs out early or never.
    """
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
        return Trie(ids, positions, ends, [self.paths[index] for index in range(count)], list(self._batches()))

    def _batches(self) -> Iterator[Batch]:
        batch: list[Row] = []
        for row in self.rows:
            if batch and row.stop - batch[0].start > self.budget:
                yield Batch(batch)
                batch = []
            batch.append(row)
        if batch:
            yield Batch(batch)
