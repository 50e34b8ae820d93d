"""What the device manages at best, measured there and then, once a process: what figures are held against."""

from __future__ import annotations

import functools

import torch
from side_by_side import copy_bandwidth, gemm_rate, read_bandwidth


@functools.cache
def bandwidth(device: torch.device) -> float:
    """Return bytes a second: on a card of a copy, read and written; on a CPU of reading."""
    return copy_bandwidth(str(device)) if device.type == "cuda" else read_bandwidth(str(device))


@functools.cache
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations a second of a large matrix product."""
    return gemm_rate(dtype, str(device))
