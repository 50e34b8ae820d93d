"""From captions to image metrics: sample, decode, extract features, measure.

Work is cut by prompts. A shard returns the features of its images; only the first images are kept, as files to look at.
The first shards compute the features of the reference images, once; later evaluations read them from a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec import catalog
from evalsvc.spec.bounds import MAX_BATCH, MAX_ID, MAX_SIDE, Images, Seed, ShardSize, Word
from evalsvc.spec.images import Crop, Filter, Fit, Resize, Selection, check_resize, fill_in_resize
from evalsvc.spec.looks import Until
from evalsvc.spec.paths import AssetName, DataPath
from evalsvc.spec.sampling import SamplingParams
from evalsvc.tasks.task import Task
from evalsvc.tasks.text_to_image.recipes import PROMPTS, find_protocol

FID_30K = re.compile(r"fid[^a-z0-9]?30k", re.IGNORECASE)
"""Names of suites and tasks that promise a FID of 30,000 images."""

AGREEMENT = "agreement"
"""Metric of the classifier, which needs no features; measured wherever there is a classifier."""


class TextToImage(Task):
    """Images sampled from captions: their distance from real images, and their agreement with their captions."""

    kind: ClassVar[str] = "text_to_image"
    work: ClassVar[str] = "evalsvc.tasks.text_to_image.work:TextToImageWork"
    stages: ClassVar[tuple[str, ...]] = ("model", "decoder")
    needs: ClassVar[str] = "captions, the image decoder, real images, the asset `inception`"
    example: ClassVar[Mapping[str, Any]] = {
        "captions": "/path/to/captions.jsonl",
        "decoder": "/path/to/decoder.ckpt",
        "reference": "/path/to/images",
    }

    protocol: Word | None = None
    """Published recipe, such as `llamagen-coco`, that sets some of the parameters below and refuses other values.
    `samples` may be smaller for a trial, whose metrics do not have the recipe's name."""
    captions: DataPath | None = None
    """Prompts: a file of COCO annotations, CSV or JSONL; `null` samples `samples` images without text."""
    samples: Images | None = None
    """Number of captions to use [all that `select` allows]."""
    select: Selection = "first"
    """Selection of the captions: the first ones, a random choice, or one caption of each of randomly chosen images."""
    select_seed: Seed = 0
    """Seed of the selection of captions."""
    tokenizer: DataPath | None = None
    """The `tokenizer.json` for the captions [the layout's]."""
    decoder: AssetName
    """Image tokenizer: the name of an asset or the path of its checkpoint."""
    decoder_config: AssetName | None = None
    """Configuration of the decoder: a registered name such as `movqgan-67M`, or the path of a YAML file [the file next
    to the decoder's checkpoint]."""
    decoder_ema: bool = False
    """Whether to use the decoder's averaged weights."""
    decoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the decoder's weights. bfloat16 changes pixels, and so every metric slightly."""
    size: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    """Side of the images in pixels [the decoder's]."""
    metrics: tuple[Word, ...] | None = Field(default=None, max_length=64)
    """Image metrics to measure [all that the other parameters and the number of images allow]. `agreement` is measured
    wherever `classifier` is given, and can be the only one."""
    reference: AssetName | None = None
    """Real images: a folder, a safetensors file, or the name of statistics from `evalsvc reference import`."""
    reference_of: Literal["all", "captions"] = "all"
    """Real images to compare with: all, or those of the selected captions."""
    reference_crop: Crop = "center"
    """`center` cuts out the central square, `none` squeezes the whole image to a square."""
    reference_filter: Filter = "lanczos"
    """Filter of the resampling of real images to `reference_size`."""
    reference_size: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    """Side in pixels at which images are compared [that of the sampled images]."""
    filter: Filter = "lanczos"
    """Filter of the resampling of sampled images to `reference_size`, where their size differs."""
    temperature: float = 1.0
    """Temperature of the sampling: divides the logits; 0 takes the likeliest code."""
    top_k: int | None = Field(default=None, ge=1, le=MAX_ID)
    """Number of likeliest codes to draw from [all]."""
    top_p: float | None = None
    """Probability of the likeliest codes to draw from: the fewest codes that reach the probability are kept [all]."""
    guidance_scale: float | Annotated[tuple[float, ...], Field(max_length=16)] = 1.0
    """Scale of classifier-free guidance; several scales give one series each."""
    seed: Seed = 0
    """Seed of the noise, and of subsets that metrics draw."""
    batch: int = Field(default=32, ge=1, le=MAX_BATCH)
    """Number of images sampled together, if memory allows; affects tokens by rounding at most."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the language model's weights; features are float32."""
    weights: Literal["plain", "int8"] = "plain"
    """Format of the language model's weights in memory; `int8` rounds the weights."""
    cache_dtype: Literal["float32", "bfloat16"] | None = None
    """Type of keys and values [the model's]."""
    rotary_inv_freq_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to which training rounded the rotary frequencies; `auto` takes it from the run's configuration."""
    extractor: AssetName = "inception"
    """Inception network of FID: the name of an asset, the path of its file, or a published program, `clean-fid` or
    `torch-fidelity`, whose own code then resizes images, extracts features and computes the metrics that it has."""
    resize: Resize = "pil-bicubic"
    """Method that resizes images to Inception's input: clean-fid's or torch-fidelity's [a program's own]. FIDs by the
    two methods are different metrics."""
    clip: AssetName | None = None
    """CLIP, for `clip_score` and `cmmd`: the name of an asset or the path of its folder [neither metric is
    measured]."""
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
    """Number of images in a shard; does not affect metrics."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        if isinstance(content.get("protocol"), str):
            try:
                content = {**find_protocol(content["protocol"]).fields, **content}
            except UnknownName as error:
                raise ValueError(error.message) from None
        return fill_in_resize(content)

    @field_validator("top_p")
    @classmethod
    def _all_is_none(cls, top_p: float | None) -> float | None:
        return None if top_p == 1 else top_p

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
    def _check(self, info: ValidationInfo) -> TextToImage:
        if self.captions is None and self.samples is None:
            raise ValueError(
                "neither `captions` nor `samples` is given; set `captions`, or `samples` for images without text"
            )
        if self.reference_of == "captions" and (self.captions is None or "/" not in (self.reference or "")):
            raise ValueError(
                "`reference_of: captions` needs captions and images; set `captions`, and `reference` to a folder"
            )
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"guidance_scale is {list(self.scales)}, with a scale twice; list each once")
        if AGREEMENT in (self.metrics or ()) and self.classifier is None:
            raise ValueError(f"`metrics` has {AGREEMENT} without `classifier`; set `classifier`, or remove {AGREEMENT}")
        check_resize(self.extractor, self.resize)
        try:
            for scale in self.scales:
                self.params(scale)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        fields = {} if self.protocol is None else find_protocol(self.protocol).fields
        for field, fixed in fields.items():
            value = getattr(self, field)
            smaller = field == "samples" and value is not None and value < fixed
            if value != fixed and not smaller:
                raise ValueError(
                    f"{field} is {value}, but the protocol {self.protocol} has {fixed}; remove one of the two"
                )
        if self.until is not None and len(self.scales) > 1:
            raise ValueError("`until` needs a single guidance scale; write one task per scale")
        measured = {*(catalog.names("metrics") if self.metrics is None else self.metrics), AGREEMENT}
        if self.until is not None and self.until.metric not in measured:
            raise ValueError(f"until: {UnknownName.among('metric', self.until.metric, measured).message}")
        for name in (self.name, (info.context or {}).get("suite", "")):
            if FID_30K.search(name) and self.samples != PROMPTS:
                number = "all captions" if self.samples is None else f"{self.samples:,}"
                raise ValueError(
                    f"{name!r} promises {PROMPTS:,} images, `samples` is {number}; rename it, or sample more"
                )
        return self

    @property
    def scales(self) -> tuple[float, ...]:
        return self.guidance_scale if isinstance(self.guidance_scale, tuple) else (self.guidance_scale,)

    def params(self, guidance_scale: float) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p, guidance_scale, self.seed)

    def fit(self, side: int) -> Fit:
        """Return the resizing of sampled images of `side` pixels to the size at which they are compared."""
        return Fit(self.reference_size or side, "none", self.filter)
