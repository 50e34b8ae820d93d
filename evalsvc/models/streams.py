"""CUDA streams beside the default one, each made once a process and device.

cuBLAS keeps a workspace for every stream, and torch gives out the same 32 streams in turn: made anew for every use,
streams would take a gigabyte, and work that is meant to overlap would meet on one of them.
"""

from __future__ import annotations

from functools import cache

import torch


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which sampling captures its graphs, which keep its high priority wherever they are replayed."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@cache
def decoding_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which images are decoded while others are sampled."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
