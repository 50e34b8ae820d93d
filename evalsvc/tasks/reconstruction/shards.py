"""The plan, shards and outputs of a reconstruction task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from evalsvc.files.arrays import Array
from evalsvc.tasks.task import Shard


@dataclass(frozen=True)
class ReconstructionPlan:
    """The common part of all shards of a plan."""

    protocol: Mapping[str, JsonValue]
    """Protocol of the metrics, without the features of distances."""
    features: Mapping[str, str]
    """Protocol's content for the features."""
    taps: Sequence[int]
    """Numbers of features of the distances."""


@dataclass(frozen=True)
class ReconstructionShard(Shard):
    """A contiguous range of images."""

    start: int
    stop: int
    images: str
    """SHA-256 of the images' contents."""
    plan: ReconstructionPlan


@dataclass(frozen=True)
class PairedFeatures:
    """Features of images and, row by row, of their reconstructions."""

    originals: Array[np.float32]  # [n, d]
    reconstructions: Array[np.float32]  # [n, d]


@dataclass(frozen=True)
class ReconstructionOutput:
    """The results of a range of images."""

    names: Sequence[str]
    psnr: Sequence[float]
    """PSNR of each image in dB."""
    ssim: Sequence[float]
    """SSIM of each image."""
    code_counts: Array[np.int64]  # [codebook_size]
    """Number of occurrences of each code."""
    features: Mapping[int, PairedFeatures]
    """Features by tap."""
