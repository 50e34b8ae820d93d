"""The transformer of every family for inference, under open_lm's names of the parameters.

`Transformer.forward` → `hidden` (embedding, layers, final norm) → `head`. Position is an argument, and state between
calls is in the KVCache that the caller passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.models.attention import attend, attention_bias
from evalsvc.models.decoding import DecodeStep, WeightLayout
from evalsvc.models.kv_cache import KVCache
from evalsvc.models.language_model import DecodePath, LanguageModel, StepShape
from evalsvc.models.layer import EAGER, Block, Kernels, Mix, Products
from evalsvc.models.norms import LayerNorm, RMSNorm, build_norm
from evalsvc.models.packing import product
from evalsvc.models.rotation import Positions
from evalsvc.models.tree import read_prompts, read_trie
from evalsvc.models.trie import Batch, Trie
from evalsvc.spec.model_config import ModelConfig

INV_FREQ_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Transformer(nn.Module, LanguageModel):
    """Decoder-only language model, with the switches of its configuration.

    `rotary_inv_freq_dtype` is the dtype of the frequencies in *training*, see `trained_inv_freq_dtype`; "auto" derives
    the dtype from the configuration. The attribute of the same name holds the resulting dtype.
    """

    def __init__(self, config: ModelConfig, rotary_inv_freq_dtype: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.rotary_inv_freq_dtype = resolve_inv_freq_dtype(config, rotary_inv_freq_dtype)
        self.positions = Positions(config, INV_FREQ_DTYPES[self.rotary_inv_freq_dtype])
        self.post_embed_norm = build_norm(config, config.hidden_dim) if config.post_embed_norm else nn.Identity()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = build_norm(config, config.hidden_dim)
        self.output = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        self.tie_weights()
        self.saved_inv_freq: tuple[float, ...] = ()
        """Rotary frequencies of the checkpoint, unrounded; empty where the model uses those of its configuration."""
        self.packed: tuple[object, object] | None = None
        """Last layout of the weights for decoding, with its key; see `decoding.lay_out`. None frees the memory."""

    def use_frequencies(
        self,
        saved: Tensor,  # [head_dim / 2] float32
    ) -> None:
        """Use the rotary frequencies of a checkpoint, rounded as in training, instead of the configuration's."""
        self.saved_inv_freq = tuple(saved.tolist())
        self.positions = Positions(self.config, INV_FREQ_DTYPES[self.rotary_inv_freq_dtype], saved)

    def tie_weights(self) -> None:
        """Make input and output share one table where the configuration says so."""
        if self.config.weight_tying:
            self.output.weight = self.tok_embeddings.weight

    def forward(
        self,
        ids: Tensor,  # [B, T] int64
        *,
        mask: Tensor | None = None,  # [B, S] bool, True = real, or [B, T, S]; S counts cached and new tokens
        positions: Tensor | None = None,  # [B, T] int64
        cache: KVCache | None = None,
    ) -> Tensor:  # [B, T, V] float32
        """Return the logits of every position; see `hidden` for the arguments."""
        hidden = self.hidden(ids, mask=mask, positions=positions, cache=cache)
        return self.head(hidden.flatten(0, 1)).view(*ids.shape, -1)

    def hidden(
        self,
        ids: Tensor,  # [B, T] int64
        *,
        mask: Tensor | None = None,  # [B, S] bool, True = real, or [B, T, S]; S counts cached and new tokens
        positions: Tensor | None = None,  # [B, T] int64
        cache: KVCache | None = None,
    ) -> Tensor:  # [B, T, D] in the model's dtype
        """Return the output of the final norm for T new tokens, causal among themselves and after those in `cache`.

        A mask [B, T, S] gives for each new token the tokens that it attends to, itself included, and needs `positions`.
        With a cache, keys and values are written at the slots from `cache.length` on, and the cache advances by T.
        Without `positions`, a token's position is its slot, so padding counts, as in open_lm; the output at a padded
        position is meaningless but finite. Without padding, omit `mask`: attention is then faster.
        """
        batch, new = ids.shape
        past = cache.length if cache is not None else 0
        if cache is not None:
            cache.require_room(batch, new)
        bias = attention_bias(mask, batch, new, past, self.tok_embeddings.weight)
        self.positions.require_rows(past + new - 1 if positions is None else positions)
        if positions is None:
            positions = torch.arange(past, past + new, device=ids.device)[None]
        hidden = self.mixed(ids, positions, partial(attend, bias, cache))
        if cache is not None:
            cache.advance(new)
        return hidden

    def mixed(
        self,
        ids: Tensor,  # [B, T] int64, or [R]
        positions: Tensor,  # [B or 1, T] int64, or [R]
        mix: Mix,
        products: Sequence[Products] | None = None,
        kernels: Kernels = EAGER,
    ) -> Tensor:  # [B, T, D]
        """Compute `hidden` with any attention, given by `mix`.

        `products` replace those of the layers, for parameters in another layout. No operation here waits for a GPU, so
        the caller checks the positions; see `Positions.require_rows`.
        """
        x, delta = self.post_embed_norm(self.embedded(ids)), None
        rotation = self.positions(positions, x)
        layers = cast(Iterable[Block], self.layers)
        products = products or [layer.products() for layer in layers]
        for layer, layer_products in zip(layers, products, strict=True):
            x, delta = layer(x, delta, rotation, mix, layer_products, kernels)
        return kernels.add_norm(x, delta, self.norm)[1]

    def embedded(
        self,
        ids: Tensor,  # [...] int64
    ) -> Tensor:  # [..., D]
        """Return the embeddings, scaled where the configuration says so. The scale has the model's precision."""
        x: Tensor = self.tok_embeddings(ids)
        if self.config.embedding_scale == 1:
            return x
        return x * float(torch.tensor(self.config.embedding_scale, dtype=x.dtype))

    def head(
        self,
        hidden: Tensor,  # [N, D]
        rows: Tensor | slice | None = None,
    ) -> Tensor:  # [N, V] or [N, len(rows)] float32
        """Return the logits of all ids or of `rows`: a slice reads the table in place, an index [R] int64 copies."""
        weight = self.output.weight if rows is None else self.output.weight[rows]
        return product(hidden, weight, None).float()

    def new_cache(self, batch: int, length: int, dtype: torch.dtype | None = None) -> KVCache:
        """Return an empty cache for `length` tokens of `batch` rows, by default in the model's dtype."""
        config, weight = self.config, self.tok_embeddings.weight
        return KVCache(
            config.n_layers,
            batch,
            config.kv_heads,
            length,
            config.head_dim,
            dtype=dtype or weight.dtype,
            device=weight.device,
        )

    # the interface of a language model

    @property
    def device(self) -> torch.device:
        return self.tok_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tok_embeddings.weight.dtype

    @property
    def input_table(self) -> Tensor:
        return self.tok_embeddings.weight.detach()

    @property
    def output_table(self) -> Tensor:
        return self.output.weight.detach()

    @property
    def is_laid_out(self) -> bool:
        return self.packed is not None

    @property
    def only_path(self) -> DecodePath | None:
        return None

    def logits(self, ids: Tensor) -> Tensor:
        return self.forward(ids)

    def read_trie(self, trie: Trie) -> Iterator[tuple[Batch, Tensor]]:
        return read_trie(self, trie)

    def read_prompts(self, prompts: Sequence[tuple[int, ...]], capacity: int) -> tuple[Tensor, KVCache]:
        cache = self.new_cache(len(prompts), capacity)
        return read_prompts(self, prompts, cache), cache

    def decoding(self, shape: StepShape) -> DecodeStep:
        if shape.path in ("static", "dynamic"):
            raise InvalidRequest(f"path {shape.path} is of a model of the package transformers; leave path out")
        layout = WeightLayout(shape.image_ids, shape.rows, shape.path != "plain", shape.weights)
        return DecodeStep(self, layout, shape.capacity, shape.path, shape.cache_dtype)

    def require_positions(self, last: int) -> None:
        self.positions.require_rows(last)

    def named_parts(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.named_modules():
            if isinstance(module, (nn.Embedding, nn.Linear, LayerNorm, RMSNorm)):
                yield ".".join(name.split(".")[:3]), module  # part of a layer: attention, feed_forward or a norm


def resolve_inv_freq_dtype(config: ModelConfig, name: str) -> str:
    """Return the dtype of the rotary frequencies in training that a task's parameter names; "auto" derives the dtype.

    Raises UnknownName for an unknown dtype.
    """
    choices = ["auto", *INV_FREQ_DTYPES]
    if name not in choices:
        raise UnknownName.among("rotary_inv_freq_dtype", name, choices)
    is_derived = name == "auto" or config.positional_embedding_type in ("llama_rotary", "none")
    return trained_inv_freq_dtype(config) if is_derived else name


def trained_inv_freq_dtype(config: ModelConfig) -> str:
    """Return the dtype to which open_lm rounded the rotary frequencies while it trained this model.

    open_lm builds its table from `inv_freq.to(keys.dtype)`. Rounding the frequencies changes every angle by up to 0.4
    %, which at position 1,000 is whole radians: the model has learned those frequencies, and an evaluation in any dtype
    must use them. open_lm also rounds cosines and sines, which only adds noise and is left out.

    Keys are half precision under autocast ("amp…"), unless a q/k norm returns float32 there: all norms do except the
    lp_ norms. FSDP's bf16 policies round the buffer itself. Without a known precision no frequency is rounded.
    """
    if config.positional_embedding_type in ("llama_rotary", "none"):
        return "float32"
    if config.precision == "fsdp_bf16":
        return "bfloat16"
    autocast = {"amp": "float16", "amp_bf16": "bfloat16", "amp_bfloat16": "bfloat16"}.get(config.precision or "")
    keys_are_float32 = config.qk_norm and "lp_" not in config.model_norm
    return "float32" if autocast is None or keys_are_float32 else autocast
