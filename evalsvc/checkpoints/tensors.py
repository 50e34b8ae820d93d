"""Tensors of a file on their way into a module: copies, checks, digests, and names in messages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from evalsvc.checkpoints.distributed import STORAGES, InPieces, find_values
from evalsvc.checkpoints.formats import legible
from evalsvc.errors import NonFinite, first_few

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHOWN = 5  # maximum number of names of each kind in a message


class Pieces(Tensor):
    """A tensor in several places of several files, put together whenever an operation needs the values."""

    _entry: InPieces
    _folder: Path
    _mapped: Callable[[str], Tensor]

    @staticmethod
    def of(folder: Path, entry: InPieces, mapped: Callable[[str], Tensor]) -> Tensor:
        """Return the tensor; `mapped` returns the bytes of a file in the folder."""
        dtype: torch.dtype = getattr(torch, entry.dtype)
        pieces: Pieces = Tensor._make_wrapper_subclass(Pieces, entry.shape, dtype=dtype)
        pieces._entry, pieces._folder, pieces._mapped = entry, folder, mapped
        return pieces

    def put_together(self) -> Tensor:
        whole = torch.empty(self._entry.shape, dtype=self.dtype)
        width = STORAGES[self._entry.dtype][1]
        # As bytes, because an archive begins anywhere in its file.
        target = whole.view(-1).view(torch.uint8).view(*whole.shape, width)
        for piece in self._entry.pieces:
            begin, steps = find_values(self._folder, self._entry, piece)
            strides = (*(step * width for step in steps), 1)
            values = self._mapped(piece.file).as_strided((*piece.shape, width), strides, begin)
            place = tuple(slice(at, at + size) for at, size in zip(piece.start, piece.shape, strict=True))
            target[place].copy_(values)
        return whole

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, _types: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        whole = tree_map_only(Pieces, lambda pieces: pieces.put_together(), (tuple(arguments), dict(options or {})))
        return operation(*whole[0], **whole[1])


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return the rows of all tensors, of which one at a time is put together; a single tensor as it is in the file."""
    first = tensors[0]
    if len(tensors) == 1:
        return first.put_together() if isinstance(first, Pieces) else first
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    rows = torch.empty(sum(map(len, tensors)), *first.shape[1:], dtype=dtype)
    end = 0
    for tensor in tensors:
        begin, end = end, end + len(tensor)
        rows[begin:end].copy_(tensor)
    return rows


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
