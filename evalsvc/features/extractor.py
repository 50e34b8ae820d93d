"""What a feature extractor is: images to vectors whose distribution is compared. This is what tasks see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from evalsvc.errors import InvalidData, InvalidRequest
from evalsvc.precision import full_precision


class FeatureExtractor(ABC):
    """A frozen network in full float32, whatever the process allows elsewhere.

    A subclass says how it is read (`from_path`), how images come to its size (`resizes`), and what it finds in one
    batch (`extract`). The features of an image do not depend on what is beside it in the batch, but for rounding.
    """

    kind: ClassVar[str]
    """Its name in the catalog's group `features`."""
    resizes: ClassVar[tuple[str, ...]]
    """How images may come to the network's size, the usual way first. Each makes different features."""

    program: Mapping[str, str] = {}
    """Entries of a protocol that name the published program behind the features; empty for evalsvc's own code."""
    digest: str
    """Identity of the weights, and of what else the features depend on."""
    taps: tuple[int, ...]
    """Numbers of features that it can give, each from another place in the network."""
    device: torch.device
    images_at_once: int
    """Images that go through the network together; moves speed and memory."""

    @classmethod
    @abstractmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        """Read it from a file or folder. Raises CheckpointError, NonFinite, and InvalidModelConfig."""

    @abstractmethod
    def extract(
        self,
        images: Tensor,  # [B, 3, H, W] uint8, of any device
        resize: str,
        taps: Collection[int],
    ) -> dict[int, Tensor]:  # by tap, [B, tap] float32
        """Features of one batch; arguments are checked."""

    def digest_of(self, tap: int) -> str:
        """Identity of what the features of this tap depend on; other than `digest` where that leaves something out."""
        return self.digest

    @torch.inference_mode()
    def features(
        self,
        images: Tensor,  # [B, 3, H, W] uint8
        resize: str,
        taps: Collection[int] | None = None,
    ) -> dict[int, Tensor]:  # by tap, [B, tap] float32
        """Extract features of `images` on this extractor's device, of all taps unless some are given.

        Raises InvalidData for images of another shape or dtype, and InvalidRequest for another tap or resize.
        """
        taps = self.taps if taps is None else taps
        self._check(images, resize, taps)
        rows: dict[int, list[Tensor]] = {tap: [] for tap in taps}
        with full_precision(self.device):
            for batch in torch.split(images, self.images_at_once) if len(images) else ():
                found = self.extract(batch, resize, taps)
                for tap, parts in rows.items():
                    parts.append(found[tap])
        empty = torch.empty(0, device=self.device)
        return {tap: torch.cat(parts) if parts else empty.reshape(0, tap) for tap, parts in rows.items()}

    def _check(self, images: Tensor, resize: str, taps: Collection[int]) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or 0 in images.shape[2:]:
            found = f"{str(images.dtype)[6:]} {list(images.shape)}"
            raise InvalidData(f"images are {found}; they must be uint8 [B, 3, H, W]")
        if resize not in self.resizes:
            raise InvalidRequest(f"resize is {resize!r}; for {self.kind} it must be one of {', '.join(self.resizes)}")
        if not taps or not set(taps) <= set(self.taps):
            raise InvalidRequest(
                f"taps are {sorted(taps)}; {self.kind} has {', '.join(map(str, self.taps))}{self.advice(taps)}"
            )

    def advice(self, taps: Collection[int]) -> str:
        """What to do about taps that are not there; follows the message's list of those that are."""
        return ""
