"""Weights of FID's Inception network from any of its published files.

torch-fidelity's and pytorch-fid's state dicts, NVIDIA's TorchScript program (whole, or only the trunk), and evalsvc's
safetensors hold the same tensors under different names; here the tensors get torch-fidelity's names. Not every file has
the classifier, which only the Inception Score needs. No code is executed: only the tensors of a program are read.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from evalsvc.checkpoints.tensors import is_plain, listed, some
from evalsvc.checkpoints.torch_file import require_short_tuples
from evalsvc.checkpoints.weights import VIEWS, read_weights, require_backed
from evalsvc.errors import CheckpointMismatch, NonFinite, NotACheckpoint, UnsafeCheckpoint

PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
"""Tensors of each convolution, under torch-fidelity's names."""

CLASSIFIER = "fc.weight"
CLASSIFIER_SHAPE = (1008, 2048)

MAX_PROGRAM = 50_000_000  # bytes of a TorchScript file's pickle; it lists tensors and holds none


def read_inception(path: Path) -> dict[str, Tensor]:
    """Read the 94 convolutions with their batch norms, 470 float32 tensors by torch-fidelity's names.

    The weight of the classifier is included where the file has one that is not all zeros. Raises CheckpointError where
    the file cannot be read, or tensors are missing or no plain numbers.
    """
    is_program = path.is_file() and zipfile.is_zipfile(path) and _entry(path, "constants.pkl") is not None
    if not is_program:
        return _checked(read_weights(path).tensors, path)
    with path.open("rb") as file:
        return _checked(_read_program(file, path), path)


def read_inception_program(content: bytes, path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript file from its content, without running the program; messages name `path`.

    Returns and raises as `read_inception`.
    """
    return _checked(_read_program(BytesIO(content), path), path)


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise NonFinite for NaN or infinity in the network's tensors."""
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise NonFinite(f"the Inception weights hold NaN or infinity in {some(broken)}; pull them again")


def _checked(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = [f"{name}.{part}" for name in NVIDIA_NAMES.values() for part in PARTS]
    problems = listed("missing", [name for name in names if name not in tensors])
    problems += listed(
        "no plain floating-point tensor", [n for n in names if n in tensors and not is_plain(tensors[n])]
    )
    if problems:
        raise CheckpointMismatch(f"{path} is not FID's Inception network; {'; '.join(problems)}")
    checked = {name: tensors[name].to(torch.float32) for name in names}
    classifier = tensors.get(CLASSIFIER)
    if classifier is not None and is_plain(classifier) and classifier.shape == CLASSIFIER_SHAPE and classifier.any():
        checked[CLASSIFIER] = classifier.to(torch.float32)
    return checked


def trunk(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that features depend on: all except the classifier's."""
    return {name: tensor for name, tensor in tensors.items() if name != CLASSIFIER}


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


_KINDS = {
    "A": {
        "conv": "branch1x1",
        "tower.conv": "branch5x5_1",
        "tower.conv_1": "branch5x5_2",
        "tower_1.conv": "branch3x3dbl_1",
        "tower_1.conv_1": "branch3x3dbl_2",
        "tower_1.conv_2": "branch3x3dbl_3",
        "tower_2.conv": "branch_pool",
    },
    "B": {
        "conv": "branch3x3",
        "tower.conv": "branch3x3dbl_1",
        "tower.conv_1": "branch3x3dbl_2",
        "tower.conv_2": "branch3x3dbl_3",
    },
    "C": {
        "conv": "branch1x1",
        "tower.conv": "branch7x7_1",
        "tower.conv_1": "branch7x7_2",
        "tower.conv_2": "branch7x7_3",
        "tower_1.conv": "branch7x7dbl_1",
        "tower_1.conv_1": "branch7x7dbl_2",
        "tower_1.conv_2": "branch7x7dbl_3",
        "tower_1.conv_3": "branch7x7dbl_4",
        "tower_1.conv_4": "branch7x7dbl_5",
        "tower_2.conv": "branch_pool",
    },
    "D": {
        "tower.conv": "branch3x3_1",
        "tower.conv_1": "branch3x3_2",
        "tower_1.conv": "branch7x7x3_1",
        "tower_1.conv_1": "branch7x7x3_2",
        "tower_1.conv_2": "branch7x7x3_3",
        "tower_1.conv_3": "branch7x7x3_4",
    },
    "E": {
        "conv": "branch1x1",
        "tower_conv": "branch3x3_1",
        "tower_mixed_conv": "branch3x3_2a",
        "tower_mixed_conv_1": "branch3x3_2b",
        "tower_1_conv": "branch3x3dbl_1",
        "tower_1_conv_1": "branch3x3dbl_2",
        "tower_1_mixed_conv": "branch3x3dbl_3a",
        "tower_1_mixed_conv_1": "branch3x3dbl_3b",
        "tower_2_conv": "branch_pool",
    },
}

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_BLOCKS = ("5b A", "5c A", "5d A", "6a B", "6b C", "6c C", "6d C", "6e C", "7a D", "7b E", "7c E")

NVIDIA_NAMES: dict[str, str] = {
    **{_numbered("conv", index): name for index, name in enumerate(_STEM)},
    **{
        f"{_numbered('mixed', index)}.{nvidia}": f"Mixed_{block[:2]}.{fidelity}"
        for index, block in enumerate(_BLOCKS)
        for nvidia, fidelity in _KINDS[block[3]].items()
    },
}
"""Names of the convolutions, in the network's order: from NVIDIA's to torch-fidelity's."""


# TorchScript


def _entry(file: Path | IO[bytes], name: str) -> str | None:
    with zipfile.ZipFile(file) as archive:
        return next((entry for entry in archive.namelist() if entry.partition("/")[2] == name), None)


def _read_program(file: IO[bytes], path: Path) -> dict[str, Tensor]:
    """Return the program's tensors with torch-fidelity's names.

    NVIDIA's names are `…layers.mixed.conv.weight`, `.beta`, `.mean` and `.var`.
    """
    by_attribute = _program_tensors(file, path)
    tensors: dict[str, Tensor] = {}
    for name, tensor in by_attribute.items():
        _, _, inner = name.rpartition("layers.")
        layer, _, part = inner.rpartition(".")
        name_here = NVIDIA_NAMES.get(layer)
        parts = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
        if name_here is not None and part in parts:
            tensors[f"{name_here}.{parts[part]}"] = tensor
            # The network was trained without batch norm's scale; torch-fidelity's file has ones.
            tensors[f"{name_here}.bn.weight"] = torch.ones(len(tensor))
        elif tensor.shape == CLASSIFIER_SHAPE:
            tensors[CLASSIFIER] = tensor
    return tensors


def _program_tensors(file: IO[bytes], path: Path) -> dict[str, Tensor]:
    """Return every tensor that is an attribute of the program's modules, by its dotted name."""
    size = file.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            entry = _entry(file, "data.pkl")
            if entry is None or archive.getinfo(entry).file_size > MAX_PROGRAM:
                raise NotACheckpoint(
                    f"{path} is a zip file with constants.pkl and without a usable data.pkl; copy it again"
                )
            content = archive.read(entry)
            require_short_tuples(path, content)
            root = _Unpickler(archive, entry.partition("/")[0], content, VIEWS * size).load()
    except (UnsafeCheckpoint, NotACheckpoint):
        raise
    except Exception as error:  # a truncated or hostile file raises any exception in zip reader and unpickler
        kind = type(error).__name__  # the message may quote the file
        raise NotACheckpoint(f"{path} is a damaged TorchScript file ({kind}); copy it again") from error
    tensors: dict[str, Tensor] = {}
    _collect(root, "", tensors)
    require_backed(path, size, tensors.items())
    return tensors


def _collect(module: object, prefix: str, tensors: dict[str, Tensor]) -> None:
    for name, value in vars(module).items() if isinstance(module, _Module) else ():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        _collect(value, f"{prefix}{name}.", tensors)


class _Module:
    """Stand-in for every class of the program, which only holds attributes."""


class _Unpickler(pickle.Unpickler):
    """Unpickler of tensors, plain values and `_Module`; any other name in the file raises an error."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, content: bytes, most: int) -> None:
        """Read at most `most` bytes of tensors: a small file must not request a large memory."""
        super().__init__(BytesIO(content))
        self._archive = archive
        self._folder = folder
        self._left = most

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        raise UnsafeCheckpoint(
            f"the TorchScript file requests {module}.{name}, so the file was not opened; get FID's Inception from a "
            "known source: evalsvc assets pull inception"
        )

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        entry = self._archive.getinfo(f"{self._folder}/data/{int(key)}")
        self._left -= entry.file_size
        if self._left < 0:
            raise pickle.UnpicklingError("storages are larger than the file")
        data = self._archive.read(entry)
        values = np.frombuffer(data, dtype)
        if len(values) != count:
            raise pickle.UnpicklingError(f"storage {key} holds {len(values)} numbers instead of {count}")
        return torch.from_numpy(values.astype(dtype.newbyteorder("="), copy=True))


def _rebuild(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


_KNOWN: Mapping[tuple[str, str], Callable[..., Any] | np.dtype[Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "HalfStorage"): np.dtype("<f2"),
    ("torch", "DoubleStorage"): np.dtype("<f8"),
    ("torch", "LongStorage"): np.dtype("<i8"),
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
}
