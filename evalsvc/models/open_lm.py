"""open_lm's transformer for inference: its parameter names and arithmetic, without its training code.

`Transformer.forward` → `hidden` (embedding, layers, final norm) → `head`. Position is an argument, and state between
calls is in the KVCache that the caller passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.errors import InternalError, InvalidData, UnknownName
from evalsvc.models.kv_cache import KVCache
from evalsvc.models.layer import EAGER, Block, Kernels, Mix, Products, Rotation, build_norm
from evalsvc.models.packing import product
from evalsvc.spec.model_config import ModelConfig

ROTARY_THETA = 10_000.0
INV_FREQ_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Transformer(nn.Module):
    """Decoder-only language model with open_lm's arithmetic.

    `rotary_inv_freq_dtype` is the dtype of the frequencies in *training*, see `trained_inv_freq_dtype`; "auto" derives
    the dtype from the configuration. The attribute of the same name holds the resulting dtype.
    """

    def __init__(self, config: ModelConfig, rotary_inv_freq_dtype: str = "auto") -> None:
        super().__init__()
        choices = ["auto", *INV_FREQ_DTYPES]
        if rotary_inv_freq_dtype not in choices:
            raise UnknownName.among("rotary_inv_freq_dtype", rotary_inv_freq_dtype, choices)
        if rotary_inv_freq_dtype == "auto" or config.positional_embedding_type in ("llama_rotary", "none"):
            rotary_inv_freq_dtype = trained_inv_freq_dtype(config)
        self.config = config
        self.rotary_inv_freq_dtype = rotary_inv_freq_dtype
        self.positions = Positions(config, INV_FREQ_DTYPES[rotary_inv_freq_dtype])
        self.post_embed_norm = build_norm(config, config.hidden_dim) if config.post_embed_norm else nn.Identity()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = build_norm(config, config.hidden_dim)
        self.output = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        self.tie_weights()
        self.saved_inv_freq: tuple[float, ...] = ()
        """Rotary frequencies of the checkpoint, unrounded; empty where the model uses open_lm's table."""
        self.packed: tuple[object, object] | None = None
        """Last layout of the weights for decoding, with its key; see `decoding.lay_out`. None frees the memory."""

    def use_frequencies(
        self,
        saved: Tensor,  # [head_dim / 2] float32
    ) -> None:
        """Use the rotary frequencies of a checkpoint, rounded as in training, instead of open_lm's table."""
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

        Raises:
            InvalidData: a position is beyond llama_rotary's table.
            InternalError: shapes do not fit each other.
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
        the caller checks that positions are within the table; see `Positions.require_rows`.
        """
        x, delta = self.post_embed_norm(self.tok_embeddings(ids)), None
        rotation = self.positions(positions, x)
        layers = cast(Iterable[Block], self.layers)
        products = products or [layer.products() for layer in layers]
        for layer, layer_products in zip(layers, products, strict=True):
            x, delta = layer(x, delta, rotation, mix, layer_products, kernels)
        return kernels.add_norm(x, delta, self.norm)[1]

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
            config.n_heads,
            length,
            config.head_dim,
            dtype=dtype or weight.dtype,
            device=weight.device,
        )


def attend(
    bias: Tensor | None,  # [B or 1, 1, T, S]
    cache: KVCache | None,
    layer: int,
    queries: Tensor,  # [B, T, H, head_dim]
    keys: Tensor,
    values: Tensor,
) -> Tensor:  # [B, T, H·head_dim]
    """Attend from new tokens to each other and to the tokens in `cache`, which then holds the new tokens too."""
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    if cache is not None:
        keys, values = cache.write(layer, keys, values)
        queries = queries.to(keys.dtype)
    # SDPA's causal flag covers one case: several tokens without a mask or earlier tokens. A single token attends to all
    # earlier tokens and needs no mask; every other case has a bias.
    causal = bias is None and queries.shape[2] > 1
    bias = bias if bias is None else bias.to(queries.dtype)
    mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)


def attention_bias(
    mask: Tensor | None,  # [B, S] bool, or [B, T, S] with all pairs
    batch: int,
    new: int,
    past: int,
    like: Tensor,
) -> Tensor | None:  # [B or 1, 1, T, S], 0 to attend and -inf not to
    """Return the bias added to the scores; None where SDPA needs no mask, or only its causal flag.

    The result's presence depends on shapes and on whether there is a mask, never on the mask's values: the arithmetic
    of a row is independent of other rows.
    """
    total = past + new
    if mask is None and (past == 0 or new == 1):
        return None
    allowed = torch.ones(new, total, dtype=torch.bool, device=like.device).tril(past)[None, None]
    if mask is not None:
        shapes = (batch, total), (batch, new, total)
        if mask.shape not in shapes or mask.dtype != torch.bool:
            actual, expected = f"{list(mask.shape)} {mask.dtype}", " or ".join(str(list(shape)) for shape in shapes)
            raise InternalError(
                f"mask is {actual}, expected {expected} torch.bool: one column per cached and new token"
            )
        allowed = mask[:, None] if mask.ndim == 3 else allowed & mask[:, None, None, :]
        # A padded query attends to no token, and its softmax would be NaN: it attends to everything, as in open_lm.
        allowed = allowed | ~allowed.any(-1, keepdim=True)
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill_(~allowed, float("-inf"))


class Positions(nn.Module):
    """Rotation of queries and keys by position, computed for the positions of each call."""

    inv_freq: Tensor  # [head_dim / 2] float32

    def __init__(self, config: ModelConfig, inv_freq_dtype: torch.dtype, saved: Tensor | None = None) -> None:
        """Build the rotation from `saved` frequencies [head_dim / 2], or from open_lm's table where `saved` is None."""
        super().__init__()
        self.kind = config.positional_embedding_type
        self.n_heads = config.n_heads
        self.rows = 2 * config.seq_len  # open_lm builds llama_rotary's table once, this long
        inv_freq = inv_freq_table(config.head_dim) if saved is None else saved
        self.register_buffer("inv_freq", inv_freq.to(inv_freq_dtype).float(), persistent=False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # The buffer moves with the model, but model.bfloat16() must not round it: rotary_inv_freq_dtype decides the
        # rounding.
        kept = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = kept.to(self.inv_freq.device)
        return self

    def forward(
        self,
        positions: Tensor,  # [...] int64
        like: Tensor,
    ) -> Rotation | None:
        """Return cosines and sines for tokens at these positions; None where the model has no rotation.

        Angles are computed in float32 (float64 in a float64 model) and only then rounded to the model's dtype.
        """
        if self.kind == "none":
            return None
        if self.kind == "head_rotary":
            # open_lm's first rotary rotates the heads against each other at every position, which encodes no position.
            # The rotation is applied all the same, so that cached keys and bf16 rounding are open_lm's.
            steps = torch.arange(self.n_heads, device=like.device).repeat(2)  # [2·H], of queries and keys
        else:
            steps = positions[..., None]  # [..., 1]
        dtype = torch.promote_types(like.dtype, torch.float32)
        angles = steps[..., None].to(dtype) * self.inv_freq.to(dtype)
        if self.kind == "llama_rotary":
            return angles.cos(), angles.sin()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def require_rows(self, last: int | Tensor) -> None:
        """Raise InvalidData if any position is beyond the table of llama_rotary; other kinds have no table.

        A tensor on a GPU makes the call wait for the GPU.
        """
        if self.kind != "llama_rotary":
            return
        last = int(last.max()) if isinstance(last, Tensor) else last
        if last >= self.rows:
            raise InvalidData(
                f"position {last} is beyond llama_rotary's {self.rows} positions (twice the model's seq_len "
                f"{self.rows // 2}); use shorter sequences"
            )


def inv_freq_table(head_dim: int) -> Tensor:  # [head_dim / 2] float32
    """Return the rotary frequencies that open_lm's constructor computes."""
    # Use the CPU, not the default device: models are built on `meta`, and no file holds these values.
    exponents = torch.arange(0, head_dim, 2, device="cpu").float() / head_dim
    return 1.0 / ROTARY_THETA**exponents


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
