"""The transformer of every family, as a language model: its layers, with trees of sequences and decoding steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from evalsvc.errors import InvalidRequest
from evalsvc.models.attention import KVCache
from evalsvc.models.decoding import PATHS, DecodeStep
from evalsvc.models.language_model import LanguageModel, StepShape
from evalsvc.models.layer import HeadNorm, LayerNorm, RMSNorm
from evalsvc.models.layered import Layered
from evalsvc.models.trie import Batch, Trie, read_prompts, read_trie


class Transformer(Layered, LanguageModel):
    """Decoder-only language model, with evalsvc's own arithmetic."""

    @property
    def input_table(self) -> Tensor:
        return self.tok_embeddings.weight.detach()

    @property
    def output_table(self) -> Tensor:
        return self.output.weight.detach()

    @property
    def is_laid_out(self) -> bool:
        return self.packed is not None

    def logits(self, ids: Tensor) -> Tensor:
        return self.forward(ids)

    def read_trie(self, trie: Trie) -> Iterator[tuple[Batch, Tensor]]:
        return read_trie(self, trie)

    def read_prompts(self, prompts: Sequence[tuple[int, ...]], capacity: int) -> tuple[Tensor, KVCache]:
        cache = self.new_cache(len(prompts), capacity)
        return read_prompts(self, prompts, cache), cache

    def decoding(self, shape: StepShape) -> DecodeStep:
        if shape.path not in PATHS:
            raise InvalidRequest(f"path {shape.path} is of a model of the package transformers; leave path out")
        return DecodeStep(self, shape)

    def require_positions(self, last: int) -> None:
        self.positions.require_rows(last)

    def named_parts(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.named_modules():
            if isinstance(module, (nn.Embedding, nn.Linear, HeadNorm, LayerNorm, RMSNorm)):
                yield ".".join(name.split(".")[:3]), module  # part of a layer: attention, feed_forward or a norm
