"""Full float32 for what is reported, whatever the process allowed before."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in full float32, without autocast: autocast is per thread and comes back, `use_full_float32` stays.

    Both sides of a distance must have been computed alike: the same images in bf16 have a FID of 0.09 to themselves.
    """
    use_full_float32()
    with torch.autocast(device.type, enabled=False):
        yield


def use_full_float32() -> None:
    """Forbid TF32, bf16 in place of float32, and sums in half precision, in this process from now on.

    The switches are the process's, not the thread's: a thread that set them back at its end would set them back for
    the others, which are in the middle of their work. So nothing sets them back; calls repeat and cost microseconds.

    cuDNN's attention is switched off, too. Its plans are cached per thread and shape, and a miss costs 23 to 440 ms:
    text generation, whose context grows, would miss at every token.
    """
    backends = torch.backends
    _ignore_advice()
    # Whoever asks by the old names, torch's compiler among them, gets an error where old and new disagree.
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
    """Some releases of torch warn whoever sets the old names, once; all names are set here."""
    warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
