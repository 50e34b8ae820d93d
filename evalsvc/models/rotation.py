"""Rotary positions: frequencies, and the rotation of queries and keys (Su et al., 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evalsvc.errors import InvalidData, UnknownName
from evalsvc.spec.model_config import ModelConfig, RotaryScaling

ROTARY_THETA = 10_000.0
INV_FREQ_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, broadcastable to the heads of queries and keys together, [..., H + KV, rotated dimensions]."""


class Positions(nn.Module):
    """Rotation of queries and keys by position, computed for the positions of each call."""

    inv_freq: Tensor  # [rotated dimensions / 2] float32

    def __init__(self, config: ModelConfig, inv_freq_dtype: torch.dtype, saved: Tensor | None = None) -> None:
        """Build the rotation from `saved` frequencies, or from those of the configuration where `saved` is None."""
        super().__init__()
        self.kind, self.n_heads = config.positional_embedding_type, config.n_heads
        self.seq_len, self.window = config.seq_len, config.attention_window
        inv_freq = rotary_frequencies(config) if saved is None else saved
        self.register_buffer("inv_freq", inv_freq.to(inv_freq_dtype).float(), persistent=False)
        # open_lm builds its table once, this long
        self.table_rows = 2 * self.seq_len if self.kind == "llama_rotary" else None
        self.limit = min((limit for limit in (self.table_rows, self.window) if limit is not None), default=None)
        """Number of positions; None without a limit."""

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # The buffer moves with the model, but model.bfloat16() must not round it: rotary_inv_freq_dtype decides the
        # rounding.
        kept = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = kept.to(self.inv_freq.device)
        return self

    def forward(self, positions: Tensor, like: Tensor) -> Rotation | None:  # [...] int64
        """Return cosines and sines for tokens at these positions; None where the model has no rotation. Angles are
        computed in float32 (float64 in a float64 model) and only then rounded to the model's dtype."""
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
        """Raise InvalidData if any position is beyond llama_rotary's table, or beyond the window of attention. A tensor
        on a GPU makes the call wait for the GPU."""
        if self.limit is None:
            return
        last = int(last.max()) if isinstance(last, Tensor) else last
        if self.window is not None and last >= self.window:
            raise InvalidData(
                f"position {last} is beyond the model's window of {self.window} tokens, from which on its attention "
                "slides; evalsvc computes full attention only: use sequences within the window"
            )
        if self.table_rows is not None and last >= self.table_rows:
            raise InvalidData(
                f"position {last} is beyond llama_rotary's {self.table_rows} positions (twice the model's seq_len "
                f"{self.seq_len}); use shorter sequences"
            )


def last_position(positions: Tensor | None, slots: int, limit: int | None) -> int:
    """Return the largest of `positions`, for a check against `limit`. A position is at most its slot: on a GPU, which
    the value would have to wait for, the last slot stands for the value as long as the slot is within the limit."""
    if positions is None or limit is None or (positions.device.type != "cpu" and slots <= limit):
        return slots - 1
    return int(positions.max())


def rotary_frequencies(config: ModelConfig) -> Tensor:  # [rotated dimensions / 2] float32, before any rounding
    table = inv_freq_table(config.rotated_dims, config.rotary_base)
    return table if config.rotary_scaling is None else scaled_frequencies(table, config.rotary_scaling)


def inv_freq_table(width: int, base: float = ROTARY_THETA) -> Tensor:  # [width / 2] float32
    """Return the rotary frequencies base^(-2j / width); by default those that open_lm's constructor computes."""
    # Use the CPU, not the default device: models are built on `meta`, and no file holds these values.
    exponents = torch.arange(0, width, 2, device="cpu").float() / width
    return 1.0 / base**exponents


def scaled_frequencies(table: Tensor, scaling: RotaryScaling) -> Tensor:
    """Return the frequencies of `table` after scaling. By `llama3`, those of few turns within `original_length` are
    divided by `factor`, those of many are kept, and those between are interpolated by their number of turns."""
    if scaling.kind == "linear":
        return table / scaling.factor
    turns = scaling.original_length * table / (2 * math.pi)
    share = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return (1 - share) * table / scaling.factor + share * table


def turn(both: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:  # [..., H + KV, head_dim]
    """Rotate queries and keys to their positions; dimensions beyond those of `cos` stay as they are."""
    if interleaved:
        return rotate_pairs(both, cos, sin)
    width = cos.shape[-1]
    if width == both.shape[-1]:
        return rotate_halves(both, cos, sin)
    return torch.cat((rotate_halves(both[..., :width], cos, sin), both[..., width:]), dim=-1)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [..., H, W]; cos and sin [..., 1 or H, W]
    """Rotate in NeoX's style: dimension j with dimension j + W/2."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [..., H, W]; cos and sin [..., 1 or H, W / 2]
    """Rotate in Llama's style: dimension 2j with dimension 2j + 1, in float32 for every dtype of `x`."""
    even, odd = x[..., ::2].to(cos.dtype), x[..., 1::2].to(cos.dtype)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def resolve_inv_freq_dtype(config: ModelConfig, name: str) -> str:
    """Return the dtype of the rotary frequencies in training that a task's parameter names; "auto" derives it."""
    choices = ["auto", *INV_FREQ_DTYPES]
    if name not in choices:
        raise UnknownName.among("rotary_inv_freq_dtype", name, choices)
    is_derived = name == "auto" or config.positional_embedding_type in ("llama_rotary", "none")
    return trained_inv_freq_dtype(config) if is_derived else name


def trained_inv_freq_dtype(config: ModelConfig) -> str:
    """Return the dtype to which open_lm rounded the rotary frequencies while it trained this model.

    Rounding changes every angle by up to 0.4 %, which at position 1,000 is whole radians: an evaluation in any dtype
    must use the frequencies that the model has learned. open_lm builds its table from `inv_freq.to(keys.dtype)`. Keys
    are half precision under autocast ("amp…"), unless a q/k norm returns float32 there: all norms do except the lp_
    norms. FSDP's bf16 policies round the buffer itself. Without a known precision no frequency is rounded.
    """
    if config.positional_embedding_type in ("llama_rotary", "none"):
        return "float32"
    if config.precision == "fsdp_bf16":
        return "bfloat16"
    autocast = {"amp": "float16", "amp_bf16": "bfloat16", "amp_bfloat16": "bfloat16"}.get(config.precision or "")
    keys_are_float32 = config.qk_norm and "lp_" not in config.model_norm
    return "float32" if autocast is None or keys_are_float32 else autocast
