"""The interface of a language model: everything that tasks, sampling and scoring compute with.

Three classes implement the interface. `Transformer` has evalsvc's own arithmetic, with fast paths for decoding and for
sequences with common beginnings. `TransformersModel` and `OpenLmModel` run a model of the packages transformers and
open_lm. Tasks, sampling and scoring never ask which class a model has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from evalsvc.models.packing import WeightFormat
from evalsvc.models.trie import Batch, Trie
from evalsvc.spec.model_config import ModelConfig

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
        """Return the input of the head for T new tokens, causal among themselves and after those in `cache`.

        With a cache, keys and values are stored and the cache advances by T. The output at a padded position is
        meaningless.
        """

    @abstractmethod
    def head(self, hidden: Tensor, rows: Tensor | slice | None = None) -> Tensor:  # [N, D] → [N, V] float32
        """Return the logits of all ids or of `rows`."""

    @abstractmethod
    def read_trie(self, trie: Trie) -> Iterator[tuple[Batch, Tensor]]:  # hidden [N, D]
        """Yield each batch with the hidden states of its nodes."""

    @abstractmethod
    def read_prompts(self, prompts: Sequence[tuple[int, ...]], capacity: int) -> tuple[Tensor, PromptCache]:  # [B, D]
        """Return the hidden state at the end of each prompt, and a cache of `capacity` slots that holds the prompts.

        The cache has every prompt at the last slots of the longest prompt's length.
        """

    @abstractmethod
    def decoding(self, shape: StepShape) -> Decoding:
        """Return a decoding step with its buffers. Raises InvalidRequest for a shape that the model does not have."""

    @abstractmethod
    def require_positions(self, last: int) -> None:
        """Raise InvalidData if position `last` is beyond the positions that the model has."""

    @abstractmethod
    def named_parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the parts whose outputs are tensors, with names for messages, in the order of the modules."""


# the part that computes NaN or infinity first


def find_nonfinite(model: LanguageModel, ids: Tensor) -> str:  # [B, T] int64
    """Return the first part, in the order of the forward pass, that computes NaN or infinity for `ids`.

    Names are those of the model ("layers.2.attention"); "output" is the head; "" means that everything is finite. A sum
    of two finite parts that overflows is reported as the next norm.
    """
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

    def is_bad(index: int) -> bool:
        return bool(find_nonfinite(model, torch.tensor([sequences[index]], device=model.device)))

    return next(filter(is_bad, range(len(sequences))), 0)


def nonfinite_cause(model: LanguageModel, ids: Tensor) -> str:  # [B, T] int64
    """Return the origin of NaN or infinity for `ids` and a remedy, as the end of an error message."""
    part = find_nonfinite(model, ids)
    where = f"the first part of the model with NaN or infinity is {part}" if part else "each part alone is finite"
    dtype = str(model.dtype).removeprefix("torch.")
    advice = "the run has diverged by this step" if dtype == "float32" else f"or {dtype} is too narrow: try float32"
    return f"{where}; {advice}"
