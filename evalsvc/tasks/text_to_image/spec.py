"""From captions to image metrics: sample, decode, extract features, measure.

Work is cut by prompts. A shard returns the features of its images; only the first images are kept, as files to look at.
The first shards compute the features of the reference images, once; later evaluations read them from a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from evalsvc.errors import InvalidRequest
from evalsvc.spec.bounds import MAX_BATCH, MAX_ID, MAX_SIDE, Seed
from evalsvc.spec.paths import AssetName, DataPath
from evalsvc.spec.sampling import SamplingParams
from evalsvc.tasks.image_task import ImageTask


class TextToImage(ImageTask):
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

    captions: DataPath | None = None
    """Prompts: a file of COCO annotations, CSV or JSONL; `null` samples `samples` images without text."""
    tokenizer: DataPath | None = None
    """The `tokenizer.json` for the captions [the layout's]."""
    decoder: AssetName
    """Image tokenizer: the name of an asset or the path of its checkpoint."""
    decoder_config: AssetName | None = None
    """Configuration of the decoder: a name such as `movqgan-67M`, or the path of a YAML file [next to `decoder`]."""
    decoder_ema: bool = False
    """Whether to use the decoder's averaged weights."""
    decoder_dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Type of the decoder's arithmetic. bfloat16 changes pixels, and so every metric slightly. tf32 has weights in
    float32, and multiplies convolutions in TF32 on GPUs that have it, from Ampere on; other devices compute float32."""
    size: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    """Side of the images in pixels [the decoder's]."""
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
    """Number of images sampled together, if memory allows; affects tokens by rounding at most. A GPU wants 128 or
    more."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the language model's weights; features are float32. On a GPU, float32 is several times slower than
    bfloat16 and takes twice the memory: TF32 is off."""
    weights: Literal["plain", "int8"] = "plain"
    """Format of the language model's weights in memory; `int8` rounds the weights. `int8` is for CPUs: on a GPU it is
    slower than bfloat16."""
    cache_dtype: Literal["float32", "bfloat16", "float8"] | None = None
    """Type of keys and values [the model's]. float8 (e4m3) rounds those that codes read to 3 bits; it is for GPUs from
    Ada and Hopper on, where a step reads half the bytes of bfloat16 keys."""
    rotary_inv_freq_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to which training rounded the rotary frequencies; `auto` takes it from the run's configuration."""

    @field_validator("top_p")
    @classmethod
    def _all_is_none(cls, top_p: float | None) -> float | None:
        return None if top_p == 1 else top_p

    @model_validator(mode="after")
    def _check_sampling(self) -> TextToImage:
        if self.captions is None and self.samples is None:
            raise ValueError("neither `captions` nor `samples` is given; set `captions`, or `samples` without text")
        if self.reference_of == "captions" and self.captions is None:
            raise ValueError("`reference_of: captions` needs captions; set `captions`")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"guidance_scale is {list(self.scales)}, with a scale twice; list each once")
        try:
            for scale in self.scales:
                self.params(scale)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        if self.until is not None and len(self.scales) > 1:
            raise ValueError("`until` needs a single guidance scale; write one task per scale")
        return self

    @property
    def scales(self) -> tuple[float, ...]:
        return self.guidance_scale if isinstance(self.guidance_scale, tuple) else (self.guidance_scale,)

    def params(self, guidance_scale: float) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p, guidance_scale, self.seed)
