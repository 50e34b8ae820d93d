"""CUDA streams in addition to the default stream, one per use, process and device.

cuBLAS keeps a workspace for every stream, and torch cycles through the same 32 streams: with a new stream for every
use, workspaces would take a gigabyte, and work that should overlap would share a stream.
"""

from __future__ import annotations

from functools import cache

import torch


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which sampling captures its graphs; replayed graphs keep its high priority."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@cache
def decoding_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which images are decoded while others are sampled."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
