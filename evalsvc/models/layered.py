"""The layers of every family's transformer for inference, under open_lm's names of the parameters.

`Layered.forward` → `hidden` (embedding, layers, final norm) → `head`. Position is an argument, and state between calls
is in the KVCache that the caller passes. Image ids may be apart from those of text, as in Janus: they are the last rows
of both tables. An MLP computes the input rows from narrow embeddings, once, when the model is loaded. The head has a
layer of its own before its rows, and biases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.errors import InvalidRequest
from evalsvc.models.attention import KVCache, attend, attention_bias
from evalsvc.models.layer import EAGER, Block, Kernels, Mix, Products, build_norm
from evalsvc.models.packing import product
from evalsvc.models.rotation import INV_FREQ_DTYPES, Positions, last_position, resolve_inv_freq_dtype
from evalsvc.spec.model_config import ImageTables, ModelConfig


class Layered(nn.Module):
    """Layers between two tables, whose attention and products may be arguments, with the switches of a configuration.
    `rotary_inv_freq_dtype` is the dtype of the frequencies in *training*; see `resolve_inv_freq_dtype`."""

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
        tables = config.image_tables
        self.image_rows = None if tables is None else ImageRows(tables, config.hidden_dim)
        self.image_head = None if tables is None else ImageHead(tables, config.hidden_dim)
        self.tie_weights()
        self.saved_inv_freq: tuple[float, ...] = ()
        """Rotary frequencies of the checkpoint, unrounded; empty where the model uses those of its configuration."""
        self.packed: tuple[object, object] | None = None
        """Last layout of the weights for decoding, with its key; see `decoding.lay_out`. None frees the memory."""

    def use_frequencies(self, saved: Tensor) -> None:  # [head_dim / 2] float32
        """Use the rotary frequencies of a checkpoint, rounded as in training, instead of the configuration's."""
        self.saved_inv_freq = tuple(saved.tolist())
        self.positions = Positions(self.config, INV_FREQ_DTYPES[self.rotary_inv_freq_dtype], saved)

    def tie_weights(self) -> None:
        if self.config.weight_tying:
            self.output.weight = self.tok_embeddings.weight

    def fill_image_rows(self) -> None:
        if self.image_rows is not None:
            rows = self.image_rows()
            self.tok_embeddings.weight[-len(rows) :] = rows

    def forward(
        self, ids: Tensor, *, mask: Tensor | None = None, positions: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:  # [B, T, V] float32
        """Return the logits of every position; see `hidden` for the arguments."""
        hidden = self.hidden(ids, mask=mask, positions=positions, cache=cache)
        return self.head(hidden.flatten(0, 1)).view(*ids.shape, -1)

    def hidden(
        self,
        ids: Tensor,  # [B, T] int64
        *,
        mask: Tensor | None = None,  # [B, S] bool, True = real; S counts cached and new tokens
        positions: Tensor | None = None,  # [B, T] int64
        cache: KVCache | None = None,
    ) -> Tensor:  # [B, T, D] in the model's dtype
        """Return the output of the final norm for T new tokens, causal among themselves and after those in `cache`.

        With a cache, keys and values are written at the slots from `cache.length` on, and the cache advances by T.
        Without `positions`, a token's position is its slot, so padding counts, as in open_lm; the output at a padded
        position is meaningless but finite. Without padding, omit `mask`: attention is then faster.
        """
        batch, new = ids.shape
        past = cache.length if cache is not None else 0
        if cache is not None:
            cache.require_room(batch, new)
        bias = attention_bias(mask, batch, new, past, self.tok_embeddings.weight)
        self.positions.require_rows(last_position(positions, past + new, self.positions.limit))
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
        """Compute `hidden` with any attention, given by `mix`, and products with parameters in any layout. No operation
        here waits for a GPU, so the caller checks the positions; see `Positions.require_rows`."""
        x, delta = kernels.add_norm(self.embedded(ids), None, self.post_embed_norm)[1], None
        rotation = None if kernels.turn is None else self.positions(positions, x)
        layers = cast(Iterable[Block], self.layers)
        products = products or [layer.products() for layer in layers]
        for layer, layer_products in zip(layers, products, strict=True):
            x, delta = layer(x, delta, rotation, mix, layer_products, kernels)
        return kernels.add_norm(x, delta, self.norm)[1]

    def embedded(self, ids: Tensor) -> Tensor:  # [...] int64 → [..., D]
        """Return the embeddings, scaled where the configuration says so. The scale has the model's precision."""
        x: Tensor = self.tok_embeddings(ids)
        if self.config.embedding_scale == 1:
            return x
        return x * float(torch.tensor(self.config.embedding_scale, dtype=x.dtype))

    def head(self, hidden: Tensor, rows: Tensor | slice | None = None) -> Tensor:
        # A slice reads the table in place, an index [R] int64 copies.
        if self.image_head is not None:
            return self.image_head.logits(hidden, self.output.weight, rows).float()
        weight = self.output.weight if rows is None else self.output.weight[rows]
        return product(hidden, weight, None).float()

    def new_cache(self, batch: int, length: int, dtype: torch.dtype | None = None) -> KVCache:
        """Return an empty cache for `length` tokens of `batch` rows, by default in the model's dtype."""
        weight = self.tok_embeddings.weight
        return KVCache(self.config, batch, length, dtype or weight.dtype, weight.device)


class ImageRows(nn.Module):
    """Parameters of the input rows."""

    def __init__(self, tables: ImageTables, hidden_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(tables.rows, tables.width))
        widths = (tables.width, *[hidden_dim] * tables.depth)
        self.layers = nn.ModuleList(nn.Linear(width, outputs) for width, outputs in pairwise(widths))

    def forward(self) -> Tensor:  # [rows, D]
        first, *others = self.layers
        rows: Tensor = first(self.table)
        for layer in others:
            rows = layer(functional.gelu(rows))
        return rows


class ImageHead(nn.Module):
    """Parameters of the head, except for the rows of its output, with the logits of text and image ids."""

    def __init__(self, tables: ImageTables, hidden_dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_dim, hidden_dim)
        self.bias = nn.Parameter(torch.zeros(tables.rows))

    def forward(self, hidden: Tensor) -> Tensor:  # [N, D] → [N, D]
        return functional.gelu(product(hidden, self.inner.weight, self.inner.bias))

    def logits(self, hidden: Tensor, table: Tensor, rows: Tensor | slice | None) -> Tensor:  # [N, D], [V, D] → [N, R]
        """Return the logits of all ids or of `rows`, each by its own head."""
        first = len(table) - len(self.bias)
        if isinstance(rows, Tensor):
            weight, bias = table[rows], self.bias[(rows - first).clamp(min=0)]
            return torch.where(rows < first, product(hidden, weight, None), product(self(hidden), weight, bias))
        start, stop, _ = slice(0, len(table)).indices(len(table)) if rows is None else rows.indices(len(table))
        parts = []
        if start < first:
            parts.append(product(hidden, table[start : min(stop, first)], None))
        if stop > first:
            image = slice(max(start, first), stop)
            bias = self.bias[image.start - first : image.stop - first]
            parts.append(product(self(hidden), table[image], bias))
        return torch.cat(parts, dim=-1)

    def biases_of(self, image_ids: range | tuple[int, ...], vocab_size: int) -> Tensor:  # [codes]
        """Return the biases of rows to draw from. Raises InvalidRequest if a row is one of text."""
        first = vocab_size - len(self.bias)
        if min(image_ids) < first or max(image_ids) >= vocab_size:
            raise InvalidRequest(
                f"the layout's image rows begin at {min(image_ids):,}, and this model has a head of its own for the "
                f"{len(self.bias):,} rows from {first:,} on; give these rows as the layout's image block"
            )
        return self.bias[torch.tensor(image_ids, device=self.bias.device) - first]
