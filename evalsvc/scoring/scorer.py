"""Scoring continuations: the part that needs torch.

`score` → `pack` (what requests have in common) → `read_trie` → `target_columns` (the output head)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from evalsvc.errors import InvalidData, NonFinite
from evalsvc.models import Transformer, read_trie
from evalsvc.models.loading import find_nonfinite, nonfinite_cause
from evalsvc.models.trie import Ints
from evalsvc.scoring.head import COLUMNS, target_columns
from evalsvc.scoring.packing import Packed, Request, pack
from evalsvc.spec.layout import VocabularyLayout

CPU_BATCH_TOKENS = 1024
"""More than a GPU's batch is no use to a CPU: the activations leave its caches."""


@dataclass(frozen=True)
class Score:
    """How likely a continuation is, with the softmax over all ids and over the text ids alone."""

    logprob: float
    """log p(continuation | context) in nats, summed over its ids."""
    greedy: bool
    """Each of its ids is the likeliest; of several that are equally likely, the first."""
    logprob_within: float
    """The same where only text ids can come; -inf if one of the continuation is none."""
    greedy_within: bool
    """Each of its ids is the likeliest text id."""
    image_mass: float
    """Probability of all image ids where an id of the continuation is due, summed over these."""


def score(
    model: Transformer,
    layout: VocabularyLayout,
    requests: Sequence[Request],
    batch_tokens: int,
    report: Callable[[int], None] = lambda done: None,
    *,
    name: Callable[[int], str] = "request {}".format,
) -> list[Score]:
    """The score of each request, in their order.

    Which requests are scored together and in which batches moves a score by rounding only. A batch has at most
    `batch_tokens` tokens with its padding; see `pack` for a row that has more. `report` gets the number of requests
    done; what it raises (e.g. Cancelled) ends the work. `name` says what messages call the request of an index.

    Raises:
        InvalidData: a request without context or continuation; where llama_rotary's table ends.
        NonFinite: names the request and the first part of the model that is at fault.
    """
    for index, request in enumerate(requests):
        if not (request.context and request.continuation):
            part = "continuation" if request.context else "context"
            raise InvalidData(f"{name(index)} has an empty {part}; give it at least one token")
    device = model.tok_embeddings.weight.device
    budget = min(batch_tokens, CPU_BATCH_TOKENS) if device.type == "cpu" else batch_tokens
    first: dict[Request, int] = {}
    for index, request in enumerate(requests):
        first.setdefault(request, index)
    asked = list(first)
    report(0)
    done: dict[Request, Score] = {}
    for answered in _answered(model, layout, pack(asked, budget), len(asked)):
        bad = [first[asked[index]] for index, (logprob, *_) in answered.items() if not isfinite(logprob)]
        if bad:
            raise _not_finite(model, requests, sorted(bad), name)
        for index, (logprob, misses, within, misses_within, mass) in answered.items():
            done[asked[index]] = Score(logprob, misses == 0, within, misses_within == 0, mass)
        report(len(requests) * len(done) // len(asked))
    return [done[request] for request in requests]


def _answered(
    model: Transformer, layout: VocabularyLayout, packed: Packed, count: int
) -> Iterator[dict[int, list[float]]]:
    """By request, `target_columns` summed over its continuation; after each batch those that are complete."""
    device = model.tok_embeddings.weight.device
    sums = torch.zeros(count, COLUMNS, dtype=torch.float64, device=device)
    for batch, hidden in read_trie(model, packed.trie):
        _add_columns(model, layout, hidden, packed.due(batch), batch.start, sums)
        found: list[list[float]] = sums[list(batch.complete)].tolist()
        yield dict(zip(batch.complete, found, strict=True))


@torch.inference_mode()
def _add_columns(
    model: Transformer,
    layout: VocabularyLayout,
    hidden: Tensor,  # [N, D], of the nodes from `start` on
    due: Ints,  # [3, n], see `Packed.targets`
    start: int,
    sums: Tensor,  # [requests, COLUMNS] float64, added to
) -> None:
    if not due.size:
        return
    nodes, places = np.unique(due[0] - start, return_inverse=True)
    scored, at, ids, owners = (torch.from_numpy(part).to(hidden.device) for part in (nodes, places, due[1], due[2]))
    sums.index_add_(0, owners, target_columns(hidden[scored], model.head, at, ids, layout))


def _not_finite(
    model: Transformer, requests: Sequence[Request], bad: Sequence[int], name: Callable[[int], str]
) -> NonFinite:
    """The error of the first request that is not finite alone: within a row NaN reaches the others, mask or not."""
    index = next((index for index in bad if find_nonfinite(model, _alone(model, requests[index]))), bad[0])
    cause = nonfinite_cause(model, _alone(model, requests[index]))
    return NonFinite(f"the log-likelihood of {name(index)} is not finite; {cause}")


def _alone(model: Transformer, request: Request) -> Tensor:  # [1, T]
    return torch.tensor([request.read], device=model.tok_embeddings.weight.device)
