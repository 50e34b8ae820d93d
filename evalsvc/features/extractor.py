"""Interface of a feature extractor, from images to vectors whose distributions are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from evalsvc.errors import InvalidData, InvalidRequest
from evalsvc.precision import full_precision
from evalsvc.spec import catalog


class FeatureExtractor(ABC):
    """Frozen network in full float32, also where the process allows less precision.

    A subclass defines how the network is read (`from_path`), how images are resized (`resizes`), and the features of
    one batch (`extract`). The features of an image do not depend on the other images of the batch, except for rounding.
    """

    kind: ClassVar[str]
    """Name in the catalog's group `features`."""
    resizes: ClassVar[tuple[str, ...]]
    """Ways to resize images for the network, the default first. Each gives different features."""

    program: Mapping[str, str] = {}
    """Entries of a protocol that name the published program behind the features; empty for evalsvc's code."""
    digest: str
    """Identity of the weights, and of everything else that the features depend on."""
    taps: tuple[int, ...]
    """Numbers of features that the extractor offers, each from another place in the network."""
    device: torch.device
    images_at_once: int
    """Number of images that go through the network together, which affects speed and memory."""

    @classmethod
    @abstractmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        """Load the extractor from a file or folder. Raises CheckpointError, NonFinite and InvalidModelConfig."""

    @abstractmethod
    def extract(
        self,
        images: Tensor,  # [B, 3, H, W] uint8, of any device
        resize: str,
        taps: Collection[int],
    ) -> dict[int, Tensor]:  # by tap, [B, tap] float32
        """Return the features of one batch, with checked arguments."""

    def digest_of(self, tap: int) -> str:
        """Return the identity of everything that a tap's features depend on, by default `digest`."""
        return self.digest

    @torch.inference_mode()
    def features(
        self,
        images: Tensor,  # [B, 3, H, W] uint8
        resize: str,
        taps: Collection[int] | None = None,
    ) -> dict[int, Tensor]:  # by tap, [B, tap] float32
        """Extract features of `images` on the extractor's device, by default of all taps.

        Raises InvalidData for images of another shape or dtype, and InvalidRequest for another tap or resize.
        """
        taps = self.taps if taps is None else taps
        self._check(images, resize, taps)
        rows: dict[int, list[Tensor]] = {tap: [] for tap in taps}
        with full_precision(self.device):
            for batch in torch.split(images, self.images_at_once) if len(images) else ():
                extracted = self.extract(batch, resize, taps)
                for tap, parts in rows.items():
                    parts.append(extracted[tap])
        empty = torch.empty(0, device=self.device)
        return {tap: torch.cat(parts) if parts else empty.reshape(0, tap) for tap, parts in rows.items()}

    def _check(self, images: Tensor, resize: str, taps: Collection[int]) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or 0 in images.shape[2:]:
            kind = f"{str(images.dtype)[6:]} {list(images.shape)}"
            raise InvalidData(f"images are {kind}; give uint8 [B, 3, H, W]")
        if resize not in self.resizes:
            raise InvalidRequest(f"resize is {resize!r}; for {self.kind} give one of {', '.join(self.resizes)}")
        if not taps or not set(taps) <= set(self.taps):
            raise InvalidRequest(
                f"taps are {sorted(taps)}; {self.kind} has {', '.join(map(str, self.taps))}{self.advice(taps)}"
            )

    def advice(self, taps: Collection[int]) -> str:
        """Return advice about missing taps, appended to the message's list of taps."""
        return ""


def load_extractor(kind: str, path: str | Path, *, device: str = "cpu") -> FeatureExtractor:
    """Load the extractor in a file or folder. `kind` is a name of the catalog's group `features`."""
    return cast(FeatureExtractor, catalog.load("features", kind).from_path(Path(path), device=device))
