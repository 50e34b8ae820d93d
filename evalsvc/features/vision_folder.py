"""A vision transformer in a folder of Hugging Face's layout: configuration, weights, and the preparation of images.

The network is the library's class; no other part of the library is used, so that no file is looked up or downloaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor
from transformers.utils import logging

from evalsvc.checkpoints.tensors import copied, emptied, is_plain, listed, tensor_digest
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, InvalidModelConfig, json_reason, os_reason, show_name
from evalsvc.spec.protocol import canonical_json

MAX_CONFIG_BYTES = 1_000_000
MAX_SIDE = 4096
"""Largest side of an image in pixels."""
MAX_POSITIONS = 2**16

BICUBIC = 3
"""PIL's number of the filter, as in `preprocessor_config.json`."""

Shape = TypeVar("Shape", bound=BaseModel)


@dataclass(frozen=True)
class Preparation:
    """Preparation of an image for the network, as in its training."""

    shorter: int
    """Pixels of the shorter side after resizing."""
    crop: int
    """Side of the central square that is kept, in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Standard deviation by channel, of levels from 0 to 1."""


Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"]


class TransformerShape(BaseModel):
    """Keys of a transformer's configuration that evalsvc uses; every other key is ignored.

    The upper bounds keep a hostile file from building a network for hours.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    hidden_size: int = Field(gt=0, le=2**14)
    num_hidden_layers: int = Field(default=12, gt=0, le=256)
    num_attention_heads: int = Field(gt=0, le=2**10)
    hidden_act: Activation
    layer_norm_eps: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size is no multiple of num_attention_heads")
        return self


class ImageShape(TransformerShape):
    """Shape of a transformer that reads images."""

    image_size: int = Field(default=224, gt=0, le=MAX_SIDE)
    patch_size: int = Field(gt=0, le=MAX_SIDE)

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if not 0 < (self.image_size // self.patch_size) ** 2 <= MAX_POSITIONS:
            raise ValueError(f"image_size over patch_size gives no patch, or more than {MAX_POSITIONS:,}")
        return self


def read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InvalidModelConfig(
            f"{path} cannot be read ({os_reason(error)}); give a folder of Hugging Face's layout, with "
            "config.json, preprocessor_config.json and the weights"
        ) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidModelConfig(f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes; give a configuration")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidModelConfig(f"{path} is no JSON ({json_reason(error)}); copy it again") from None
    if not isinstance(content, dict):
        raise InvalidModelConfig(f"{path} is no JSON object; copy it again")
    return content


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    content = read_json(folder / "config.json")
    if content.get("model_type") != kind:
        raise InvalidModelConfig(
            f"{folder / 'config.json'} is of the model_type {show_name(str(content.get('model_type')))}; give a folder "
            f"with {kind!r}"
        )
    return content


def check_shape(kind: type[Shape], folder: Path, content: object, part: str = "") -> Shape:
    """Return the shape in `config.json`, or in a `part` of it. Raises InvalidModelConfig, without quoting values."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_input=False):
            field = ".".join(str(name) for name in (*([part] if part else ()), *item["loc"]))
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{field}: {message[:1].lower()}{message[1:]}" if field else message)
        raise InvalidModelConfig(
            f"{folder / 'config.json'} is no known configuration: {'; '.join(problems)}; give the file of the model"
        ) from None


def read_preparation(folder: Path) -> Preparation:
    path = folder / "preprocessor_config.json"
    content = read_json(path)
    try:
        crop, size = content["crop_size"], content["size"]
        mean, std = (tuple(float(value) for value in content[key]) for key in ("image_mean", "image_std"))
        prepared = Preparation(_side(size, "shortest_edge"), _side(crop, "height"), mean, std)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InvalidModelConfig(
            f"{path} lacks crop_size, size, image_mean or image_std, or has other values than numbers there; "
            "give the file of the model"
        ) from None
    if content.get("resample", BICUBIC) != BICUBIC or len(mean) != 3 or len(std) != 3:
        raise InvalidModelConfig(
            f"{path} has another filter than bicubic, or not three channels; give the file of the model"
        )
    if not all(map(math.isfinite, (*mean, *std))) or 0 in std:
        raise InvalidModelConfig(f"{path} has a zero or non-finite mean or deviation; give the file of the model")
    if not 0 < prepared.crop <= prepared.shorter <= MAX_SIDE:
        raise InvalidModelConfig(
            f"{path} crops {prepared.crop} of {prepared.shorter} pixels; give a crop within at most {MAX_SIDE:,} pixels"
        )
    return prepared


def _side(size: Mapping[str, str] | str, key: str) -> int:
    """Return a side in pixels; files from before 2022 have a number instead of an object with named sides."""
    return int(size[key] if isinstance(size, Mapping) else size)


def load_network(kind: Any, config: Any, folder: Path, device: str) -> tuple[Any, str]:
    """Load a network of the library's class `kind` with the folder's weights in float32; return it with a digest."""
    # Files of older releases hold position ids, which are no weights.
    named = {name: t for name, t in read_weights(folder).tensors.items() if not name.endswith("position_ids")}
    odd = [name for name, tensor in named.items() if not is_plain(tensor)]
    if problems := listed("no plain floating-point tensor", odd):
        raise CheckpointMismatch(f"the weights in {folder} cannot be loaded; {'; '.join(problems)}")
    tensors = copied(folder, emptied(named), torch.float32, "cpu")
    digest = tensor_digest(tensors)  # over the file's names, since the library's change between releases
    with _without_progress_bar():
        network, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            # Other implementations of attention may round to TF32 on some cards.
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    problems = listed("missing", sorted(report["missing_keys"]))
    problems += listed("unexpected", sorted(report["unexpected_keys"]))
    problems += listed("wrongly shaped", sorted(str(entry[0]) for entry in report["mismatched_keys"]))
    if problems:
        raise CheckpointMismatch(f"the weights in {folder} are not those of its config.json; {'; '.join(problems)}")
    return network.requires_grad_(False).eval().to(device), digest


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def identity(digest: str, preparation: Preparation, config: Mapping[str, object]) -> str:
    """Return the digest of everything that features depend on, such as the number of heads, which no shape shows."""
    content = {"tensors": digest, "preparation": asdict(preparation), "config": dict(config)}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def resize_and_crop(images: Tensor, preparation: Preparation) -> Tensor:  # [B, 3, H, W] → [B, 3, crop, crop], uint8
    """Resize the shorter side by PIL's bicubic filter, rounded to whole levels; crop the centre, as the authors do."""
    height, width = images.shape[2:]
    shorter, crop = preparation.shorter, preparation.crop
    short = min(height, width)
    resized = resize_pil(images, (shorter * height // short, shorter * width // short))
    top, left = ((side - crop) // 2 for side in resized.shape[2:])
    return resized[:, :, top : top + crop, left : left + crop]


def resize_pil(images: Tensor, size: tuple[int, int]) -> Tensor:  # [B, 3, H, W] uint8 → [B, 3, *size] uint8
    """Resize by PIL's bicubic filter, image by image: no other library rounds between the two passes as PIL does."""
    height, width = size
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    resized = [np.array(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)) for array in arrays]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def normalise(images: Tensor, preparation: Preparation, device: torch.device) -> Tensor:  # [B, 3, H, W] float32
    both = torch.tensor((preparation.mean, preparation.std), dtype=torch.float32, device=device)
    mean, std = both[..., None, None].unbind()
    return (images.to(device, torch.float32) / 255 - mean) / std
