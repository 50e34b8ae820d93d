"""What planning, running and merging a reconstruction task hand each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from evalsvc.files.arrays import Array
from evalsvc.tasks.task import Shard


@dataclass(frozen=True)
class ReconstructionPlan:
    """What all shards of a plan have in common."""

    protocol: Mapping[str, JsonValue]
    """Protocol of the metrics, but for the features of distances."""
    features: Mapping[str, str]
    """What protocols say of the features."""
    taps: Sequence[int]
    """Numbers of features of the distances."""


@dataclass(frozen=True)
class ReconstructionShard(Shard):
    """A contiguous range of images."""

    start: int
    stop: int
    images: str
    """SHA-256 of their contents."""
    plan: ReconstructionPlan


@dataclass(frozen=True)
class PairedFeatures:
    """Features of images and, row by row, of what was made of them."""

    originals: Array[np.float32]  # [n, d]
    reconstructions: Array[np.float32]  # [n, d]


@dataclass(frozen=True)
class ReconstructionOutput:
    """What became of a range of images."""

    names: Sequence[str]
    psnr: Sequence[float]
    """In dB, one an image."""
    ssim: Sequence[float]
    """One an image."""
    code_counts: Array[np.int64]  # [codebook_size]
    """How often each code occurs."""
    features: Mapping[int, PairedFeatures]
    """By tap."""
