"""What is computed for some requests, without torch: their tokens as a trie, and what is due after which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evalsvc.models.trie import Batch, Ints, Trie, build_trie


@dataclass(frozen=True)
class Request:
    """How likely is a continuation? Ids are rows of the model's table."""

    context: tuple[int, ...]
    """What comes before, at least one id."""
    continuation: tuple[int, ...]
    """What is scored, at least one id."""

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads: all but the last id, so that options of one id cost nothing."""
        return self.context + self.continuation[:-1]


@dataclass(frozen=True)
class Packed:
    """Nodes that answer every request."""

    trie: Trie
    """Of what the requests read, in their order."""
    targets: Ints
    """[3, N]: the node after which an id is due, the id, and the request that asks for it; sorted by node."""

    def due(self, batch: Batch) -> Ints:
        """The targets after the nodes of a batch, [3, n]."""
        start, stop = np.searchsorted(self.targets[0], (batch.start, batch.stop))
        return self.targets[:, start:stop]

    @cached_property
    def scored(self) -> int:
        """How many nodes something is predicted from."""
        return len(np.unique(self.targets[0]))


def pack(requests: Sequence[Request], budget: int) -> Packed:
    """A batch has at most `budget` nodes, or those of one sequence."""
    trie = build_trie([request.read for request in requests], budget)
    columns: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, (request, path) in enumerate(zip(requests, trie.paths, strict=True)):
        columns[0].extend(path[len(request.context) - 1 :])
        columns[1].extend(request.continuation)
        columns[2].extend([index] * len(request.continuation))
    targets = np.array(columns, dtype=np.int64)
    return Packed(trie, np.ascontiguousarray(targets[:, np.argsort(targets[0], kind="stable")]))


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of `lengths`, longest first, in batches that hold at most `batch_tokens` tokens with their padding.

    A sequence longer than that is a batch of its own. The largest batch comes first: memory runs out there or never.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
