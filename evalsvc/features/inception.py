"""FID's Inception network of 2015-12-05, which defines the metric, for inference.

The layers are torch-fidelity's (0.4.0, `feature_extractor_inceptionv3.py`), which differ from torchvision's Inception
in the pools. Batch norms are folded into the convolutions, and averages are taken after the convolutions that follow,
which have fewer channels. Features are equal to 2e-6.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.errors import CheckpointMismatch
from evalsvc.features.extractor import FeatureExtractor
from evalsvc.features.inception_weights import CLASSIFIER, read_inception, require_finite, trunk
from evalsvc.models import private

SIZE = 299
TAPS = (64, 2048)
SPATIAL = 2023
"""Tap of sFID: the first 7 channels of `mixed_6/conv`, 17 × 17 × 7 numbers in the order row, column, channel, as in
guided-diffusion's `evaluations/evaluator.py`."""
LOGITS = 1008
"""Tap of the classifier's logits, where the weights have a classifier."""
EPSILON = 1e-3  # of the batch norms


class Inception(FeatureExtractor):
    """Extractor of the stem's means, FID's pooled features, sFID's spatial ones, and the Inception Score's logits.

    Logits have no bias of the classifier, as in the original score and in torch-fidelity.
    """

    kind: ClassVar[str] = "inception"
    resizes: ClassVar[tuple[str, ...]] = ("pil-bicubic", "tf1-bilinear")

    def __init__(self, tensors: Mapping[str, Tensor], *, device: str = "cpu", fused: bool | None = None) -> None:
        """Build the network from the tensors of `read_inception`.

        `fused` makes oneDNN rectify together with the convolution, by default where supported.
        """
        require_finite(tensors)
        self.digest = tensor_digest(trunk(tensors))
        """Digest of the unfolded tensors, by torch-fidelity's names; equal for every published file."""
        self._whole_digest = tensor_digest(tensors) if CLASSIFIER in tensors else self.digest
        self.device = torch.device(device)
        # More images do not fit into a CPU's caches.
        self.images_at_once = 8 if self.device.type == "cpu" else 64
        network = _Network()
        try:
            network.load_state_dict(fold_batch_norms(tensors))
        except RuntimeError as error:
            raise CheckpointMismatch(
                f"the weights are of another network than FID's Inception: {error}; run: evalsvc assets pull inception"
            ) from None
        network.requires_grad_(False)
        self._network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if fused is None:
            fused = self.device.type == "cpu" and private.has_convolution_by_onednn()
        for module in self._network.modules():
            if isinstance(module, _Conv):
                module.fused = fused
        self._classifier = tensors[CLASSIFIER].to(device) if CLASSIFIER in tensors else None
        self.taps = (*TAPS, SPATIAL) if self._classifier is None else (*TAPS, SPATIAL, LOGITS)

    @classmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        return cls(read_inception(path), device=device)

    def digest_of(self, tap: int) -> str:
        return self._whole_digest if tap == LOGITS else self.digest

    def extract(self, images: Tensor, resize: str, taps: Collection[int]) -> dict[int, Tensor]:
        pixels = RESIZES[resize](images.to(self.device, torch.float32))
        inputs = pixels.sub_(128).div_(128).contiguous(memory_format=torch.channels_last)
        # The stem is a tenth of the work.
        features: dict[int, Tensor] = self._network(inputs, deep=set(taps) != {64}, spatial=SPATIAL in taps)
        if LOGITS in taps and self._classifier is not None:
            features[LOGITS] = functional.linear(features[2048], self._classifier)
        return features

    def advice(self, taps: Collection[int]) -> str:
        if LOGITS not in taps:
            return ""
        return (
            "; these weights lack the classifier that logits need: pull a file with a classifier, such as "
            "torch-fidelity's weights-inception-2015-12-05-6726825d.pth: evalsvc assets pull inception --from PATH"
        )


def resize_pil_bicubic(images: Tensor) -> Tensor:  # [B, 3, H, W] float32, 0 … 255 → [B, 3, 299, 299]
    """Resize as clean-fid's mode `clean`: PIL's bicubic filter with antialiasing, clipped and not rounded.

    Within 0.005 grey levels of PIL. Source: clean-fid 0.1.35, `resize.py`; Pillow, `Resample.c`.
    """
    rows, columns = (bicubic_filter(size, SIZE).to(images.device) for size in images.shape[2:])
    return (rows @ (images @ columns.T)).clamp_(0, 255)


@lru_cache(maxsize=16)
def bicubic_filter(size: int, target: int) -> Tensor:  # [target, size] float32
    """Return PIL's bicubic filter along one side: the weights of the source's pixels in each target pixel.

    Placed and normalised in float64. When the image shrinks, the filter widens by the ratio of the sizes.
    """
    scale = size / target
    width = max(scale, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(size, dtype=torch.float64)
    # Whole numbers decide which pixels count, as in PIL: the filter is cut off at its borders.
    first = (centres - 2 * width + 0.5).floor().clamp_min(0)
    last = (centres + 2 * width + 0.5).floor().clamp_max(size)
    weights = _bicubic((pixels + 0.5 - centres[:, None]) / width)
    weights *= (pixels >= first[:, None]) & (pixels < last[:, None])
    return (weights / weights.sum(1, keepdim=True)).float()


def _bicubic(x: Tensor) -> Tensor:  # Keys' cubic convolution with a = -1/2
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resize_tf1_bilinear(images: Tensor) -> Tensor:  # [B, 3, H, W] float32, 0 … 255 → [B, 3, 299, 299]
    """Resize by TensorFlow 1's bilinear method: corners not aligned, no half-pixel centres, no antialiasing.

    Bit for bit torch-fidelity's: the same sums in the same order. Source: torch-fidelity 0.4.0,
    `interpolate_compat_tensorflow.py`.
    """
    low_x, high_x, weight_x = _tf1_grid(images.shape[3], images.device)
    low_y, high_y, weight_y = _tf1_grid(images.shape[2], images.device)
    left = images[:, :, :, low_x]
    rows = left + (images[:, :, :, high_x] - left) * weight_x
    top = rows[:, :, low_y]
    return top + (rows[:, :, high_y] - top) * weight_y[:, None]


def _tf1_grid(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    at = torch.arange(SIZE, dtype=torch.float32, device=device) * torch.tensor(size / SIZE, dtype=torch.float32)
    low = at.long()
    return low, (low + 1).clamp_max(size - 1), at - low.float()


RESIZES = {"pil-bicubic": resize_pil_bicubic, "tf1-bilinear": resize_tf1_bilinear}
"""Resizing functions by name, since each defines another metric: FID is 45.3 and 46.8 on the same images."""


def fold_batch_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold each convolution and its batch norm into one convolution with a bias, computed in float64."""
    folded = {}
    for name in (key.removesuffix(".conv.weight") for key in tensors if key.endswith(".conv.weight")):
        parts = ("weight", "bias", "running_mean", "running_var")
        gain, bias, mean, var = (tensors[f"{name}.bn.{part}"].double() for part in parts)
        scale = gain / torch.sqrt(var + EPSILON)
        weight = tensors[f"{name}.conv.weight"].double() * scale[:, None, None, None]
        folded[f"{name}.weight"], folded[f"{name}.bias"] = weight.float(), (bias - mean * scale).float()
    return folded


_BLOCKS = {
    "A": "branch1x1 64 1x1, branch5x5_1 48 1x1, branch5x5_2 64 5x5, branch3x3dbl_1 64 1x1, branch3x3dbl_2 96 3x3, "
    "branch3x3dbl_3 96 3x3",
    "B": "branch3x3 384 3x3 2, branch3x3dbl_1 64 1x1, branch3x3dbl_2 96 3x3, branch3x3dbl_3 96 3x3 2",
    "C": "branch1x1 192 1x1, branch7x7_1 {0} 1x1, branch7x7_2 {0} 1x7, branch7x7_3 192 7x1, branch7x7dbl_1 {0} 1x1, "
    "branch7x7dbl_2 {0} 7x1, branch7x7dbl_3 {0} 1x7, branch7x7dbl_4 {0} 7x1, branch7x7dbl_5 192 1x7",
    "D": "branch3x3_1 192 1x1, branch3x3_2 320 3x3 2, branch7x7x3_1 192 1x1, branch7x7x3_2 192 1x7, "
    "branch7x7x3_3 192 7x1, branch7x7x3_4 192 3x3 2",
    "E": "branch1x1 320 1x1, branch3x3_1 384 1x1, branch3x3_2a 384 1x3, branch3x3_2b 384 3x1, branch3x3dbl_1 448 1x1, "
    "branch3x3dbl_2 384 3x3, branch3x3dbl_3a 384 1x3, branch3x3dbl_3b 384 3x1",
}
"""Name, width, kernel and, if not 1, stride of a block's convolutions, which are numbered along a branch."""


class _Network(nn.Module):
    """Trunk of the network, up to the pooled 2,048 features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (
            _Block(_BLOCKS["A"], inner, _AveragedConv(inner, pooled, 1))
            for inner, pooled in ((192, 32), (256, 64), (288, 64))
        )
        self.Mixed_6a = _Block(_BLOCKS["B"], 288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (
            _Block(_BLOCKS["C"].format(width), 768, _AveragedConv(768, 192, 1)) for width in (128, 160, 160, 192)
        )
        self.Mixed_7a = _Block(_BLOCKS["D"], 768)
        self.Mixed_7b = _Block(_BLOCKS["E"], 1280, _AveragedConv(1280, 192, 1))
        self.Mixed_7c = _Block(_BLOCKS["E"], 2048, _MaximumConv(2048, 192, 1))

    def forward(self, x: Tensor, deep: bool, spatial: bool) -> dict[int, Tensor]:  # [B, 3, 299, 299]
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)  # [B, 64, 73, 73]
        taps = {64: x.mean((2, 3))}
        if not deep:
            return taps
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)  # [B, 192, 35, 35]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)  # [B, 768, 17, 17]
        x = self.Mixed_6c(self.Mixed_6b(x))
        if spatial:  # the branch is computed again in its block, for less than a hundredth of the work
            taps[SPATIAL] = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [B, 2048, 8, 8]
        return taps | {2048: x.mean((2, 3))}


class _Conv(nn.Conv2d):
    """Convolution with its folded batch norm and the rectifier after it."""

    fused = False
    """Whether oneDNN convolves and rectifies in one call, with the weights in oneDNN's layout."""
    rectified = True
    _packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            x = super().forward(x)
            return functional.relu_(x) if self.rectified else x
        place = (self.padding, self.stride, self.dilation, self.groups)
        if self._packed is None:
            self._packed = private.reorder_convolution_weight(self.weight, place, list(x.shape))
        return private.convolution_by_onednn(x, self._packed, self.bias, place, "relu" if self.rectified else "none")


class _AveragedConv(_Conv):
    """Average and the 1×1 convolution after it, in reverse order with the same sums.

    TensorFlow's average does not count the padding, unlike that of torchvision's Inception.
    """

    rectified = False

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu_(functional.avg_pool2d(super().forward(x), 3, 1, 1, count_include_pad=False))


class _MaximumConv(_Conv):
    """Maximum and convolution of the published network's last block, where the paper has an average."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.max_pool2d(x, 3, stride=1, padding=1))


class _Block(nn.Module):
    """Branches of convolutions next to each other, and a pooled one, by default the maximum that halves the map."""

    def __init__(self, convolutions: str, inner: int, branch_pool: _Conv | None = None) -> None:
        super().__init__()
        self.sources: dict[str, str] = {}
        widths = {"": inner}
        for name, width, sides, *halved in map(str.split, convolutions.split(", ")):
            stem, _, place = name.rpartition("_")
            number = int(place.rstrip("ab")) if stem else 1
            self.sources[name] = source = f"{stem}_{number - 1}" if number > 1 else ""
            high, wide = map(int, sides.split("x"))
            padding = (0, 0) if halved else (high // 2, wide // 2)
            stride = 2 if halved else 1
            self.add_module(name, _Conv(widths[source], int(width), (high, wide), stride, padding))
            widths[name] = int(width)
        self.branch_pool = branch_pool

    def forward(self, x: Tensor) -> Tensor:
        maps = {"": x}
        for name, source in self.sources.items():
            maps[name] = self.get_submodule(name)(maps[source])
        ends = [maps[name] for name in self.sources if name not in self.sources.values()]
        pooled = functional.max_pool2d(x, 3, stride=2) if self.branch_pool is None else self.branch_pool(x)
        return torch.cat([*ends, pooled], 1)
