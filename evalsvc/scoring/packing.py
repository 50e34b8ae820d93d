"""Which requests are computed together, in plain Python.

The options of a question share its context: they stand behind it in one row, and none sees another. A row is
`context | branch | branch | …`, where a branch is what of an option the model reads, all but its last id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Request:
    """How likely is a continuation? Ids are rows of the model's table."""

    context: tuple[int, ...]
    """What comes before, at least one id."""
    continuation: tuple[int, ...]
    """What is scored, at least one id."""


Ends = Mapping[int, Sequence[int]]
"""The last ids of the continuations that share a branch, each with the indices of the requests that ask for it."""


@dataclass(frozen=True)
class Row:
    """A context and what is scored behind it."""

    context: tuple[int, ...]
    branches: Mapping[tuple[int, ...], Ends]
    """What the model reads behind the context, and what may follow it. Options of one id are in the empty branch."""

    @cached_property
    def length(self) -> int:
        return len(self.context) + sum(map(len, self.branches))

    @property
    def plain(self) -> bool:
        """There is one branch to read at most, so that the row is a sequence like any other."""
        return sum(bool(branch) for branch in self.branches) < 2

    @property
    def ids(self) -> list[int]:
        return [*self.context, *(token for branch in self.branches for token in branch)]

    @property
    def positions(self) -> list[int]:
        """Of each id in its own sequence: they start again behind the context."""
        start = len(self.context)
        return [*range(start), *(start + step for branch in self.branches for step in range(len(branch)))]

    @property
    def branch_numbers(self) -> list[int]:
        """Of each id; 0 is the context."""
        numbered = enumerate(self.branches, start=1)
        return [0] * len(self.context) + [number for number, branch in numbered for _ in branch]

    @property
    def requests(self) -> int:
        """How many requests this row answers."""
        return sum(len(indices) for ends in self.branches.values() for indices in ends.values())


def pack(requests: Sequence[Request], budget: int) -> list[Row]:
    """Rows that answer every request; what is asked twice is in them once.

    A row has at most `budget` tokens, or twice its context: below that, cutting would double the work that it saves
    memory for. A single option may be longer.
    """
    contexts: dict[tuple[int, ...], dict[tuple[int, ...], dict[int, list[int]]]] = {}
    for index, request in enumerate(requests):
        ends = contexts.setdefault(request.context, {}).setdefault(request.continuation[:-1], {})
        ends.setdefault(request.continuation[-1], []).append(index)
    return [row for context, branches in contexts.items() for row in _rows(context, branches, budget)]


def _rows(
    context: tuple[int, ...], branches: Mapping[tuple[int, ...], Mapping[int, list[int]]], budget: int
) -> Iterator[Row]:
    limit = max(budget, 2 * len(context)) - len(context)
    row: dict[tuple[int, ...], Ends] = {}
    length = 0
    for branch, ends in branches.items():
        if row and length + len(branch) > limit:
            yield Row(context, row)
            row, length = {}, 0
        row[branch] = ends
        length += len(branch)
    yield Row(context, row)


def row_batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Batches of rows like `token_batches`, plain ones apart from the others.

    Plain rows need no mask, and attention is then faster. They must not get one for their neighbours' sake either,
    since their arithmetic would depend on them.
    """
    for plain in (False, True):
        some = [row for row in rows if row.plain == plain]
        for batch in token_batches([row.length for row in some], batch_tokens):
            yield [some[index] for index in batch]


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of `lengths`, longest first, in batches that hold at most `batch_tokens` tokens with their padding.

    A sequence longer than that is a batch of its own. The largest batch comes first, so that memory runs out at once
    or never.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
