"""The image tokenizer's own floor: what is lost on the way from pixels to codes and back, whatever the language model.

No sampled image can be nearer to real ones than its decoder lets it. The checkpoint's model is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from evalsvc.spec.bounds import MAX_SIDE, Images, ShardSize
from evalsvc.spec.images import Crop, Filter, Resize, check_resize, fill_in_resize
from evalsvc.spec.paths import AssetName, DataPath
from evalsvc.tasks.task import Task


class Reconstruction(Task):
    """Real images against what the image decoder makes of their codes: the floor of every sampled image."""

    kind: ClassVar[str] = "reconstruction"
    work: ClassVar[str] = "evalsvc.tasks.reconstruction.work:ReconstructionWork"
    needs: ClassVar[str] = "real images, the image decoder, the asset `inception`"
    example: ClassVar[Mapping[str, Any]] = {"images": "/path/to/images", "decoder": "/path/to/decoder.ckpt"}

    images: DataPath
    """A folder of images, or a safetensors file."""
    decoder: AssetName
    """The image tokenizer: the name of an asset or the path of its checkpoint."""
    decoder_config: AssetName | None = None
    """Configuration of the decoder: a registered name such as `movqgan-67M`, or the path of a YAML file [the file
    beside the decoder's checkpoint]."""
    decoder_ema: bool = False
    """Whether to use the decoder's averaged weights."""
    samples: Images | None = None
    """Number of images to use, the first ones [all]; fewer are an error."""
    size: int | None = Field(default=None, ge=11, le=MAX_SIDE)
    """Side of the images in pixels [the decoder's]; SSIM needs 11."""
    crop: Crop = "center"
    """`center` cuts the square in the middle, `none` squeezes the whole image to a square."""
    filter: Filter = "lanczos"
    """Filter of the resampling to `size`."""
    extractor: AssetName | None = "inception"
    """Feature extractor of the Fréchet distances: the name of an asset, the path of its file, or a published program,
    `clean-fid` or `torch-fidelity`, whose own code then computes the distances; `null` leaves the distances out."""
    resize: Resize = "pil-bicubic"
    """Way in which images come to the extractor's size: clean-fid's or torch-fidelity's [a program's own]. FIDs of the
    two ways are different metrics."""
    taps: tuple[Literal[64, 2048], ...] | None = Field(default=None, max_length=2)
    """Numbers of features, of `fid64` and `fid` [those that there are enough images for]; each needs more images than
    features."""
    shard_size: ShardSize = 256
    """Number of images in a shard; moves no number."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, content: Any) -> Any:
        return fill_in_resize(content) if isinstance(content, Mapping) else content

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_resize(self.extractor, self.resize)
        return self
