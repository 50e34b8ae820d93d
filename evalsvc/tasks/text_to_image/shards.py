"""What planning, running and merging a text_to_image task hand each other."""

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
    """What all shards of a plan have in common."""

    prompts: str
    """`Prompts.digest`."""
    captions: str
    """Digest of the whole list that the prompts were chosen from."""
    metrics: Sequence[str]
    left_out: Mapping[str, str]
    """Metrics that cannot be measured, and why."""
    expected: Sequence[str]
    """Those of them that a reader would expect."""
    features: Mapping[str, Mapping[str, str]]
    """What protocols say of the features that the metrics read, by key."""
    reference: ReferenceIdentity | None
    """None where no metric compares with real images."""
    real: Sequence[str]
    """Keys of the features that are compared with real images."""
    rows: Sequence[str]
    """Those of them of which a metric needs the real images' features, not only their moments."""


@dataclass(frozen=True)
class ReferenceShard(Shard):
    """Real images whose features are not kept yet."""

    images: ReferencePart
    plan: ImagePlan
    part: Literal["reference"] = "reference"


@dataclass(frozen=True)
class SampleShard(Shard):
    """Prompts of which images are sampled."""

    scale: float
    """Of guidance."""
    start: int
    stop: int
    plan: ImagePlan
    part: Literal["sample"] = "sample"


ImageShard: TypeAlias = ReferenceShard | SampleShard


@dataclass(frozen=True)
class ReferenceOutput:
    """Features of real images."""

    features: Mapping[str, Array[np.float32]]
    """[n, d] by key."""
    part: Literal["reference"] = "reference"


@dataclass(frozen=True)
class SampledImage:
    """One sampled image, without its pixels."""

    id: str
    codes: str
    """Digest of the image's codes."""
    label: int | None
    """Label of the caption."""
    read: int | None
    """Label that the classifier reads; None without a classifier."""

    def to_item(self) -> dict[str, JsonValue]:
        """Return the image's entry in the results per item."""
        item: dict[str, JsonValue] = {"id": self.id, "codes": self.codes}
        return item if self.read is None else item | {"label": self.label, "read": self.read}


@dataclass(frozen=True)
class KeptImage:
    """An image that is kept as a file."""

    index: int
    """Of the prompt."""
    png: bytes
    id: str
    prompt: str


@dataclass(frozen=True)
class ClassifierIdentity:
    """The classifier that has read a shard's images."""

    digest: str
    classes: int
    """Labels that it tells apart."""


@dataclass(frozen=True)
class SampleOutput:
    """What became of a shard's prompts."""

    features: Mapping[str, Array[np.float32]]
    """[n, d] by key."""
    images: Sequence[SampledImage]
    kept: Sequence[KeptImage]
    side: int
    """Height and width of an image."""
    protocol: Mapping[str, JsonValue]
    """What the shard adds to the metrics' protocols."""
    classifier: ClassifierIdentity | None
    cut: int
    """Captions that did not fit the layout."""
    part: Literal["sample"] = "sample"


ImageOutput: TypeAlias = ReferenceOutput | SampleOutput
