"""Gumbel noise as a pure function of (seed, prompt id, position, code).

Gumbel-max: argmax over codes of logit + G, with G independent and standard Gumbel, is a draw from the softmax of the
logits (Gumbel 1954; Maddison, Tarlow, Minka, "A* Sampling", 2014). Two checkpoints that differ little draw mostly the
same codes, and a draw is independent of batch, order and restarts.

A prompt's stream is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
with random access: the n-th output is mix64(key + (n + 1)·γ), with n = position·2²⁶ + code and key the BLAKE2b digest
of the prompt id, salted with the seed. Two streams share outputs when their keys lie close on the orbit of γ: for
30,000 prompts of 1,024 positions and 16,384 codes, any two do with probability 2⁻⁹.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio, made odd
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
CODES_PER_POSITION = 1 << 26  # the largest number of rows of a table


def stream_key(seed: int, prompt_id: str) -> int:
    """Return the start of one prompt's stream, 0…2⁶⁴-1. `seed` is 0…2⁶³-1, the prompt id any text."""
    salt = seed.to_bytes(8, "little")
    return int.from_bytes(blake2b(prompt_id.encode(), digest_size=8, salt=salt).digest(), "little")


def stream_keys(seed: int, prompt_ids: Sequence[str], device: torch.device) -> Tensor:  # [B] int64
    """Return the `stream_key` of each prompt, as the int64 of the same 64 bits."""
    return torch.tensor([_signed(stream_key(seed, prompt)) for prompt in prompt_ids], device=device)


def skip_codes(keys: Tensor, codes: int) -> Tensor:  # [B] int64 → [B] int64
    """Return keys under which code 0 of every position has the noise of code `codes` under `keys`."""
    return keys + _signed(codes * GAMMA % 2**64)


def uniform(keys: Tensor, position: int, codes: int) -> Tensor:  # [B] int64 → [B, codes] float64
    """Return uniform numbers (k + ½)·2⁻⁵², k = 0…2⁵²-1, never 0 or 1, from each output's highest 52 bits."""
    return _uniform(_mix64(keys[:, None] + counters(position, codes, keys.device)))


def counters(position: int, codes: int, device: torch.device) -> Tensor:  # [codes] int64
    """Return (n + 1)·γ of every code at one position; with a prompt's key added, the state of the output. An argument
    of compiled code: torch 2.13's compiled `arange` is wrong where products wrap around."""
    steps = torch.arange(1, codes + 1, device=device) * _signed(GAMMA)
    return steps.add_(_signed(position * CODES_PER_POSITION * GAMMA % 2**64))


def gumbel_of(states: Tensor) -> Tensor:  # int64, key + counter → float64
    """Compute the noise of these states; overwrites the states."""
    return _uniform(_mix64(states)).log_().neg_().log_().neg_()


def _uniform(bits: Tensor) -> Tensor:
    return _shift_right(bits, 12).double().add_(0.5).mul_(2.0**-52)


def _mix64(z: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser (Stafford's variant 13) in place; int64 products wrap like unsigned products."""
    z.bitwise_xor_(_shift_right(z, 30)).mul_(_signed(MIX_1))
    z.bitwise_xor_(_shift_right(z, 27)).mul_(_signed(MIX_2))
    return z.bitwise_xor_(_shift_right(z, 31))


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift logically: torch's shift copies the sign into the free bits."""
    return (z >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
