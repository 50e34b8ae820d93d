"""What a torch.save file must be once torch has read it, so that refusing one costs little; see `torch_archive` too.

`torch.load(weights_only=True)` keeps code from running. It does not keep a small file from asking for a large memory:
by entries that unpack, by a catalogue without end, by sizes that nothing stands behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalsvc.errors import NotACheckpoint, UnsafeCheckpoint

VIEWS = 4
"""How often a file's bytes may be seen as tensors: tied weights are saved under two names, and each may be cast."""

KINDS = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
"""numpy's plain numbers, as it pickles them."""


def require_backed(path: Path, tensors: Mapping[Any, Any]) -> None:
    """Raise NotACheckpoint where tensors are larger than what stands behind them in the file.

    A tensor of stride 0 is as large as its shape says once it is copied, and costs a file nothing.
    """
    total = 0
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            continue
        claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        total += claimed
        if claimed > stored:
            raise NotACheckpoint(
                f"{path}: {str(name)[:80]} is {list(tensor.shape)}, {claimed:,} bytes, of which the file has "
                f"{stored:,}; save it contiguous"
            )
    size = path.stat().st_size
    if total > VIEWS * size + (1 << 20):
        raise NotACheckpoint(
            f"{path} announces {total:,} bytes of tensors and has {size:,}; save each tensor with values of its own"
        )


# numpy's scalars, which a training loop's learning rate or metric often is


class PlainDtype:
    """Stands for numpy.dtype while a file is read: plain numbers only, and no state but the order of bytes.

    numpy's own takes the layout of its memory from the pickle, pointers to objects included.
    """

    def __init__(self, kind: Any, _align: Any = False, _copy: Any = True) -> None:
        if not isinstance(kind, str) or kind not in KINDS:
            raise UnsafeCheckpoint(f"wants to make numpy values of kind {str(kind)[:40]!r}, which are no plain numbers")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise UnsafeCheckpoint("wants to change the layout of numpy's numbers")
        self.dtype = self.dtype.newbyteorder(order)


def plain_scalar(dtype: Any, data: Any) -> Any:
    """Stands for numpy's function that makes a scalar of its bytes."""
    if type(dtype) is not PlainDtype or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise UnsafeCheckpoint("wants to make a numpy value of other things than its bytes")
    return np.frombuffer(data, dtype.dtype)[0]


def safe_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a pickle may name beside what torch allows, and what it gets."""
    return [
        (PlainDtype, "numpy.dtype"),
        (plain_scalar, "numpy.core.multiarray.scalar"),
        (plain_scalar, "numpy._core.multiarray.scalar"),
    ]
