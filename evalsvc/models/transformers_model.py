"""Language model of the package transformers: any `AutoModelForCausalLM` that is part of the package.

The package computes everything, so a step is slower than with evalsvc's own `Transformer`. A model is split at the
input of its output table: `hidden` runs the part before, and `head` the rest, with scales and caps of the logits.
Prompts are padded, and keys and values are in the package's caches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from inspect import signature
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from evalsvc.errors import InternalError, InvalidData, UnsupportedModel
from evalsvc.models.padded_model import CacheKind, FilledCache, PaddedModel
from evalsvc.spec.model_config import ModelConfig


class TransformersModel(PaddedModel):
    """Model of the package transformers, in eval mode and without gradients."""

    package = "transformers"

    def __init__(self, config: ModelConfig, module: PreTrainedModel, cache_kind: CacheKind) -> None:
        """Split `module` into its body and its head."""
        self.config, self.module, self.cache_kind = config, module, cache_kind
        self.saved_inv_freq: tuple[float, ...] = ()
        self._body: nn.Module = module.base_model
        embedding = module.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise UnsupportedModel(f"{type(module).__name__} has no table of ids; evaluate another kind of model")
        self._embedding = embedding
        self._head = _Head(module)
        parameters = signature(self._body.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # of newer and older releases
        tables = [part for part in self._body.modules() if isinstance(part, nn.Embedding) and part is not embedding]
        buffers = [buffer for buffer in self._body.buffers() if config.seq_len in buffer.shape]
        limits = _steady_positions(config, module) + ([config.seq_len] if tables or buffers else [])
        self._positions = min(limits, default=None)

    @property
    def input_table(self) -> Tensor:
        return self._embedding.weight.detach()

    @property
    def output_table(self) -> Tensor:
        return self._head.table

    def logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.module(input_ids=ids, use_cache=False).logits
        return logits.float()

    def hidden(
        self,
        ids: Tensor,  # [B, T] int64
        *,
        mask: Tensor | None = None,  # [B, S] bool
        positions: Tensor | None = None,  # [B, T] int64
        cache: _FilledCache | None = None,
    ) -> Tensor:  # [B, T, D]
        past, new = 0 if cache is None else cache.length, ids.shape[1]
        if self._positions is not None:
            self.require_positions(past + new - 1 if positions is None else int(positions.max()))
        arguments: dict[str, Any] = {}
        if mask is not None:
            if mask.shape != (len(ids), past + new):
                raise InternalError(f"mask is {list(mask.shape)}, expected {[len(ids), past + new]}")
            arguments["attention_mask"] = mask.long()
        if positions is not None and self._takes_positions:
            arguments["position_ids"] = positions.expand(len(ids), -1)
        if cache is not None:
            arguments[self._cache_name] = cache.cache
        hidden: Tensor = self._body(input_ids=ids, use_cache=cache is not None, return_dict=True, **arguments)[0]
        if cache is not None:
            cache.length += new
        return hidden

    def head(self, hidden: Tensor, rows: Tensor | slice | None = None) -> Tensor:
        return self._head(hidden, self._head.of_rows(rows))

    def new_cache(self, capacity: int) -> _FilledCache:
        if self.cache_kind == "static":
            return _FilledCache(StaticCache(config=self.module.config, max_cache_len=capacity))
        return _FilledCache(DynamicCache(config=self.module.config))

    def codes_head(self, image_ids: range | tuple[int, ...]) -> Mapping[str, Tensor]:
        if isinstance(image_ids, range):
            return self._head.of_rows(slice(image_ids.start, image_ids.stop))
        return self._head.of_rows(torch.tensor(image_ids, device=self.device))

    def codes_logits(self, hidden: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:  # [N, codes] float32
        return self._head(hidden, parameters)

    def require_positions(self, last: int) -> None:
        if self._positions is not None and last >= self._positions:
            raise InvalidData(
                f"position {last} is beyond the {self._positions} positions of the model's configuration, or beyond "
                "those within which its rotary frequencies do not depend on other rows; use shorter sequences, by "
                "`max_length` where the task has it"
            )

    def named_parts(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, part) for name, part in self.module.named_modules() if not any(part.children()))


class _FilledCache(FilledCache):
    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.cache = cache

    def keep(self, rows: Tensor) -> None:
        self.cache.reorder_cache(cast(torch.LongTensor, rows))


class _Head:
    """The part of a module after its body, for some rows of the output table."""

    def __init__(self, module: PreTrainedModel) -> None:
        layer = module.get_output_embeddings()  # type: ignore[no-untyped-call]
        if not isinstance(layer, nn.Linear) or module.base_model is module:
            raise UnsupportedModel(
                f"{type(module).__name__} has no body followed by a linear output table, which evaluation needs; "
                "evaluate another kind of model"
            )
        self.layer = layer
        self.name = next(name for name, part in module.named_modules() if part is layer)
        # A copy of the module without its body, which returns the hidden states that it is given.
        self.tail = copy.copy(module)
        self.tail._modules = {**module._modules, module.base_model_prefix: _Given()}

    @property
    def table(self) -> Tensor:
        return self.layer.weight.detach()

    @property
    def width(self) -> int:
        return int(self.table.shape[1])

    def of_rows(self, rows: Tensor | slice | None) -> dict[str, Tensor]:
        """Return the parameters of the output layer, by name, for some rows."""
        parameters = {"weight": self.layer.weight}
        if self.layer.bias is not None:
            parameters["bias"] = self.layer.bias
        return {
            f"{self.name}.{name}": parameter.detach() if rows is None else parameter.detach()[rows]
            for name, parameter in parameters.items()
        }

    def __call__(
        self,
        hidden: Tensor,  # [N, D]
        parameters: Mapping[str, Tensor],
    ) -> Tensor:  # [N, rows] float32
        inputs = {"inputs_embeds": hidden[None], "use_cache": False, "return_dict": True}
        # The parameters are an argument: no call changes what another call sees.
        output = torch.func.functional_call(self.tail, dict(parameters), (), inputs, tie_weights=False)
        logits: Tensor = output.logits[0]
        return logits.float()


class _Given(nn.Module):
    """Body that returns the hidden states which it is given as embeddings."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "decoder", self)  # some heads call the decoder of the body

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return _Output(inputs_embeds)


class _Output(SimpleNamespace):
    """Output of a body: the hidden states as first item and as attribute, and None for all else."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__(last_hidden_state=hidden)

    def __getitem__(self, place: Any) -> Any:
        return self.last_hidden_state if place == 0 else ()

    def __getattr__(self, name: str) -> None:
        return None


def _steady_positions(config: ModelConfig, module: PreTrainedModel) -> list[int]:
    """Return numbers of positions within which rotary frequencies are fixed; empty where they always are.

    Beyond this number, the package chooses the frequencies of all rows by the longest row of the batch (`longrope`), or
    by the longest row since the model was loaded (`dynamic`), so that a row's numbers depend on other rows.
    """
    parameters = getattr(module.config, "rope_parameters", None)
    parameters = parameters if isinstance(parameters, Mapping) else {}
    by_kind = [parameters, *(part for part in parameters.values() if isinstance(part, Mapping))]
    longest = getattr(module.config, "max_position_embeddings", config.seq_len)
    limits = []
    for part in by_kind:
        kind = str(part.get("rope_type", ""))
        if kind == "longrope":
            limits.append(int(part.get("original_max_position_embeddings", longest)))
        elif "dynamic" in kind:
            limits.append(int(longest))
    return limits
