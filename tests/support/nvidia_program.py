"""A TorchScript file with the tensors of FID's Inception network where NVIDIA's file has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalsvc.features.inception_weights import NVIDIA_NAMES, PARTS


def small_tensors() -> dict[str, Tensor]:
    """The right names with a few numbers each: enough for what reads files."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 1, 1, 1), (2,), (2,), (2,), (2,)]
    tensors = {}
    for name in NVIDIA_NAMES.values():
        for part, shape in zip(PARTS, shapes, strict=True):
            tensors[f"{name}.{part}"] = torch.rand(shape, generator=generator)
        tensors[f"{name}.bn.weight"] = torch.ones(2)
    return tensors


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Layers(Plain):
    def __init__(self, run: nn.Module) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.run(x)
        return found


def nvidia_program(tensors: Mapping[str, Tensor], path: Path, classifier: Any = None, layers: Any = None) -> Path:
    """Write the file. Its part `layers` runs the given module, and nothing by itself."""
    root = Plain()
    root.add_module("layers", Layers(layers or nn.Identity()))
    parts = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
    for theirs, ours in NVIDIA_NAMES.items():
        module: nn.Module = root
        for name in ("layers", *theirs.split(".")):
            if not hasattr(module, name):
                module.add_module(name, Plain())
            module = getattr(module, name)
        for part, attribute in parts.items():
            module.register_buffer(attribute, tensors[f"{ours}.{part}"])
    if classifier is not None:
        root.add_module("output", Plain())
        root.output.register_buffer("weight", classifier)
    torch.jit.save(torch.jit.script(root), str(path))
    return path
