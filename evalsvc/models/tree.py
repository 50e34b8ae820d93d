"""Hidden states of tokens that form a trie: common beginnings of sequences are computed once.

All tokens of a batch are in one line without padding. Only attention is padded, in groups of rows of similar length: a
row has its tokens as queries, and these tokens and those shared with earlier rows as keys. Keys and values that later
batches attend to are carried over.

    for batch, hidden in read_trie(model, build_trie(sequences, budget)): …
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from evalsvc.models.attention import KVCache, grouped_attention
from evalsvc.models.layered import Layered
from evalsvc.models.trie import NOTHING, Batch, Ints, Row, Trie, build_trie

PADDING = 1.25
"""Pairs of query and key that a group may score per wanted pair."""
LANES = 16
"""Multiple to which keys are padded: 79 keys cost up to half as much again as 80."""
QUERIES = 64
"""Number of queries scored in one call: keys after the last query are left out instead of masked."""
GROUP_PAIRS = 4096
"""Number of extra pairs that are cheaper than another group."""


def read_trie(model: Layered, trie: Trie) -> Iterator[tuple[Batch, Tensor]]:  # hidden [N, D]
    """Yield each batch with the output of the final norm for its nodes. Raises InvalidData as `tree_hidden`."""
    carried = Carried()
    for batch, following in zip_longest(trie.batches, trie.batches[1:]):
        kept = NOTHING if following is None else following.carried
        hidden, carried = tree_hidden(model, trie, batch, carried, kept)
        yield batch, hidden


@dataclass(frozen=True, eq=False)
class Carried:
    """Keys and values of nodes, by layer [P, KV, head_dim]; empty without nodes."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


@torch.inference_mode()
def tree_hidden(
    model: Layered,
    trie: Trie,
    batch: Batch,
    carried: Carried,
    kept: Ints,  # [P], nodes
) -> tuple[Tensor, Carried]:  # [N, D]
    """Return the output of the final norm for the nodes of a batch, and keys and values of the nodes `kept`.

    `carried` has the keys and values of `batch.carried`. Raises InvalidData as `Positions.require_rows`.
    """
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


def read_prompts(
    model: Layered,
    prompts: Sequence[tuple[int, ...]],
    cache: KVCache,
) -> Tensor:  # [B, D]
    """Fill an empty cache with prompts, padded on the left; return the hidden states at their ends.

    Padding has the keys of the prompt's first token: masked, and finite where the prompt is finite.
    """
    trie = build_trie(prompts)
    [batch] = trie.batches
    hidden, computed = tree_hidden(model, trie, batch, Carried(), np.arange(len(trie.ids)))
    padded = max(map(len, trie.paths))
    places = torch.tensor([[*[path[0]] * (padded - len(path)), *path] for path in trie.paths], device=hidden.device)
    for layer, (keys, values) in enumerate(zip(computed.keys, computed.values, strict=True)):
        cache.write(layer, keys[places].transpose(1, 2), values[places].transpose(1, 2))
    cache.advance(padded)
    return hidden[places[:, -1]]


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows whose attention is computed in one call."""

    queries: Tensor  # [B, T] int64
    """Tokens of the batch; padding repeats any token, and its result is not used."""
    keys: Tensor  # [B, S] int64
    """Indices into the carried tokens followed by the tokens of the batch."""
    bias: Tensor | None  # [B, 1, T, S]
    """0 to attend and -inf not to; None: keys are the queries, and each attends to itself and earlier tokens."""
    before: int
    """Largest number of keys that precede the tokens of a row."""

    def mix(
        self,
        queries: Tensor,  # [·, H, head_dim]
        keys: Tensor,  # [·, KV, head_dim]
        values: Tensor,
    ) -> Tensor:  # [B·T, H, head_dim]
        rows, seen, mixed = (
            part.transpose(1, 2) for part in (queries[self.queries], keys[self.keys], values[self.keys])
        )
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


def _attended(
    trie: Trie,
    batch: Batch,
    like: Tensor,
) -> tuple[list[_Group], Tensor]:  # places [N] int64
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
