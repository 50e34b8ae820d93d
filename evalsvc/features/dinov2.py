"""DINOv2: features without labels or texts. Oquab et al., arXiv 2304.07193.

FD-DINOv2 (Stein et al., arXiv 2306.04675) uses the class token after the last norm of ViT-L/14.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import Dinov2Config, Dinov2Model

from evalsvc.errors import InvalidModelConfig
from evalsvc.features.extractor import FeatureExtractor
from evalsvc.features.vision_folder import (
    MAX_SIDE,
    Activation,
    ImageShape,
    Preparation,
    check_shape,
    identity,
    load_network,
    normalise,
    read_config,
    read_preparation,
    resize_and_crop,
    resize_pil,
)

SHAPE = ("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "use_swiglu_ffn")


class DINOv2Shape(ImageShape):
    """Shape of the network; the defaults are the library's, which omits default values from its files."""

    hidden_size: int = Field(default=768, gt=0, le=2**14)
    num_attention_heads: int = Field(default=12, gt=0, le=2**10)
    mlp_ratio: int = Field(default=4, gt=0, le=64)
    patch_size: int = Field(default=14, gt=0, le=MAX_SIDE)
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = Field(default=1e-6, gt=0, le=1)
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True


class DINOv2(FeatureExtractor):
    """Extractor of image features."""

    kind: ClassVar[str] = "dinov2"
    resizes: ClassVar[tuple[str, ...]] = ("pil-bicubic-square", "pil-bicubic-crop")
    """Resizing of the whole image, as in Stein et al., or of the central square, as in `preprocessor_config.json`."""
    images_at_once = 32

    def __init__(self, network: Dinov2Model, preparation: Preparation, digest: str, device: str) -> None:
        self._network: Any = network
        self._preparation = preparation
        self.digest = digest
        self.device = torch.device(device)
        self.taps = (int(self._network.config.hidden_size),)
        embeddings = self._network.embeddings
        side = preparation.crop // cast("int", network.config.patch_size)
        embeddings.position_embeddings = nn.Parameter(
            resample_positions(embeddings.position_embeddings, side), requires_grad=False
        )

    @classmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        """Load a folder with `config.json`, `preprocessor_config.json` and the weights."""
        content, preparation = read_config(path, "dinov2"), read_preparation(path)
        shape = check_shape(DINOv2Shape, path, content)
        if preparation.crop % shape.patch_size:
            raise InvalidModelConfig(
                f"{path / 'preprocessor_config.json'} crops {preparation.crop} pixels, no multiple of the patches' "
                f"{shape.patch_size}; give the file of the model"
            )
        network, digest = load_network(Dinov2Model, Dinov2Config(**shape.model_dump()), path, device)
        about = {key: getattr(shape, key) for key in SHAPE}
        return cls(network, preparation, identity(digest, preparation, about), device)

    def extract(self, images: Tensor, resize: str, taps: Collection[int]) -> dict[int, Tensor]:
        crop = self._preparation.crop
        square = resize == "pil-bicubic-square"
        fitted = resize_pil(images, (crop, crop)) if square else resize_and_crop(images, self._preparation)
        pixels = normalise(fitted, self._preparation, self.device)
        return {self.taps[0]: self._network(pixel_values=pixels).pooler_output}


def resample_positions(positions: Tensor, side: int) -> Tensor:  # [1, 1 + N, D], N a square → [1, 1 + side², D]
    """Scale the position embeddings to another image size by (side + 0.1) / √N, as the authors' code does.

    Source: facebookresearch/dinov2, `vision_transformer.py`, `interpolate_pos_encoding`.
    """
    trained = math.isqrt(positions.shape[1] - 1)
    if trained == side:
        return positions
    grid = positions[:, 1:].reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / trained
    resampled = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], resampled.permute(0, 2, 3, 1).flatten(1, 2)], 1)
