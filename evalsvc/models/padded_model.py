"""Language model of another package: prompts are padded, and keys and values are in a cache of the package.

Sequences share no beginnings, so a step is slower than evalsvc's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from evalsvc.errors import InternalError, InvalidRequest
from evalsvc.models.language_model import DecodePath, LanguageModel, PaddedPrompts, PromptCache, StepShape
from evalsvc.models.trie import Batch, Trie

CacheKind = Literal["static", "dynamic"]

ROW_TOKENS = 4096
"""Number of tokens, padding included, of the sequences of a trie that are computed together."""


class PaddedModel(LanguageModel):
    """Base of the models of other packages, which add `hidden`, `head` and a cache."""

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
    """Decoding step of a model of another package; see `language_model.Decoding`."""

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
