"""Full float32 precision for reported numbers, whatever the process allowed before."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in full float32, without autocast. Autocast is per thread and is restored; `use_full_float32` is
    permanent.

    Both sides of a distance must be computed alike: the same images in bf16 have a FID of 0.09 to themselves.
    """
    use_full_float32()
    with torch.autocast(device.type, enabled=False):
        yield


def use_full_float32() -> None:
    """Forbid TF32, bf16 instead of float32, and sums in half precision, in this process from now on.

    The switches belong to the process, not to the thread: a thread that restored them would change the precision of
    other threads in the middle of their work. So they are never restored; repeated calls cost microseconds.

    cuDNN's attention is switched off as well. Its plans are cached per thread and shape, and a miss costs 23 to 440 ms:
    text generation, whose context grows, would miss at every token.
    """
    backends = torch.backends
    _ignore_advice()
    # Code that reads the old names, such as torch's compiler, fails if old and new names disagree.
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for part in (backends.cudnn, backends.mkldnn):
        for switch in (part.conv, part.rnn):
            switch.fp32_precision = "ieee"
    for product in (backends.cuda.matmul, backends.mkldnn.matmul):  # type: ignore[attr-defined]
        product.fp32_precision = "ieee"
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    backends.cuda.enable_cudnn_sdp(False)


@functools.cache
def _ignore_advice() -> None:
    """Silence the warning of some releases of torch about the old names, since all names are set here."""
    warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
