"""Interface of an image decoder, from pixels to codes and back, which tasks use for every network."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.errors import InvalidData
from evalsvc.precision import full_precision


class ImageDecoder(nn.Module, ABC):
    """Frozen image tokenizer with a finite codebook, whose codes stand for squares of pixels.

    A subclass defines how its files are recognised (`targets`, `telltale`), how the network is built, and how pixels
    and latents [B, C, h, w] relate: `latents`, `nearest`, `lookup` and `render`, which training may use; and what
    decoding costs: `decode_bytes`, `images_at_once`. All other methods have no gradients.
    """

    targets: ClassVar[tuple[str, ...]]
    """Classes that `model.target` names in configurations of this kind."""
    telltale: ClassVar[str]
    """Name of a parameter that only this kind has; empty if the names do not tell this kind from another."""
    prefixes: ClassVar[tuple[str, ...]] = ()
    """Prefixes of this network's tensors in files that hold other networks as well."""
    extras: ClassVar[tuple[str, ...]] = ()
    """Prefixes of tensors in files of this kind that decoding does not need."""
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Patterns in another publisher's names of tensors, and what the authors write instead."""

    codebook_size: int
    downsampling: int
    """Pixels per code along each side."""
    resolution: int
    """Height and width that the network was made for; multiples of `downsampling` work as well."""
    ignored: tuple[str, ...] = ()
    """Tensors of the file that are no part of the network, such as a training loss; set by `load_decoder`."""

    @classmethod
    @abstractmethod
    def from_config(cls, content: Mapping[str, object]) -> Self:
        """Build the network with random weights."""

    @classmethod
    def recognises(cls, target: str | None, names: Collection[str]) -> bool:
        """Return whether a configuration's `target`, or without a target the parameters' `names`, are of this kind."""
        return target in cls.targets if target else bool(cls.telltale) and cls.telltale in names

    @classmethod
    def authors_name(cls, name: str) -> str:
        """Return the name in the authors' files of a tensor called `name` in a file of another publisher."""
        for pattern, replacement in cls.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def file_name(self, name: str) -> str:
        """Return the name in the authors' files of the parameter `name`. The digest is over these names."""
        return name

    @abstractmethod
    def latents(self, images: Tensor) -> Tensor:  # [B, 3, H, W] in [-1, 1] → [B, C, h, w]
        """Return the latents before quantisation."""

    @abstractmethod
    def nearest(self, latents: Tensor) -> Tensor:  # [B, C, h, w] → [B, h * w] int64
        """Return the code nearest to each position, in row-major order."""

    @abstractmethod
    def lookup(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:  # [B, h * w] int64 → [B, C, h, w]
        """Return the codes' entries in the codebook."""

    @abstractmethod
    def decode_bytes(self, grid: tuple[int, int]) -> int:
        """Return the peak bytes of `decode` on this grid, in addition to weights and result; valid on any device."""

    @abstractmethod
    def images_at_once(self, grid: tuple[int, int]) -> int:
        """Return the number of images that `decode` and `encode` process together, which bounds memory."""

    @abstractmethod
    def render(self, latents: Tensor) -> Tensor:  # [B, C, h, w], quantised → [B, 3, H, W], about [-1, 1], not clamped
        """Return the images."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of codes for an image size in pixels."""
        f = self.downsampling
        if height < f or width < f or height % f or width % f:
            raise InvalidData(f"images of {height}x{width} pixels do not divide into codes of {f}x{f}; resize or crop")
        return height // f, width // f

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:  # [B, 3, H, W] floating-point in [-1, 1] → [B, N] int64, row-major
        """Return the codes of images."""
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InvalidData(f"encode takes floats [B, 3, H, W] in [-1, 1], not {images.dtype} {list(images.shape)}")
        images_at_once, like = self.images_at_once(self.grid(*images.shape[2:])), self._like
        with full_precision(like.device):
            parts = [self.nearest(self.latents(part.to(like))) for part in torch.split(images, images_at_once)]
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:  # [B, 3, H, W] float32, not clamped
        """Return the images of codes, [B, N] integers in row-major order, in a grid, by default a square."""
        grid, device = self._checked_grid(codes, grid), self._like.device
        rows = torch.split(codes.to(device, torch.int64), self.images_at_once(grid))
        with full_precision(device):
            return torch.cat([self.render(self.lookup(part, grid)).float() for part in rows])

    @cached_property
    def digest(self) -> str:
        """Identity of the weights by the authors' names, see `tensor_digest`. Reads all weights, once: on a GPU that
        takes seconds, in which the GPU waits."""
        return tensor_digest({self.file_name(name): tensor for name, tensor in self.state_dict().items()})

    @property
    def _like(self) -> Tensor:
        return next(self.parameters())

    def _checked_grid(self, codes: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        if codes.dim() != 2 or codes.is_floating_point() or codes.dtype == torch.bool:
            raise InvalidData(f"decode takes integer codes [B, N], not {codes.dtype} {list(codes.shape)}")
        side = math.isqrt(codes.shape[1])
        if grid is None and (side == 0 or side * side != codes.shape[1]):
            raise InvalidData(f"{codes.shape[1]} codes do not make a square image; give the grid: rows and columns")
        height, width = grid or (side, side)
        if min(height, width) < 1 or height * width != codes.shape[1]:
            raise InvalidData(
                f"a grid of {height}x{width} has {height * width} codes, {codes.shape[1]} were given; correct the grid"
            )
        if codes.numel():
            low, high = (int(extreme) for extreme in torch.aminmax(codes))
            if low < 0 or high >= self.codebook_size:
                raise InvalidData(
                    f"code {low if low < 0 else high} is outside the codebook 0…{self.codebook_size - 1}; "
                    "give codes of this decoder, without the layout's image offset"
                )
        return height, width


def to_uint8(images: Tensor) -> Tensor:  # [B, 3, H, W] floating-point, about [-1, 1] → [B, 3, H, W] uint8
    """Convert to grey levels by rounding: truncation would darken every image by half a level."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class PixelError:
    """Error of a decoder with reduced precision, in grey levels 0…255 of the values that an image file would hold."""

    images: int
    mean: float
    """Mean of the absolute differences of all channels of all pixels."""
    maximum: int
    changed: float
    """Share of values that differ."""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def pixel_error(
    exact: ImageDecoder, other: ImageDecoder, codes: Tensor, grid: tuple[int, int] | None = None
) -> PixelError:
    """Decode `codes`, [B, N] integers, with both decoders and compare."""
    levels = [to_uint8(decoder.decode(codes, grid)).cpu().short() for decoder in (exact, other)]
    difference = (levels[0] - levels[1]).abs()
    changed = (difference > 0).float().mean()
    return PixelError(len(codes), float(difference.float().mean()), int(difference.max()), float(changed))
