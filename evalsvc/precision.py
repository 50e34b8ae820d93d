"""Full float32 precision for reported numbers, whatever the process allowed before."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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


class TF32Conv2d(nn.Conv2d):
    """Convolution of float32 values, multiplied in TF32 by GPUs that have it (10 bits of mantissa, sums in float32).
    The choice is an argument of each call: a switch of the process would reach networks of other threads."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cudnn = torch.backends.cudnn
        deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
        shape = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        result: Tensor = torch.ops.aten._convolution(
            x, weight, bias, *shape, cudnn.benchmark, deterministic, cudnn.enabled, True
        )
        return result


def allow_tf32(network: nn.Module) -> None:
    """Make the convolutions of `network` TF32Conv2d, in place. All else stays in full float32."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = TF32Conv2d


@functools.cache
def _ignore_advice() -> None:
    """Silence the warning of some releases of torch about the old names, since all names are set here."""
    warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
