"""Text generation from prompts to drawn ids.

`complete` → `_Batch.step` → `LanguageModel.hidden` and `logits.draw`, once per id. Prompts of any lengths run together,
padded on the left. A prompt draws the same ids in every batch, with any neighbours and at any place, except for
rounding: its noise is a function of its id.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from evalsvc.errors import InvalidRequest, NonFinite
from evalsvc.models.language_model import LanguageModel, first_nonfinite, nonfinite_cause
from evalsvc.sampling.logits import draw
from evalsvc.sampling.noise import skip_codes, stream_keys
from evalsvc.sampling.sampler import Prompt, check_ids, check_prompts
from evalsvc.spec.sampling import SamplingParams

LOGITS_PER_DRAW = 1 << 24
"""Number of logits in one draw; with the float64 noise and its inputs, half a gigabyte."""


@dataclass(frozen=True)
class Continuation(Prompt):
    """A prompt to continue."""

    max_tokens: int


def complete(
    model: LanguageModel,
    prompts: Sequence[Continuation],
    params: SamplingParams,
    *,
    batch_tokens: int,
    allowed: Sequence[range] | None = None,
    stop: Callable[[int, Sequence[int]], bool] | None = None,
    end: frozenset[int] = frozenset(),
    report: Callable[[int], None] = lambda completed: None,
) -> list[list[int]]:
    """Draw the ids of each prompt, rows of the table, without the prompt.

    A row ends after an id of `end`, which is kept; when `stop`, given the prompt's index and its ids so far, returns
    True; or after `max_tokens`. `allowed` are the rows to draw from, in ascending ranges, by default all; the choice
    changes no row's noise.
    A batch holds at most `batch_tokens` tokens with padding and drawn ids, or one prompt. `report` gets the number of
    completed prompts after every step, and may raise.
    """
    _check(prompts, params, allowed, model.config.vocab_size)
    drawn: list[list[int]] = [[] for _ in prompts]
    completed = 0
    for indices in _batches(prompts, batch_tokens):
        batch = _Batch(model, prompts, indices, params, allowed)
        while batch.live:
            step = batch.step()
            bad = [index for index, (_, finite) in step.items() if not finite]
            if bad:
                sequences = [[*prompts[index].ids, *drawn[index]] for index in bad]
                first = first_nonfinite(model, sequences)
                raise NonFinite(
                    f"the logits after {len(drawn[bad[first]])} drawn ids of prompt "
                    f"{reprlib.repr(prompts[bad[first]].id)} are NaN or infinite; "
                    f"{nonfinite_cause(model, torch.tensor([sequences[first]], device=model.device))}"
                )
            for index, (row, _) in step.items():
                ids = drawn[index]
                ids.append(row)
                full = len(ids) == prompts[index].max_tokens
                if row in end or full or (stop is not None and stop(index, ids)):
                    batch.live.remove(index)
                    completed += 1
            report(completed)
    return drawn


def _batches(prompts: Sequence[Continuation], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    width = 0

    def order(index: int) -> tuple[int, int, tuple[int, ...]]:
        return prompts[index].max_tokens, len(prompts[index].ids), prompts[index].ids

    # Equal prompts are neighbours in the order, and are computed once. The first of a batch draws the most ids.
    for index in sorted(range(len(prompts)), key=order, reverse=True):
        most, length, _ = order(index)
        width = max(width, length + (prompts[batch[0]].max_tokens if batch else most))
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch, width = [], most + length
        batch.append(index)
    if batch:
        yield batch


class _Batch:
    """Prompts that run together, with the tokens of every prompt at the last slots."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Continuation],
        indices: Sequence[int],
        params: SamplingParams,
        allowed: Sequence[range] | None,
    ) -> None:
        ranges = [range(model.config.vocab_size)] if allowed is None else allowed
        rows = range(ranges[0].start, ranges[-1].stop)
        self.between = [slice(a.stop - rows.start, b.start - rows.start) for a, b in pairwise(ranges)]
        """Columns of the logits that are not allowed."""
        self.model, self.params = model, params
        self.rows = list(indices)
        self.live = set(indices)
        """Indices of prompts that have not ended; the caller of `step` removes ended prompts."""
        self.first, self.head_rows = rows.start, slice(rows.start, rows.stop)
        self.chunk = max(1, LOGITS_PER_DRAW // len(rows))
        self.position = 0  # of the next drawn id
        self.drawn: Tensor | None = None  # [B] int64, the ids before the next
        device = model.device
        self.keys = skip_codes(stream_keys(params.seed, [prompts[index].id for index in indices], device), rows.start)
        chosen = [prompts[index] for index in indices]
        self.lengths = torch.tensor([len(prompt.ids) for prompt in chosen], device=device)
        """Lengths of the prompts with the ids computed after each prompt while live."""
        padded = int(self.lengths.max())
        slots = padded + max(prompt.max_tokens for prompt in chosen) - 1  # the last drawn id is never read
        self.mask = torch.arange(slots, device=device) >= padded - self.lengths[:, None]  # [B, slots]
        with torch.inference_mode():
            # [B, D], from which the next id is drawn
            self.hidden, self.cache = model.read_prompts([prompt.ids for prompt in chosen], self.mask.shape[1])

    @torch.inference_mode()
    def step(self) -> dict[int, tuple[int, int]]:
        """Draw one id for every live prompt; return by prompt index the table row and whether the logits are finite."""
        if self.drawn is not None:
            self._read(self.drawn)
        parts = [
            draw(self._logits(self.hidden[chunk]), self.params, self.keys[chunk], self.position)
            for chunk in (slice(start, start + self.chunk) for start in range(0, len(self.hidden), self.chunk))
        ]
        codes, finite = (torch.cat(column) for column in zip(*parts, strict=True))
        self.drawn = codes + self.first
        self.position += 1
        rows_and_finite = torch.stack((self.drawn, finite.long()), dim=1).tolist()  # a GPU waits for each transfer
        return {
            index: (row, good)
            for index, (row, good) in zip(self.rows, rows_and_finite, strict=True)
            if index in self.live
        }

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.head(hidden, self.head_rows)
        for columns in self.between:
            logits[:, columns] = -torch.inf
        return logits

    def _read(self, drawn: Tensor) -> None:  # [B] int64
        if 2 * len(self.live) <= len(self.rows):
            drawn = drawn[self._drop_ended()]
        seen = self.mask[:, : self.cache.length + 1]
        # An ended row keeps its position: a further position might be beyond llama_rotary's table.
        self.lengths = self.lengths + torch.tensor([index in self.live for index in self.rows], device=drawn.device)
        positions = self.lengths[:, None] - 1
        self.hidden = self.model.hidden(drawn[:, None], mask=seen, positions=positions, cache=self.cache)[:, -1]

    def _drop_ended(self) -> Tensor:  # [R] int64, the rows that are kept
        """Keep only the live rows. Not called at every end, since keys and values are copied."""
        places = [place for place, index in enumerate(self.rows) if index in self.live]
        kept = torch.tensor(places, device=self.keys.device)
        self.rows = [self.rows[place] for place in places]
        self.keys, self.mask, self.lengths = self.keys[kept], self.mask[kept], self.lengths[kept]
        self.cache.keep(kept)
        return kept


def _check(prompts: Sequence[Continuation], params: SamplingParams, allowed: Sequence[range] | None, rows: int) -> None:
    if params.guided:
        raise InvalidRequest(
            f"guidance_scale is {params.guidance_scale}; text has no unconditional prompt, set it to 1"
        )
    if allowed is not None:
        if not allowed or not all(part and part.step == 1 for part in allowed):
            raise InvalidRequest(f"allowed is {list(allowed)}; give the rows to draw from as ranges of at least one")
        if any(first.stop > second.start for first, second in pairwise(allowed)):
            raise InvalidRequest("the ranges of allowed overlap or descend; give ascending ranges of rows")
        check_ids("allowed", [edge for part in allowed for edge in (part[0], part[-1])], rows)
    check_prompts(prompts, rows, "give at least one id, e.g. the tokenizer's bos")
    for prompt in prompts:
        if prompt.max_tokens < 1:
            name = reprlib.repr(prompt.id)
            raise InvalidRequest(f"prompt {name} has max_tokens {prompt.max_tokens}; it must be 1 or more")
