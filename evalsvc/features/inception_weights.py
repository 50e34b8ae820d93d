"""Weights of FID's Inception network from any of its published files, and from no program of a `submitter`.

torch-fidelity's and pytorch-fid's state dicts, NVIDIA's TorchScript program (whole, or only the trunk), and evalsvc's
safetensors hold the same tensors under different names; here the tensors get torch-fidelity's names. Not every file has
the classifier, which only the Inception Score needs.

A TorchScript file is a program. Only the published ones are opened, identified by their SHA-256.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalsvc.checkpoints.formats import ZIP
from evalsvc.checkpoints.tensors import is_plain, listed, some
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, NonFinite
from evalsvc.spec.images import INCEPTION_TORCHSCRIPT, INCEPTION_TRUNK

PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
"""Tensors of each convolution, under torch-fidelity's names."""

CLASSIFIER = "fc.weight"
CLASSIFIER_SHAPE = (1008, 2048)
PROGRAMS = (INCEPTION_TORCHSCRIPT, INCEPTION_TRUNK)
"""SHA-256 of the TorchScript files that are opened."""
MAX_PROGRAM = 200_000_000
"""Largest size in bytes of a TorchScript file; NVIDIA's has 96 MB."""


def read_inception(path: Path) -> dict[str, Tensor]:
    """Read the 94 convolutions with their batch norms, 470 float32 tensors by torch-fidelity's names.

    The weight of the classifier is included where the file has one that is not all zeros.
    """
    program = published_program(path, PROGRAMS)
    return _checked(read_weights(path).tensors, path) if program is None else read_inception_program(program, path)


def read_inception_program(content: bytes, path: Path) -> dict[str, Tensor]:
    """Read the tensors of `read_inception` in the content of a published TorchScript file; messages name `path`."""
    return _checked(_program_tensors(content), path)


def published_program(path: Path, digests: Collection[str]) -> bytes | None:
    """Return the content of a TorchScript file whose SHA-256 is one of `digests`; None for any other file."""
    if not path.is_file() or path.stat().st_size > MAX_PROGRAM:
        return None
    with path.open("rb") as file:
        start = file.read(len(ZIP))
        content = start + file.read(MAX_PROGRAM) if start == ZIP else b""
    return content if hashlib.sha256(content).hexdigest() in digests else None


def load_program(content: bytes, device: str = "cpu") -> Any:
    """Load a published TorchScript program from its content, which `published_program` has checked."""
    load: Any = torch.jit.load
    with warnings.catch_warnings():
        # torch deprecates TorchScript, in which the network is published.
        warnings.simplefilter("ignore", DeprecationWarning)
        return load(BytesIO(content), map_location=device).eval()


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise NonFinite(f"the Inception weights hold NaN or infinity in {some(broken)}; pull them again")


def _checked(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = [f"{name}.{part}" for name in NVIDIA_NAMES.values() for part in PARTS]
    problems = listed("missing", [name for name in names if name not in tensors])
    odd = [name for name in names if name in tensors and not is_plain(tensors[name])]
    if problems := problems + listed("no plain floating-point tensor", odd):
        raise CheckpointMismatch(f"{path} is not FID's Inception network; {'; '.join(problems)}")
    checked = {name: tensors[name].to(torch.float32) for name in names}
    classifier = tensors.get(CLASSIFIER)
    if classifier is not None and is_plain(classifier) and classifier.shape == CLASSIFIER_SHAPE and classifier.any():
        checked[CLASSIFIER] = classifier.to(torch.float32)
    return checked


def trunk(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that features depend on: all except the classifier's."""
    return {name: tensor for name, tensor in tensors.items() if name != CLASSIFIER}


_KINDS = {
    kind: dict(pair.split("=") for pair in pairs.split())
    for kind, pairs in {
        "A": "conv=branch1x1 tower.conv=branch5x5_1 tower.conv_1=branch5x5_2 tower_1.conv=branch3x3dbl_1 "
        "tower_1.conv_1=branch3x3dbl_2 tower_1.conv_2=branch3x3dbl_3 tower_2.conv=branch_pool",
        "B": "conv=branch3x3 tower.conv=branch3x3dbl_1 tower.conv_1=branch3x3dbl_2 tower.conv_2=branch3x3dbl_3",
        "C": "conv=branch1x1 tower.conv=branch7x7_1 tower.conv_1=branch7x7_2 tower.conv_2=branch7x7_3 "
        "tower_1.conv=branch7x7dbl_1 tower_1.conv_1=branch7x7dbl_2 tower_1.conv_2=branch7x7dbl_3 "
        "tower_1.conv_3=branch7x7dbl_4 tower_1.conv_4=branch7x7dbl_5 tower_2.conv=branch_pool",
        "D": "tower.conv=branch3x3_1 tower.conv_1=branch3x3_2 tower_1.conv=branch7x7x3_1 "
        "tower_1.conv_1=branch7x7x3_2 tower_1.conv_2=branch7x7x3_3 tower_1.conv_3=branch7x7x3_4",
        "E": "conv=branch1x1 tower_conv=branch3x3_1 tower_mixed_conv=branch3x3_2a tower_mixed_conv_1=branch3x3_2b "
        "tower_1_conv=branch3x3dbl_1 tower_1_conv_1=branch3x3dbl_2 tower_1_mixed_conv=branch3x3dbl_3a "
        "tower_1_mixed_conv_1=branch3x3dbl_3b tower_2_conv=branch_pool",
    }.items()
}
"""Names of the convolutions in a kind of block: NVIDIA's=torch-fidelity's."""

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_BLOCKS = ("5b A", "5c A", "5d A", "6a B", "6b C", "6c C", "6d C", "6e C", "7a D", "7b E", "7c E")

NVIDIA_NAMES: dict[str, str] = {
    **{f"conv_{index}".removesuffix("_0"): name for index, name in enumerate(_STEM)},
    **{
        f"{f'mixed_{index}'.removesuffix('_0')}.{nvidia}": f"Mixed_{block[:2]}.{fidelity}"
        for index, block in enumerate(_BLOCKS)
        for nvidia, fidelity in _KINDS[block[3]].items()
    },
}
"""Names of the convolutions, in the network's order: from NVIDIA's to torch-fidelity's."""


def _program_tensors(content: bytes) -> dict[str, Tensor]:
    # NVIDIA's names are `…layers.mixed.conv.weight`, `.beta`, `.mean` and `.var`.
    parts = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_program(content).state_dict().items():
        layer, _, part = name.rpartition("layers.")[2].rpartition(".")
        name_here = NVIDIA_NAMES.get(layer)
        if name_here is not None and part in parts:
            tensors[f"{name_here}.{parts[part]}"] = tensor.detach()
            # The network was trained without batch norm's scale; torch-fidelity's file has ones.
            tensors[f"{name_here}.bn.weight"] = torch.ones(len(tensor))
        elif tensor.shape == CLASSIFIER_SHAPE:
            tensors[CLASSIFIER] = tensor.detach()
    return tensors
