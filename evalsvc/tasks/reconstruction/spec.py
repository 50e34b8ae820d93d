"""The image tokenizer's own floor: what is lost on the way from pixels to codes and back, whatever the language model.

No sampled image can be nearer to real ones than its decoder lets it. The checkpoint's model is not used.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from evalsvc.spec.bounds import MAX_SIDE, Images, ShardSize
from evalsvc.spec.images import Crop, Filter
from evalsvc.spec.paths import AssetName, DataPath
from evalsvc.tasks.task import Task


class Reconstruction(Task):
    """Images against what the image decoder makes of their codes."""

    kind: ClassVar[str] = "reconstruction"
    work: ClassVar[str] = "evalsvc.tasks.reconstruction.work:ReconstructionWork"

    images: DataPath
    """A folder of images, or a safetensors file."""
    decoder: AssetName
    """The image tokenizer: the name of an asset or the path of its checkpoint."""
    decoder_config: AssetName | None = None
    """Its configuration: a registered name such as `movqgan-67M`, or the path of a YAML file [what lies beside the
    checkpoint]."""
    decoder_ema: bool = False
    """Use its averaged weights."""
    samples: Images | None = None
    """How many images, the first so many; fewer are an error [all]."""
    size: int | None = Field(default=None, ge=11, le=MAX_SIDE)
    """Side of the images in pixels [the decoder's]; SSIM needs 11."""
    crop: Crop = "center"
    """`center` cuts the square in the middle, `none` squeezes the whole image to a square."""
    filter: Filter = "lanczos"
    """Of the resampling to `size`."""
    extractor: AssetName | None = "inception"
    """The feature extractor for the Fréchet distances: the name of an asset or the path of its file; None: without."""
    resize: Literal["pil-bicubic", "tf1-bilinear"] = "pil-bicubic"
    """How images come to the extractor's size: as clean-fid or as torch-fidelity. They are different metrics."""
    taps: tuple[Literal[64, 2048], ...] | None = Field(default=None, max_length=2)
    """Features of `fid64` and `fid`; each needs more images than it has features [those that there are enough for]."""
    shard_size: ShardSize = 256
    """Images in a shard; moves no number."""
