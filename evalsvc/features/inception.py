"""FID's Inception network: the one of 2015-12-05 that the metric is defined by, for inference.

The layers are torch-fidelity's (0.4.0, `feature_extractor_inceptionv3.py`); they differ from torchvision's Inception in
their pools. Batch norms are folded into the convolutions and memory is laid out channels last: 1.6 times as fast, with
features equal to 2e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.errors import CheckpointMismatch, InvalidData, InvalidRequest, NonFinite
from evalsvc.weights import some, tensor_digest

Resize = Literal["pil-bicubic", "tf1-bilinear"]

SIZE = 299
TAPS = (64, 2048)
EPSILON = 1e-3
"""Of the batch norms."""
IMAGES_AT_ONCE = 32
"""The stem's activations of so many images take 400 MB."""


class Inception:
    """Images to features, in full float32 whatever the process allows elsewhere."""

    def __init__(self, tensors: Mapping[str, Tensor], *, device: str = "cpu") -> None:
        """`tensors` are those of `read_inception`, with the batch norms apart.

        Raises:
            NonFinite: NaN or infinity in them.
            CheckpointMismatch: their shapes are another network's.
        """
        broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
        if broken:
            raise NonFinite(f"the Inception weights hold NaN or infinity in {some(broken)}; pull them again")
        self.digest = tensor_digest(tensors)
        """Of the tensors before folding, under torch-fidelity's names: the same for every file that they come in."""
        self.device = torch.device(device)
        network = _Network()
        try:
            network.load_state_dict(fold_batch_norms(tensors))
        except RuntimeError as error:
            raise CheckpointMismatch(f"the weights are of another network than FID's Inception: {error}") from None
        network.requires_grad_(False)
        self._network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def features(
        self,
        images: Tensor,  # [B, 3, H, W] uint8
        resize: Resize,
        taps: Collection[int] = TAPS,
    ) -> dict[int, Tensor]:  # by tap, [B, tap] float32
        """Features of `images`, on this extractor's device. The first tap alone takes a tenth of the work.

        Raises:
            InvalidData: the images have another shape or dtype.
            InvalidRequest: there is no such tap or resize.
        """
        _check(images, resize, taps)
        rows: dict[int, list[Tensor]] = {tap: [] for tap in taps}
        with _full_precision(self.device):
            for batch in torch.split(images, IMAGES_AT_ONCE):
                pixels = RESIZES[resize](batch.to(self.device, torch.float32))
                inputs = ((pixels - 128) / 128).contiguous(memory_format=torch.channels_last)
                for tap, found in self._network(inputs, deep=2048 in taps).items():
                    if tap in rows:
                        rows[tap].append(found)
        empty = torch.empty(0, device=self.device)
        return {tap: torch.cat(parts) if parts else empty.reshape(0, tap) for tap, parts in rows.items()}


def _check(images: Tensor, resize: str, taps: Collection[int]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or 0 in images.shape[2:]:
        found = f"{str(images.dtype)[6:]} {list(images.shape)}"
        raise InvalidData(f"images are {found}; they must be uint8 [B, 3, H, W]")
    if resize not in RESIZES:
        raise InvalidRequest(f"resize is {resize!r}; it must be one of {', '.join(RESIZES)}")
    if not taps or not set(taps) <= set(TAPS):
        raise InvalidRequest(f"taps are {sorted(taps)}; there are {', '.join(map(str, TAPS))}")


def resize_pil_bicubic(
    images: Tensor,  # [B, 3, H, W] float32, 0 … 255
) -> Tensor:  # [B, 3, 299, 299]
    """clean-fid's mode `clean`: PIL's bicubic filter with antialiasing, clipped and not rounded to whole levels.

    Within 0.005 grey levels of PIL. Source: clean-fid 0.1.35, `resize.py`.
    """
    # PIL places its filter in float64; in float32 noise comes out up to 0.007 levels off.
    resized = functional.interpolate(images.double(), (SIZE, SIZE), mode="bicubic", antialias=True)
    return resized.float().clamp(0, 255)


def resize_tf1_bilinear(
    images: Tensor,  # [B, 3, H, W] float32, 0 … 255
) -> Tensor:  # [B, 3, 299, 299]
    """TensorFlow 1's bilinear resize, as in the original metric: corners not aligned, pixels without half, no filter.

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
    """Of each output pixel: its two neighbours in the input, and the weight of the second."""
    at = torch.arange(SIZE, dtype=torch.float32, device=device) * torch.tensor(size / SIZE, dtype=torch.float32)
    low = at.long()
    return low, (low + 1).clamp_max(size - 1), at - low.float()


RESIZES = {"pil-bicubic": resize_pil_bicubic, "tf1-bilinear": resize_tf1_bilinear}
"""Named, because they make different metrics of one FID: 45.3 and 46.8 on the same images."""


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No TF32, no bf16: cuDNN's convolutions use TF32 unless told otherwise, and a caller may have allowed more.

    Both sides of a distance must have been computed alike: the same images in bf16 have a FID of 0.09 to themselves.
    """
    backends = (torch.backends.cudnn.conv, torch.backends.mkldnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def fold_batch_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each convolution and its batch norm as one convolution with a bias, computed in float64."""
    folded = {}
    for name in (key.removesuffix(".conv.weight") for key in tensors if key.endswith(".conv.weight")):
        gain, bias, mean, var = (
            tensors[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / torch.sqrt(var + EPSILON)
        weight = tensors[f"{name}.conv.weight"].double() * scale[:, None, None, None]
        folded[f"{name}.weight"], folded[f"{name}.bias"] = weight.float(), (bias - mean * scale).float()
    return folded


class _Network(nn.Module):
    """The trunk, up to the pooled 2,048 features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(128)
        self.Mixed_6c = _BlockC(160)
        self.Mixed_6d = _BlockC(160)
        self.Mixed_6e = _BlockC(192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b = _BlockE(1280, _average)
        self.Mixed_7c = _BlockE(2048, _maximum)

    def forward(
        self,
        x: Tensor,  # [B, 3, 299, 299]
        deep: bool,
    ) -> dict[int, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)  # [B, 64, 73, 73]
        taps = {64: x.mean((2, 3))}
        if not deep:
            return taps
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)  # [B, 192, 35, 35]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)  # [B, 768, 17, 17]
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [B, 2048, 8, 8]
        return taps | {2048: x.mean((2, 3))}


class _Conv(nn.Conv2d):
    """A convolution with its folded batch norm, and what follows each of them."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu_(super().forward(x))


def _average(x: Tensor) -> Tensor:
    """TensorFlow's average leaves the padding out of its count, unlike torchvision's Inception."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    """The published network has a maximum in its last block, where its paper has an average."""
    return functional.max_pool2d(x, 3, stride=1, padding=1)


class _BlockA(nn.Module):
    def __init__(self, inner: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inner, 64, 1)
        self.branch5x5_1 = _Conv(inner, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(inner, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(inner, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_average(x)),
        ]
        return torch.cat(branches, 1)


class _BlockB(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inner, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(inner, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            functional.max_pool2d(x, 3, stride=2),
        ]
        return torch.cat(branches, 1)


class _BlockC(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, width, 1)
        self.branch7x7_2 = _Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = _Conv(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = _Conv(768, width, 1)
        self.branch7x7dbl_2 = _Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = _Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = _Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = _Conv(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_average(x)),
        ]
        return torch.cat(branches, 1)


class _BlockD(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(inner, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(inner, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch3x3_2(self.branch3x3_1(x)),
            self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))),
            functional.max_pool2d(x, 3, stride=2),
        ]
        return torch.cat(branches, 1)


class _BlockE(nn.Module):
    def __init__(self, inner: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._pool = pool
        self.branch1x1 = _Conv(inner, 320, 1)
        self.branch3x3_1 = _Conv(inner, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(inner, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(inner, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self._pool(x)),
        ]
        return torch.cat(branches, 1)
