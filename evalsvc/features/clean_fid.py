"""FID's Inception network as clean-fid runs it, with clean-fid's resizing.

clean-fid runs NVIDIA's TorchScript file of 2015-12-05. A TorchScript file is a program, so evalsvc runs only that file,
identified by its SHA-256. From any other file with the network's tensors, the tensors are loaded into torch-fidelity's
layers. Protocols name which network ran.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from cleanfid.resize import build_resizer
from torch import Tensor

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.features import torch_fidelity
from evalsvc.features.extractor import FeatureExtractor
from evalsvc.features.inception import TAPS
from evalsvc.features.inception_weights import (
    load_program,
    published_program,
    read_inception,
    read_inception_program,
    require_finite,
    trunk,
)
from evalsvc.spec.images import INCEPTION_TORCHSCRIPT

RELEASE = f"clean-fid {version('clean-fid')}"

Network = Callable[[Tensor, bool], dict[int, Tensor]]
"""Function from [B, 3, 299, 299] float32, about -1 to 1, to features by tap; the flag requests the last tap."""


class CleanFID(FeatureExtractor):
    """Extractor of features in clean-fid's mode `clean`."""

    kind: ClassVar[str] = "clean-fid"
    resizes: ClassVar[tuple[str, ...]] = ("pil-bicubic",)

    def __init__(
        self, network: Network, taps: tuple[int, ...], digest: str, network_name: str, *, device: str = "cpu"
    ) -> None:
        self._network = network
        self._resize = build_resizer("clean")
        self.program = {"program": RELEASE, "network": network_name}
        self.digest = digest
        self.taps = taps
        self.device = torch.device(device)
        self.images_at_once = torch_fidelity.images_at_once(self.device)

    @classmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        program = published_program(path, [INCEPTION_TORCHSCRIPT])
        if program is None:
            tensors = read_inception(path)
            layers, name = torch_fidelity.Layers(tensors, device), f"{torch_fidelity.RELEASE}, its layers"
            return cls(layers, TAPS, tensor_digest(trunk(tensors)), name, device=device)
        tensors = read_inception_program(program, path)
        require_finite(tensors)
        name = f"TorchScript {hashlib.sha256(program).hexdigest()}"
        run = load_program(program, device).layers

        def network(pixels: Tensor, deep: bool) -> dict[int, Tensor]:
            return {TAPS[-1]: run(pixels).view(len(pixels), TAPS[-1])}

        return cls(network, TAPS[-1:], tensor_digest(trunk(tensors)), name, device=device)

    def extract(self, images: Tensor, resize: str, taps: Collection[int]) -> dict[int, Tensor]:
        # Pillow resizes on the CPU, one channel of one image at a time.
        arrays = [self._resize(image.permute(1, 2, 0).numpy()) for image in images.cpu()]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().to(self.device)
        return self._network((pixels - 128) / 128, TAPS[-1] in taps)
