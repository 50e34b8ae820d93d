"""FID's Inception network as in torch-fidelity: its layers, unfolded, and its resizing.

The weights are those of the asset `inception`. torch-fidelity unpickles any content of a weights file, so evalsvc reads
the file, and torch-fidelity gets the tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.errors import CheckpointMismatch
from evalsvc.features.extractor import FeatureExtractor
from evalsvc.features.inception import LOGITS, TAPS
from evalsvc.features.inception_weights import CLASSIFIER, CLASSIFIER_SHAPE, read_inception, require_finite, trunk

RELEASE = f"torch-fidelity {version('torch-fidelity')}"

STEM = 4
"""Number of layers up to the first 64 features."""


class TorchFidelity(FeatureExtractor):
    """Extractor of features by torch-fidelity's `inception-v3-compat`."""

    kind: ClassVar[str] = "torch-fidelity"
    resizes: ClassVar[tuple[str, ...]] = ("tf1-bilinear",)

    def __init__(self, tensors: Mapping[str, Tensor], *, device: str = "cpu") -> None:
        self._network: Any = build_network(tensors).to(device)
        self.program = {"program": RELEASE}
        self.digest = tensor_digest(trunk(tensors))
        self.taps = TAPS
        self.device = torch.device(device)
        self.images_at_once = images_at_once(self.device)

    @classmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        return cls(read_inception(path), device=device)

    def extract(self, images: Tensor, resize: str, taps: Collection[int]) -> dict[int, Tensor]:
        # The network resizes, and stops after the stem without the last tap.
        wanted = sorted(taps)
        self._network.features_list = [str(tap) for tap in wanted]
        return dict(zip(wanted, self._network(images.to(self.device)), strict=True))


class Layers:
    """torch-fidelity's layers after its resizing, for programs with another resizing."""

    def __init__(self, tensors: Mapping[str, Tensor], device: str | torch.device) -> None:
        *layers, _ = build_network(tensors).to(device).children()  # the last is the classifier
        self._stem, self._trunk = nn.Sequential(*layers[:STEM]), nn.Sequential(*layers[STEM:])

    def __call__(self, pixels: Tensor, deep: bool) -> dict[int, Tensor]:  # [B, 3, 299, 299] float32, about -1 to 1
        stem = self._stem(pixels)
        features = {TAPS[0]: stem.mean((2, 3))}
        return features | {TAPS[-1]: self._trunk(stem).flatten(1)} if deep else features


def build_network(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return torch-fidelity's network of 2015-12-05 in eval mode, with these tensors, on the CPU."""
    require_finite(tensors)
    # The class loads weights only from a file; this file is in memory and holds only what torch has just written. No
    # feature depends on the classifier.
    file, classifier = BytesIO(), {CLASSIFIER: torch.zeros(CLASSIFIER_SHAPE), "fc.bias": torch.zeros(LOGITS)}
    torch.save({**tensors, **classifier}, file)
    file.seek(0)
    try:
        network: nn.Module = FeatureExtractorInceptionV3("evalsvc", [str(TAPS[0])], feature_extractor_weights_path=file)
    except RuntimeError as error:
        raise CheckpointMismatch(
            f"the weights are of another network than FID's Inception: {error}; run: evalsvc assets pull inception"
        ) from None
    return network


def images_at_once(device: torch.device) -> int:
    return 8 if device.type == "cpu" else 64
