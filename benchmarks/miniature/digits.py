"""The miniature's images and captions: scikit-learn's 1,797 scanned digits, enlarged, described and split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

SIZE = 32
TEST, VALIDATION = 300, 100
INK = 16
"""The scans' brightest value."""

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORD_TEMPLATES = (
    "a handwritten {}",
    "the number {}",
    "a scan of a {}",
    "{}, written by hand",
    "somebody wrote a {}",
)
NUMERAL_TEMPLATES = (
    "the digit {}",
    "a picture of {}",
    "a small grey {}",
    "{} on black",
    "this image shows {}",
)


def captions(label: int) -> list[str]:
    """Every caption of a digit, those with the word first."""
    words = [template.format(WORDS[label]) for template in WORD_TEMPLATES]
    return words + [template.format(label) for template in NUMERAL_TEMPLATES]


def draw_caption(label: int, generator: torch.Generator) -> str:
    found = captions(label)
    return found[int(torch.randint(len(found), (), generator=generator))]


@dataclass(frozen=True)
class Digits:
    """All scans in scikit-learn's order, and which are for what."""

    scans: Tensor  # [1797, 8, 8] uint8, 0…16
    labels: Tensor  # [1797] int64
    test: list[int]
    validation: list[int]
    train: list[int]

    @cached_property
    def images(self) -> Tensor:  # [1797, 3, 32, 32] uint8
        return enlarge(self.scans)


def load(seed: int) -> Digits:
    """The scans, split by one seeded permutation."""
    content = load_digits()
    scans = torch.from_numpy(content.images).to(torch.uint8)
    order = torch.randperm(len(scans), generator=torch.Generator().manual_seed(seed)).tolist()
    parts = order[:TEST], order[TEST : TEST + VALIDATION], order[TEST + VALIDATION :]
    return Digits(scans, torch.from_numpy(content.target).long(), *(sorted(part) for part in parts))


def enlarge(scans: Tensor) -> Tensor:
    """[n, 8, 8] of 0…16 → [n, 3, 32, 32] uint8: bicubic, clamped, grey."""
    grey = scans[:, None].float() / INK
    grey = functional.interpolate(grey, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    return (grey.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def to_input(images: Tensor) -> Tensor:
    """uint8 [B, 3, 32, 32] → float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


@dataclass(frozen=True)
class Warp:
    """The widest small distortion; a draw is uniform between it and its opposite. No flips: a digit has a side."""

    shift: float
    """Pixels."""
    rotation: float
    """Degrees."""
    scale: float
    """Share of the size."""

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:  # [B, 3, 32, 32] in [-1, 1], and back
        shift_x, shift_y, rotation, scale = (torch.rand(4, len(images), generator=generator) * 2 - 1).unbind()
        angle, size = rotation * math.radians(self.rotation), 1 + scale * self.scale
        cos, sin = angle.cos() * size, angle.sin() * size
        shift = torch.stack((shift_x, shift_y), dim=-1) * self.shift * 2 / SIZE
        rows = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), dim=1)
        grid = functional.affine_grid(torch.cat((rows, shift[..., None]), -1), list(images.shape), align_corners=False)
        return functional.grid_sample(images + 1, grid, align_corners=False) - 1  # outside is black, which is -1
