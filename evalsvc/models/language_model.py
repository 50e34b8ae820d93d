"""The interface of a language model: everything that tasks, sampling and scoring compute with.

Three classes implement the interface. `Transformer` has evalsvc's own arithmetic, with fast paths for decoding and for
sequences with common beginnings. `TransformersModel` and `OpenLmModel` run a model of the packages transformers and
open_lm. Tasks, sampling and scoring never ask which class a model has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from evalsvc.errors import InternalError, InvalidRequest
from evalsvc.models.packing import WeightFormat
from evalsvc.models.trie import Batch, Trie
from evalsvc.spec.model_config import ModelConfig

CacheKind = Literal["static", "dynamic"]
ROW_TOKENS = 4096
"""Number of tokens, padding included, of the sequences of a trie that a model of another package computes together."""
DecodePath = Literal["plain", "packed", "compiled", "graph", "static", "dynamic"]
"""Way of computing a decoding step. "static" and "dynamic" are the caches of transformers, the others are evalsvc's."""


class PromptCache(Protocol):
    """Keys and values of the tokens so far, in the first `length` slots, for rows that continue."""

    length: int

    def keep(self, rows: Tensor) -> None:  # [R] int64
        """Keep only these rows of the batch."""


@dataclass(frozen=True, eq=False)
class PaddedPrompts:
    """Prompts for some rows of a decoding step, padded on the left to one length."""

    rows: slice
    """Rows of the step."""
    ids: Tensor
    """Ids [R, padded] int64; [1, padded] if all rows share one prompt."""
    mask: Tensor
    """Real tokens, bool, in the shape of `ids`."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], padded: int, rows: slice, device: torch.device) -> PaddedPrompts:
        """Pad prompts with their first id, which is finite where the prompt is finite."""
        ids = [[*[prompt[0]] * (padded - len(prompt)), *prompt] for prompt in prompts]
        padding = torch.tensor([[padded - len(prompt)] for prompt in prompts], device=device)  # [R, 1]
        return cls(rows, torch.tensor(ids, device=device), torch.arange(padded, device=device) >= padding)

    @property
    def positions(self) -> Tensor:  # int64, in the shape of `ids`; padding has position 0
        return (self.mask.cumsum(1) - 1).clamp_(min=0)


@dataclass(frozen=True)
class StepShape:
    """Shape and arithmetic of a decoding step."""

    rows: int
    image_ids: range | tuple[int, ...]
    """Rows of the output table whose logits the step returns."""
    capacity: int
    """Number of slots per row, padding included."""
    path: DecodePath
    weights: WeightFormat = "plain"
    cache_dtype: torch.dtype | None = None
    """Dtype of keys and values; None: the model's dtype."""


class Decoding(Protocol):
    """Decoding of one new token of every row per call, in inference mode."""

    @property
    def attention(self) -> str:
        """Return whose attention runs: `torch`, with the reason where evalsvc has a faster kernel, or `live slots`."""

    def read(self, prompts: Sequence[PaddedPrompts]) -> Tensor:  # of all rows → [rows, codes] float32
        """Drop the last batch, read this batch's prompts, and return the logits of the first code."""

    def __call__(self, ids: Tensor, positions: Tensor, slot: int) -> Tensor:  # [rows] int64 → [rows, codes] float32
        """Return the logits after the tokens `ids`, which are stored at `slot`; all slots before `slot` are filled."""

    def close(self) -> None:
        """Drop the buffers, since an error's traceback may keep this object alive for long."""


class LanguageModel(ABC):
    """Causal language model in inference, without gradients."""

    config: ModelConfig
    saved_inv_freq: tuple[float, ...]
    """Rotary frequencies of the checkpoint that differ from those of the configuration, for the provenance."""

    @property
    def device(self) -> torch.device:
        return self.output_table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.output_table.dtype

    @property
    @abstractmethod
    def input_table(self) -> Tensor:  # [V, D]
        """Return the rows that embed ids."""

    @property
    @abstractmethod
    def output_table(self) -> Tensor:  # [V, D]
        """Return the rows that the head multiplies."""

    @property
    def is_laid_out(self) -> bool:
        """Return whether copies of the weights for decoding exist."""
        return False

    @property
    def only_path(self) -> DecodePath | None:
        """Return the path of all decoding steps; None if the sampler chooses the path."""
        return None

    @abstractmethod
    def logits(self, ids: Tensor) -> Tensor:  # [B, T] int64 → [B, T, V] float32
        """Return the logits of every position."""

    @abstractmethod
    def hidden(
        self,
        ids: Tensor,  # [B, T] int64
        *,
        mask: Tensor | None = None,  # [B, S] bool, True = real; S counts cached and new tokens
        positions: Tensor | None = None,  # [B, T] int64
        cache: Any = None,  # of `new_cache` or `read_prompts`
    ) -> Tensor:  # [B, T, D]
        """Return the input of the head for T new tokens, causal among themselves and after those in `cache`, to which
        they are added. The output at a padded position is meaningless."""

    @abstractmethod
    def head(self, hidden: Tensor, rows: Tensor | slice | None = None) -> Tensor:  # [N, D] → [N, V] float32
        """Return the logits of all ids or of `rows`."""

    @abstractmethod
    def read_trie(self, trie: Trie) -> Iterator[tuple[Batch, Tensor]]:  # hidden [N, D]
        """Yield each batch with the hidden states of its nodes."""

    @abstractmethod
    def read_prompts(self, prompts: Sequence[tuple[int, ...]], capacity: int) -> tuple[Tensor, PromptCache]:  # [B, D]
        """Return the hidden state at the end of each prompt, and a cache of `capacity` slots that holds every prompt at
        the last slots of the longest prompt's length."""

    @abstractmethod
    def decoding(self, shape: StepShape) -> Decoding:
        """Return a decoding step with its buffers. Raises InvalidRequest for a shape that the model does not have."""

    @abstractmethod
    def require_positions(self, last: int) -> None:
        """Raise InvalidData if position `last` is beyond the positions that the model has."""

    @abstractmethod
    def named_parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the parts whose outputs are tensors, with names for messages, in the order of the modules."""


class PaddedModel(LanguageModel):
    """Base of the models of other packages, which add `hidden`, `head` and a cache of the package. Prompts are padded,
    and sequences share no beginnings, so a step is slower than evalsvc's own."""

    package: ClassVar[str]
    cache_kind: CacheKind

    @abstractmethod
    def new_cache(self, capacity: int) -> PromptCache:
        """Return an empty cache for `capacity` tokens per row."""

    def codes_head(self, image_ids: range | tuple[int, ...]) -> Mapping[str, Tensor]:
        """Return the head's parameters for the rows `image_ids`, without a copy where they are a range."""
        if isinstance(image_ids, range):
            return {"weight": self.output_table[image_ids.start : image_ids.stop]}
        return {"weight": self.output_table[list(image_ids)]}

    def codes_logits(self, hidden: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:  # [N, codes] float32
        """Return the logits of the rows of `codes_head`."""
        return (hidden @ parameters["weight"].T).float()

    @property
    def only_path(self) -> DecodePath:
        return self.cache_kind

    def read_trie(self, trie: Trie) -> Iterator[tuple[Batch, Tensor]]:
        """Compute each sequence from its beginning, without sharing, in rows padded on the right."""
        for batch in trie.batches:
            paths = sorted({tuple(trie.paths[index]) for index in batch.complete}, key=len, reverse=True)
            yield batch, self._of_nodes(trie, batch, paths)

    @torch.inference_mode()
    def _of_nodes(self, trie: Trie, batch: Batch, paths: Sequence[tuple[int, ...]]) -> Tensor:  # [N, D]
        hidden = torch.empty(batch.stop - batch.start, self.output_table.shape[1], dtype=self.dtype, device=self.device)
        for start, stop in _chunks([len(path) for path in paths], ROW_TOKENS):
            rows = [torch.tensor(path) for path in paths[start:stop]]
            nodes = pad_sequence(rows, batch_first=True, padding_value=-1)  # [B, T]
            ids = torch.from_numpy(trie.ids)[nodes.clamp(min=0)]
            computed = self.hidden(ids.to(self.device)).flatten(0, 1)
            # A shared node is computed in several rows, which differ by rounding: the first is taken, not any.
            places, first = (torch.from_numpy(part) for part in np.unique(nodes.flatten().numpy(), return_index=True))
            due = places >= batch.start
            hidden[(places[due] - batch.start).to(self.device)] = computed[first[due].to(self.device)]
        return hidden

    def read_prompts(self, prompts: Sequence[tuple[int, ...]], capacity: int) -> tuple[Tensor, PromptCache]:
        padded = PaddedPrompts.of(prompts, max(map(len, prompts)), slice(0, len(prompts)), self.device)
        cache = self.new_cache(capacity)
        hidden = self.hidden(padded.ids, mask=padded.mask, positions=padded.positions, cache=cache)
        return hidden[:, -1], cache

    def decoding(self, shape: StepShape) -> PaddedDecoding:
        if shape.weights != "plain":
            raise InvalidRequest(f"weights: {shape.weights} needs a model that evalsvc computes; give weights: plain")
        if shape.cache_dtype not in (None, self.dtype):
            raise InvalidRequest(
                f"cache_dtype is not the model's dtype, and a model of the package {self.package} has keys and values "
                f"in {str(self.dtype).removeprefix('torch.')}; leave cache_dtype out"
            )
        if shape.path != self.cache_kind:
            raise InvalidRequest(
                f"path is {shape.path!r}, and this model of the package {self.package} has only {self.cache_kind!r}; "
                "leave path out"
            )
        return PaddedDecoding(self, shape)


class PaddedDecoding:
    """Decoding step of a model of another package."""

    attention = "torch"

    def __init__(self, model: PaddedModel, shape: StepShape) -> None:
        self.model, self.shape = model, shape
        self.parameters = model.codes_head(shape.image_ids)
        self.mask = torch.zeros(shape.rows, shape.capacity, dtype=torch.bool, device=model.device)
        self.cache: PromptCache | None = None

    def read(self, prompts: Sequence[PaddedPrompts]) -> Tensor:
        self.cache = None  # free the last batch's memory first
        counts = [prompt.rows.stop - prompt.rows.start for prompt in prompts]
        columns = zip(*((prompt.ids, prompt.mask, prompt.positions) for prompt in prompts), strict=True)
        ids, mask, positions = (
            torch.cat([part.expand(count, -1) for part, count in zip(column, counts, strict=True)])
            for column in columns
        )
        self.mask.zero_()
        self.mask[:, : mask.shape[1]] = mask
        self.cache = self.model.new_cache(self.shape.capacity)
        hidden = self.model.hidden(ids, mask=mask, positions=positions, cache=self.cache)
        return self.model.codes_logits(hidden[:, -1], self.parameters)

    def __call__(self, ids: Tensor, positions: Tensor, slot: int) -> Tensor:
        if self.cache is None or self.cache.length != slot:
            raise InternalError(f"slot {slot} does not follow the filled slots; read the prompts first")
        self.mask[:, slot] = True
        seen = self.mask[:, : slot + 1]
        hidden = self.model.hidden(ids[:, None], mask=seen, positions=positions[:, None], cache=self.cache)
        return self.model.codes_logits(hidden[:, -1], self.parameters)

    def close(self) -> None:
        self.cache = None
        del self.mask, self.parameters


def _chunks(lengths: Sequence[int], tokens: int) -> Iterator[tuple[int, int]]:
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or (stop + 1 - start) * lengths[start] > tokens:
            yield start, stop
            start = stop


def find_nonfinite(model: LanguageModel, ids: Tensor) -> str:  # [B, T] int64
    """Return the first part, in the order of the forward pass, that computes NaN or infinity for `ids`; "output" is the
    head, and "" none. A sum of two finite parts that overflows is reported as the next norm."""
    first: list[str] = []

    def note(name: str, _module: nn.Module | None, _inputs: Any, output: Any) -> None:
        if not first and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            first.append(name)

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_parts():
            hooks.enter_context(module.register_forward_hook(partial(note, name)))
        note("output", None, None, model.logits(ids))
    return first[0] if first else ""


def first_nonfinite(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> int:
    """Return the index of the first sequence that is not finite alone: NaN spreads where beginnings are shared."""
    alone = (torch.tensor([ids], device=model.device) for ids in sequences)
    return next((index for index, ids in enumerate(alone) if find_nonfinite(model, ids)), 0)


def nonfinite_cause(model: LanguageModel, ids: Tensor) -> str:  # [B, T] int64
    """Return the origin of NaN or infinity for `ids` and a remedy, as the end of an error message."""
    part = find_nonfinite(model, ids)
    where = f"the first part of the model with NaN or infinity is {part}" if part else "each part alone is finite"
    dtype = str(model.dtype).removeprefix("torch.")
    advice = "the run has diverged by this step" if dtype == "float32" else f"or {dtype} is too narrow: try float32"
    return f"{where}; {advice}"
