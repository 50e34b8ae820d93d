"""Tensors of a file on their way into a module: copies, checks, digests, and names in messages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from evalsvc.checkpoints.formats import legible
from evalsvc.errors import NonFinite, first_few

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHOWN = 5  # maximum number of names of each kind in a message


def emptied(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors, and remove each, so that there are never two copies of all weights."""
    for name in list(tensors):
        yield name, tensors.pop(name)


def copied(
    path: Path | str, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    """Copy tensors from the mapped file, one at a time: the training run may replace the file during use."""
    copies = {name: tensor.to(device=device, dtype=dtype, copy=True) for name, tensor in tensors}
    broken = [name for name, tensor in copies.items() if not is_finite(tensor)]
    if broken:
        raise NonFinite(
            f"{path} has NaN or infinity in {len(broken)} of {len(copies)} tensors, read as {str(dtype)[6:]}: "
            f"{some(broken)}; the run has diverged, or the values do not fit the dtype"
        )
    return copies


def is_finite(tensor: Tensor) -> bool:
    # One pass without a temporary, unlike isfinite: min and max propagate NaN and infinities.
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over name, shape and float32 values by sorted name: of weights, in any file and dtype."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def listed(kind: str, names: Iterable[str]) -> list[str]:
    """Return `2 missing: a, b` as a part of a message, or an empty list without names."""
    names = list(names)
    return [f"{len(names)} {kind}: {some(names)}"] if names else []


def some(names: list[str]) -> str:
    return first_few([legible(name) for name in names], SHOWN)
