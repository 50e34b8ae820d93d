"""Full float32 for what is reported, whatever the process allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32, no bf16 in place of float32, and no autocast: cuDNN's convolutions use TF32, which keeps 10 of 23 bits,
    unless told otherwise, and the process around may have allowed more.

    Both sides of a distance must have been computed alike: the same images in bf16 have a FID of 0.09 to themselves.
    """
    backends = torch.backends
    switches = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
