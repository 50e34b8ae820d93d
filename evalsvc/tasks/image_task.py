"""Parameters and checks that all tasks share which measure images: sampled and external images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from evalsvc.errors import InvalidData, UnknownName
from evalsvc.spec import catalog
from evalsvc.spec.bounds import MAX_SIDE, Images, Seed, ShardSize, Word
from evalsvc.spec.images import Crop, Filter, Fit, Resize, Selection, check_resize, fill_in_resize
from evalsvc.spec.looks import Until
from evalsvc.spec.paths import AssetName, DataPath
from evalsvc.tasks.image_recipes import PROMPTS, find_protocol
from evalsvc.tasks.task import Task

FID_30K = re.compile(r"fid[^a-z0-9]?30k", re.IGNORECASE)
"""Names of suites and tasks that promise a FID of 30,000 images."""

AGREEMENT = "agreement"
"""Metric of the classifier, which needs no features; measured wherever there is a classifier."""


def require_labels(path: str | None, labels: Sequence[int | None]) -> None:
    if None in labels:
        place = labels.index(None) + 1
        raise InvalidData(
            f"{path}: caption {place} has no label, which `by_category` and `classifier` need; add it, or remove these"
        )


def named_images(path: str, named: Sequence[tuple[str, str | int | None]]) -> tuple[str | int, ...]:
    """Return the real images that captions name, by the captions' ids. Raises InvalidData for a caption without one."""
    for caption, image in named:
        if image is None:
            raise InvalidData(f"{path}: the caption {caption} names no image; add the image, or remove `reference_of`")
    return tuple(image for _, image in named if image is not None)


class ImageTask(Task):
    """Images with or without captions: their distance from real images, and their agreement with their captions."""

    protocol: Word | None = None
    """Published recipe, such as `llamagen-coco`, that sets some of the parameters below and refuses other values.
    `samples` may be smaller for a trial, whose metrics do not have the recipe's name, and `metrics` may be others."""
    captions: DataPath | None = None
    """Prompts of the images: a file of COCO annotations, CSV or JSONL."""
    samples: Images | None = None
    """Number of captions to use [all that `select` allows]."""
    select: Selection = "first"
    """Selection of the captions: the first ones, a random choice, or one caption of each of randomly chosen images."""
    select_seed: Seed = 0
    """Seed of the selection of captions."""
    metrics: tuple[Word, ...] | None = Field(default=None, max_length=64)
    """Image metrics to measure [all that the other parameters and the number of images allow, except those on request].
    `agreement` is measured wherever `classifier` is given, and can be the only one."""
    by_category: bool = False
    """Whether to measure `fid` and `fid64` by category too: images whose captions have the label k, from 0, against the
    real images in the k-th folder by name."""
    reference: AssetName | None = None
    """Real images: a folder or an archive of images, or the name of statistics from `evalsvc reference import`. An
    .npz file may state moments: `mu` and `sigma`, and `mu_s` and `sigma_s` for `sfid`."""
    reference_of: Literal["all", "captions"] = "all"
    """Real images to compare with: all, or those of the selected captions."""
    reference_crop: Crop = "center"
    """`center` cuts out the central square, `none` squeezes the whole image to a square."""
    reference_filter: Filter = "lanczos"
    """Filter of the resampling of real images to `reference_size`."""
    reference_size: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    """Side in pixels at which images are compared [that of the task's images]."""
    filter: Filter = "lanczos"
    """Filter of the resampling of the task's images to `reference_size`, where their size differs."""
    seed: Seed = 0
    """Seed of subsets that metrics draw."""
    extractor: AssetName = "inception"
    """Inception network of FID: the name of an asset, the path of its file, or a published program, `clean-fid` or
    `torch-fidelity`, whose own code then resizes images, extracts features and computes the metrics that it has."""
    resize: Resize = "pil-bicubic"
    """Resizing to Inception's input: clean-fid's or torch-fidelity's, each another metric [a program's own]."""
    clip: AssetName | None = None
    """CLIP, for `clip_score`, `clip_s` and `cmmd`: the name of an asset or the path of a folder [none is measured]."""
    dinov2: AssetName | None = None
    """DINOv2, for `fd_dinov2`: the name of an asset or the path of its folder [the metric is not measured]."""
    dinov2_resize: Literal["pil-bicubic-square", "pil-bicubic-crop"] = "pil-bicubic-square"
    """Method that resizes images to DINOv2's input: that of FD-DINOv2's authors, or DINOv2's own."""
    classifier: DataPath | None = None
    """Classifier of the images; measures how often the predicted label is the caption's label [none]."""
    until: Until | None = None
    """Standard error at which to stop, as `{metric: kid, stderr: 0.0005}` [after all images]."""
    keep: int = Field(default=64, ge=0, le=10_000)
    """Number of images to keep, as files and in the grid."""
    shard_size: ShardSize = 256
    """Number of images in a shard; does not affect metrics. On a GPU without `until`, the shards of sampled images are
    whole batches, up to four."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        if isinstance(content.get("protocol"), str):
            try:
                content = {**cls._fixed(content["protocol"]), **content}
            except UnknownName as error:
                raise ValueError(error.message) from None
        return fill_in_resize(content)

    @classmethod
    def _fixed(cls, protocol: str) -> Mapping[str, Any]:
        """Return the recipe's values for parameters of this kind of task: who samples nothing needs no temperature."""
        return {name: value for name, value in find_protocol(protocol).fields.items() if name in cls.model_fields}

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[str, ...] | None) -> tuple[str, ...] | None:
        known = [*catalog.names("metrics"), AGREEMENT]
        for name in metrics or ():
            if name not in known:
                raise ValueError(UnknownName.among("metric", name, known).message)
        if metrics is not None and len(set(metrics)) < len(metrics):
            raise ValueError("a metric is listed twice; list each once")
        return metrics

    @model_validator(mode="after")
    def _check_measuring(self, info: ValidationInfo) -> ImageTask:
        if self.reference_of == "captions" and "/" not in (self.reference or ""):
            raise ValueError("`reference_of: captions` needs both; set `captions`, and `reference` to a folder")
        if self.by_category and (self.reference_of != "all" or "/" not in (self.reference or "")):
            raise ValueError("`by_category` needs all images of a `reference` with a folder per category; set both")
        if AGREEMENT in (self.metrics or ()) and self.classifier is None:
            raise ValueError(f"`metrics` has {AGREEMENT} without `classifier`; set `classifier`, or remove {AGREEMENT}")
        check_resize(self.extractor, self.resize)
        for field, fixed in ({} if self.protocol is None else self._fixed(self.protocol)).items():
            value = getattr(self, field)
            smaller = field == "samples" and value is not None and value < fixed
            if value != fixed and not smaller and field != "metrics":
                raise ValueError(f"{field} is {value}, but the protocol {self.protocol} has {fixed}; remove one")
        measured = {*(catalog.names("metrics") if self.metrics is None else self.metrics), AGREEMENT}
        if self.until is not None and self.until.metric not in measured:
            raise ValueError(f"until: {UnknownName.among('metric', self.until.metric, measured).message}")
        for name in (self.name, (info.context or {}).get("suite", "")):
            if FID_30K.search(name) and self.samples != PROMPTS:
                number = "all captions" if self.samples is None else f"{self.samples:,}"
                raise ValueError(f"{name!r} promises {PROMPTS:,} images, `samples` is {number}; rename, or sample more")
        return self

    @property
    def scales(self) -> tuple[float, ...]:
        """Guidance scales, each a series of its own; a single 1 for images that are not sampled here."""
        return (1.0,)

    def fit(self, side: int) -> Fit:
        """Return the resizing of the task's images, of `side` pixels, to the size at which they are compared."""
        return Fit(self.reference_size or side, "none", self.filter)
