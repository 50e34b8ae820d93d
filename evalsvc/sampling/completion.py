"""Text generation: prompts in, drawn ids out.

`complete` → `_Batch.step` → `Transformer.hidden` and `logits.draw`, once an id. Prompts of any lengths run together,
padded on the left. The same prompt draws the same ids whatever its neighbours, its place and the batch, but for
rounding: its noise is a function of its id, attention always has a mask, and a row that has ended is left out.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalsvc.errors import InvalidRequest, NonFinite
from evalsvc.models import Transformer
from evalsvc.models.loading import nonfinite_cause
from evalsvc.sampling.logits import draw
from evalsvc.sampling.noise import skip_codes, stream_keys
from evalsvc.sampling.sampler import check_ids
from evalsvc.sampling_params import SamplingParams

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
    """The drawn ids of each prompt, rows of the table, without the prompt.

    A row ends after an id of `end`, which is kept; when `stop`, given the prompt's index and its ids so far, says so;
    or after `max_tokens`. `allowed` are the rows to draw from [all]; the noise of a row is the same with and without
    it, so what is drawn without top-k and top-p, and happens to lie in `allowed`, is what is drawn within `allowed`.
    A batch holds at most `batch_tokens` tokens, prompts, padding and what is drawn together, or one prompt; that moves
    ids by rounding at most. `report` gets the number of prompts that are completed, after every step; what it raises
    (e.g. Cancelled) ends the work.

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
            for index, (row, finite) in batch.step().items():
                ids = drawn[index]
                if not finite:
                    raise _not_finite(model, prompts[index], ids)
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
    for index in sorted(range(len(prompts)), key=lambda index: _size(prompts[index]), reverse=True):
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
        device = model.tok_embeddings.weight.device
        self.keys = skip_codes(stream_keys(params.seed, [prompts[index].id for index in indices], device), rows.start)
        self.ids, self.positions, self.mask = _inputs([prompts[index] for index in indices], device)
        with torch.inference_mode():
            self.cache = model.new_cache(len(indices), self.mask.shape[1])

    @torch.inference_mode()
    def step(self) -> dict[int, tuple[int, int]]:
        """Draw one id for every live prompt: row of the table and whether its logits were finite, by the index."""
        if 2 * len(self.live) <= len(self.rows):
            self._drop_ended()
        seen = self.mask[:, : self.cache.length + self.ids.shape[1]]
        hidden = self.model.hidden(self.ids, mask=seen, positions=self.positions, cache=self.cache)[:, -1]
        drawn, finite = self._draw(hidden)
        # A row that has ended stays where it is: going on it could come to the end of llama_rotary's table.
        live = torch.tensor([index in self.live for index in self.rows], device=drawn.device)
        self.ids, self.positions = drawn[:, None], self.positions[:, -1:] + live[:, None]
        self.position += 1
        found = torch.stack((drawn, finite.long()), dim=1).tolist()  # one transfer, since a GPU waits for each
        return {index: (row, good) for index, (row, good) in zip(self.rows, found, strict=True) if index in self.live}

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

    def _drop_ended(self) -> None:
        """Go on with the live rows only. Not at every end: keys and values are copied."""
        places = [place for place, index in enumerate(self.rows) if index in self.live]
        kept = torch.tensor(places, device=self.keys.device)
        self.rows = [self.rows[place] for place in places]
        self.keys, self.mask = self.keys[kept], self.mask[kept]
        self.ids, self.positions = self.ids[kept], self.positions[kept]
        self.cache.keep(kept)


def _inputs(prompts: Sequence[Continuation], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids and positions [B, T] and mask [B, T + most drawn - 1], padded on the left; the last id is never read.

    What pads is the prompt's own first token, at position 0: masked, and finite where the prompt itself is.
    """
    padded = max(len(prompt.ids) for prompt in prompts)
    slots = padded + max(prompt.max_tokens for prompt in prompts) - 1
    ids = [[*[prompt.ids[0]] * (padded - len(prompt.ids)), *prompt.ids] for prompt in prompts]
    padding = torch.tensor([[padded - len(prompt.ids)] for prompt in prompts], device=device)  # [B, 1]
    places = torch.arange(slots, device=device)
    return torch.tensor(ids, device=device), (places[:padded] - padding).clamp_(min=0), places >= padding


def _not_finite(model: Transformer, prompt: Continuation, drawn: Sequence[int]) -> NonFinite:
    ids = torch.tensor([[*prompt.ids, *drawn]], device=model.tok_embeddings.weight.device)
    return NonFinite(
        f"the logits after {len(drawn)} drawn ids of prompt {reprlib.repr(prompt.id)} are NaN or infinite; "
        f"{nonfinite_cause(model, ids)}"
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
