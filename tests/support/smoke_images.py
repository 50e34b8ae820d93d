"""The COCO smoke images as tensors, and the Inception weights as torch-fidelity reads them."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from evalsvc.features.inception_weights import read_inception

SIDE = 256


def read_smoke_images(folder: Path) -> tuple[Tensor, Tensor]:
    """The images in order of name and blurred copies, both [n, 3, 256, 256] uint8."""
    crops = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            crops.append(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS))
    return _stack(crops), _stack([crop.filter(ImageFilter.GaussianBlur(2)) for crop in crops])


def pixel_digest(*images: Tensor) -> str:
    return hashlib.sha256(b"".join(batch.numpy().tobytes() for batch in images)).hexdigest()


def torch_fidelity_weights(inception: Path, path: Path) -> Path:
    """The file that `feature_extractor_weights_path` wants; its classifier is of zeros, no feature needs it."""
    tensors = read_inception(inception)
    counts = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for name in tensors
        if name.endswith("running_mean")
    }
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(tensors | counts | classifier, path)
    return path


def _stack(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()
