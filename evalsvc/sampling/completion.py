"""Text generation: prompts in, drawn ids out.

`complete` → `_Batch.step` → `Transformer.hidden` and `logits.draw`, once an id. Prompts of any lengths run together,
padded on the left. The same prompt draws the same ids whatever its neighbours, its place and the batch, but for
rounding: its noise is a function of its id.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evalsvc.errors import InvalidRequest, NonFinite
from evalsvc.models import Carried, KVCache, Transformer, build_trie, tree_hidden
from evalsvc.models.loading import find_nonfinite, nonfinite_cause
from evalsvc.sampling.logits import draw
from evalsvc.sampling.noise import skip_codes, stream_keys
from evalsvc.sampling.sampler import check_ids
from evalsvc.spec.sampling import SamplingParams

LOGITS_AT_ONCE = 1 << 24
"""How many logits are drawn from at once; with float64 noise and what it is made of, half a gigabyte."""


@dataclass(frozen=True)
class Continuation:
    """What to continue."""

    id: str
    """What the noise is drawn for; another id draws another text."""
    ids: tuple[int, ...]
    """The prompt, rows of the model's table, at least one."""
    max_tokens: int
    """How many ids to draw at most."""


def complete(
    model: Transformer,
    prompts: Sequence[Continuation],
    params: SamplingParams,
    *,
    batch_tokens: int,
    allowed: range | None = None,
    stop: Callable[[int, Sequence[int]], bool] | None = None,
    end: frozenset[int] = frozenset(),
    report: Callable[[int], None] = lambda completed: None,
) -> list[list[int]]:
    """Draw the ids of each prompt, rows of the table, without the prompt.

    A row ends after an id of `end`, which is kept; when `stop`, given the prompt's index and its ids so far, says so;
    or after `max_tokens`. `allowed` are the rows to draw from [all], which moves no row's noise. A batch holds at most
    `batch_tokens` tokens, padding and what is drawn included, or one prompt; that moves ids by rounding at most.
    `report` gets the number of completed prompts after every step; what it raises (e.g. Cancelled) ends the work.

    Raises:
        InvalidRequest: guidance, which has no meaning here; a prompt that is empty, names a row that the model does
            not have, or shares its id with another; nothing to draw, or nothing to draw from.
        NonFinite: names the prompt, how many ids had been drawn, and the first part of the model that is at fault.
        InvalidData: where llama_rotary's table ends.
    """
    _check(prompts, params, allowed, model.config.vocab_size)
    drawn: list[list[int]] = [[] for _ in prompts]
    completed = 0
    for indices in _batches(prompts, batch_tokens):
        batch = _Batch(model, prompts, indices, params, allowed)
        while batch.live:
            found = batch.step()
            bad = [index for index, (_, finite) in found.items() if not finite]
            if bad:
                raise _not_finite(model, [(prompts[index], drawn[index]) for index in bad])
            for index, (row, _) in found.items():
                ids = drawn[index]
                ids.append(row)
                full = len(ids) == prompts[index].max_tokens
                if row in end or full or (stop is not None and stop(index, ids)):
                    batch.live.remove(index)
                    completed += 1
            report(completed)
    return drawn


def _batches(prompts: Sequence[Continuation], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts that draw as many ids and are about as long, the longest first."""
    batch: list[int] = []
    width = 0
    # Prompts that are equal are neighbours, and are then computed once.
    for index in sorted(
        range(len(prompts)), key=lambda index: (*_size(prompts[index]), prompts[index].ids), reverse=True
    ):
        # The first of a batch draws the most.
        most = prompts[batch[0] if batch else index].max_tokens
        width = max(width, most + len(prompts[index].ids))
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch, width = [], sum(_size(prompts[index]))
        batch.append(index)
    if batch:
        yield batch


def _size(prompt: Continuation) -> tuple[int, int]:
    return prompt.max_tokens, len(prompt.ids)


class _Batch:
    """Prompts that run together: the tokens of each are at the last slots, whatever its length."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Continuation],
        indices: Sequence[int],
        params: SamplingParams,
        allowed: range | None,
    ) -> None:
        rows = range(model.config.vocab_size) if allowed is None else allowed
        self.model, self.params = model, params
        self.rows = list(indices)
        """Which prompt each row of the tensors is."""
        self.live = set(indices)
        """Prompts that go on; who calls `step` takes out those that have ended."""
        self.first, self.head_rows = rows.start, slice(rows.start, rows.stop)
        self.chunk = max(1, LOGITS_AT_ONCE // len(rows))
        self.position = 0  # of the next id among those that are drawn
        self.drawn: Tensor | None = None  # [B] int64, the ids before it
        device = model.tok_embeddings.weight.device
        self.keys = skip_codes(stream_keys(params.seed, [prompts[index].id for index in indices], device), rows.start)
        some = [prompts[index] for index in indices]
        self.mask = _mask(some, device)
        self.lengths = torch.tensor([len(prompt.ids) for prompt in some], device=device)
        """Of the prompts, and of what has been computed behind each while it was live."""
        with torch.inference_mode():
            self.cache = model.new_cache(len(indices), self.mask.shape[1])
            self.hidden = _read(model, some, self.cache)  # [B, D], what the next id is drawn from

    @torch.inference_mode()
    def step(self) -> dict[int, tuple[int, int]]:
        """Draw one id for every live prompt: row of the table and whether its logits were finite, by the index."""
        if self.drawn is not None:
            self._go_on(self.drawn)
        self.drawn, finite = self._draw(self.hidden)
        found = torch.stack((self.drawn, finite.long()), dim=1).tolist()  # one transfer, since a GPU waits for each
        self.position += 1
        return {index: (row, good) for index, (row, good) in zip(self.rows, found, strict=True) if index in self.live}

    def _go_on(
        self,
        drawn: Tensor,  # [B] int64
    ) -> None:
        """Compute what follows the ids that were drawn last."""
        if 2 * len(self.live) <= len(self.rows):
            drawn = drawn[self._drop_ended()]
        seen = self.mask[:, : self.cache.length + 1]
        # A row that has ended stays where it is: going on it could come to the end of llama_rotary's table.
        self.lengths = self.lengths + torch.tensor([index in self.live for index in self.rows], device=drawn.device)
        positions = self.lengths[:, None] - 1
        self.hidden = self.model.hidden(drawn[:, None], mask=seen, positions=positions, cache=self.cache)[:, -1]

    def _draw(
        self,
        hidden: Tensor,  # [B, D]
    ) -> tuple[Tensor, Tensor]:  # rows of the table [B] int64, finite [B] bool
        parts = [
            draw(self.model.head(hidden[some], self.head_rows), self.params, self.keys[some], self.position)
            for some in (slice(start, start + self.chunk) for start in range(0, len(hidden), self.chunk))
        ]
        codes, finite = (torch.cat(column) for column in zip(*parts, strict=True))
        return codes + self.first, finite

    def _drop_ended(self) -> Tensor:  # [R] int64, the rows that are kept
        """Go on with the live rows only. Not at every end: keys and values are copied."""
        places = [place for place, index in enumerate(self.rows) if index in self.live]
        kept = torch.tensor(places, device=self.keys.device)
        self.rows = [self.rows[place] for place in places]
        self.keys, self.mask, self.lengths = self.keys[kept], self.mask[kept], self.lengths[kept]
        self.cache.keep(kept)
        return kept


def _mask(prompts: Sequence[Continuation], device: torch.device) -> Tensor:
    """[B, T + most drawn - 1], prompts padded on the left; the last id that is drawn is never read."""
    padded = max(len(prompt.ids) for prompt in prompts)
    slots = padded + max(prompt.max_tokens for prompt in prompts) - 1
    padding = torch.tensor([[padded - len(prompt.ids)] for prompt in prompts], device=device)  # [B, 1]
    return torch.arange(slots, device=device) >= padding


def _read(model: Transformer, prompts: Sequence[Continuation], cache: KVCache) -> Tensor:
    """Fill the cache with the prompts; hidden states at their ends, [B, D].

    What pads has the keys of the prompt's own first token: masked, and finite where the prompt itself is.
    """
    trie = build_trie([prompt.ids for prompt in prompts])
    [batch] = trie.batches
    hidden, computed = tree_hidden(model, trie, batch, Carried(), np.arange(len(trie.ids)))
    padded = max(map(len, trie.paths))
    places = torch.tensor([[*[path[0]] * (padded - len(path)), *path] for path in trie.paths], device=hidden.device)
    for layer, (keys, values) in enumerate(zip(computed.keys, computed.values, strict=True)):
        cache.write(layer, keys[places].transpose(1, 2), values[places].transpose(1, 2))
    cache.advance(padded)
    return hidden[places[:, -1]]


def _not_finite(model: Transformer, bad: Sequence[tuple[Continuation, Sequence[int]]]) -> NonFinite:
    """The error of the first prompt that is not finite alone: NaN reaches those that share their beginning with it."""

    def alone(prompt: Continuation, drawn: Sequence[int]) -> Tensor:
        return torch.tensor([[*prompt.ids, *drawn]], device=model.tok_embeddings.weight.device)

    prompt, drawn = next((one for one in bad if find_nonfinite(model, alone(*one))), bad[0])
    return NonFinite(
        f"the logits after {len(drawn)} drawn ids of prompt {reprlib.repr(prompt.id)} are NaN or infinite; "
        f"{nonfinite_cause(model, alone(prompt, drawn))}"
    )


def _check(prompts: Sequence[Continuation], params: SamplingParams, allowed: range | None, rows: int) -> None:
    if params.guided:
        raise InvalidRequest(
            f"guidance_scale is {params.guidance_scale}; text has no unconditional prompt, leave it at 1"
        )
    if allowed is not None:
        if not allowed or allowed.step != 1:
            raise InvalidRequest(f"allowed is {allowed}; give the rows to draw from as a range of at least one")
        check_ids("allowed", allowed, rows)
    seen: set[str] = set()
    for prompt in prompts:
        name = f"prompt {reprlib.repr(prompt.id)}"
        if not prompt.ids:
            raise InvalidRequest(f"{name} is empty; give it an id to begin with, e.g. the tokenizer's bos")
        if prompt.max_tokens < 1:
            raise InvalidRequest(f"{name} has max_tokens {prompt.max_tokens}; it must be 1 or more")
        if prompt.id in seen:
            raise InvalidRequest(f"two prompts have the id {reprlib.repr(prompt.id)}; give each its own noise and id")
        seen.add(prompt.id)
        check_ids(name, prompt.ids, rows)
