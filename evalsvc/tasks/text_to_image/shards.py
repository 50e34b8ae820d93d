"""The plan, shards and outputs of a text_to_image task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from pydantic import JsonValue

from evalsvc.files.arrays import Array
from evalsvc.tasks.image_reference import ReferenceIdentity, ReferencePart
from evalsvc.tasks.task import Shard


@dataclass(frozen=True)
class ImagePlan:
    prompts: str
    """Digest of the prompts, see `Prompts.digest`."""
    captions: str
    """Digest of the whole list that the prompts were selected from."""
    metrics: Sequence[str]
    left_out: Mapping[str, str]
    """Metrics that cannot be measured, and the reasons."""
    expected: Sequence[str]
    """Names in `left_out` that a reader would expect."""
    features: Mapping[str, Mapping[str, str]]
    """Protocol's content for the features that the metrics use, by key."""
    reference: ReferenceIdentity | None
    """Identity of the real images; None if no metric uses real images."""
    real: Sequence[str]
    """Keys of the features that are compared with real images."""
    rows: Sequence[str]
    """Keys in `real` of which a metric needs the real images' features, not only their moments."""


@dataclass(frozen=True)
class ReferenceShard(Shard):
    images: ReferencePart
    plan: ImagePlan
    part: Literal["reference"] = "reference"


@dataclass(frozen=True)
class SampleShard(Shard):
    scale: float
    start: int
    stop: int
    plan: ImagePlan
    part: Literal["sample"] = "sample"


ImageShard: TypeAlias = ReferenceShard | SampleShard


@dataclass(frozen=True)
class ReferenceOutput:
    features: Mapping[str, Array[np.float32]]
    part: Literal["reference"] = "reference"


@dataclass(frozen=True)
class SampledImage:
    id: str
    codes: str
    label: int | None


@dataclass(frozen=True)
class KeptImage:
    index: int
    png: bytes
    id: str
    prompt: str


@dataclass(frozen=True)
class SampleOutput:
    features: Mapping[str, Array[np.float32]]
    images: Sequence[SampledImage]
    kept: Sequence[KeptImage]
    side: int
    protocol: Mapping[str, JsonValue]
    cut: int
    """Number of captions that did not fit the layout."""
    part: Literal["sample"] = "sample"


ImageOutput: TypeAlias = ReferenceOutput | SampleOutput
