"""The computation for a set of requests, without torch: their tokens as a trie, and the targets after its nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evalsvc.models.trie import Batch, Ints, Trie, build_trie


@dataclass(frozen=True)
class Request:
    """A request for the likelihood of a continuation. Ids are rows of the model's table."""

    context: tuple[int, ...]
    """Ids before the continuation, at least one."""
    continuation: tuple[int, ...]
    """Ids to score, at least one."""

    @property
    def read(self) -> tuple[int, ...]:
        """Return the ids that the model reads: all but the last, so that options of one id cost nothing."""
        return self.context + self.continuation[:-1]


@dataclass(frozen=True)
class Packed:
    """The nodes that answer every request."""

    trie: Trie
    """Trie of the ids that the requests read, in order."""
    targets: Ints
    """Targets [3, N]: the node before the target, the target's id, and the index of its request; sorted by node."""

    def due(self, batch: Batch) -> Ints:
        """Return the targets after the nodes of a batch, [3, n]."""
        start, stop = np.searchsorted(self.targets[0], (batch.start, batch.stop))
        return self.targets[:, start:stop]

    @cached_property
    def scored(self) -> int:
        """Return the number of nodes from which something is predicted."""
        return len(np.unique(self.targets[0]))


def pack(requests: Sequence[Request], budget: int) -> Packed:
    """Pack requests into batches of at most `budget` nodes, or of a single longer sequence."""
    trie = build_trie([request.read for request in requests], budget)
    columns: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, (request, path) in enumerate(zip(requests, trie.paths, strict=True)):
        columns[0].extend(path[len(request.context) - 1 :])
        columns[1].extend(request.continuation)
        columns[2].extend([index] * len(request.continuation))
    targets = np.array(columns, dtype=np.int64)
    return Packed(trie, np.ascontiguousarray(targets[:, np.argsort(targets[0], kind="stable")]))


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of `lengths`, longest first, in batches of at most `batch_tokens` tokens including padding.

    A longer sequence is a batch of its own. The largest batch comes first, so that memory runs out there or never.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
