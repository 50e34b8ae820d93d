"""The floor of the image tokenizer: the loss from pixels to codes and back, independent of the language model.

No sampled image can be nearer to real images than its decoder allows. The checkpoint's model is not used.
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
    """Distance between real images and their reconstructions by the image decoder: the floor of every sampled image."""

    kind: ClassVar[str] = "reconstruction"
    work: ClassVar[str] = "evalsvc.tasks.reconstruction.work:ReconstructionWork"
    stages: ClassVar[tuple[str, ...]] = ("decoder",)
    needs: ClassVar[str] = "real images, the image decoder, the asset `inception`"
    example: ClassVar[Mapping[str, Any]] = {"images": "/path/to/images", "decoder": "/path/to/decoder.ckpt"}

    images: DataPath
    """Real images: a folder of images, or a safetensors file."""
    decoder: AssetName
    """Image tokenizer: the name of an asset or the path of its checkpoint."""
    decoder_config: AssetName | None = None
    """Configuration of the decoder: a name such as `movqgan-67M`, or the path of a YAML file [next to `decoder`]."""
    decoder_ema: bool = False
    """Whether to use the decoder's averaged weights."""
    samples: Images | None = None
    """Number of images to use, from the beginning [all]; fewer are an error."""
    size: int | None = Field(default=None, ge=11, le=MAX_SIDE)
    """Side of the images in pixels [the decoder's]; SSIM needs 11."""
    crop: Crop = "center"
    """`center` cuts out the central square, `none` squeezes the whole image to a square, `center-adm` resizes and cuts
    as guided-diffusion's `center_crop_arr`, like many papers on ImageNet."""
    filter: Filter = "lanczos"
    """Filter of the resampling to `size` [`lanczos`; with the crop `center-adm`, `bicubic`]."""
    extractor: AssetName | None = "inception"
    """Feature extractor of the Fréchet distances: the name of an asset, the path of its file, or a published program,
    `clean-fid` or `torch-fidelity`, whose own code then computes the distances; `null` leaves the distances out."""
    resize: Resize = "pil-bicubic"
    """Resizing to Inception's input: clean-fid's or torch-fidelity's, each another metric [a program's own]."""
    taps: tuple[Literal[64, 2048], ...] | None = Field(default=None, max_length=2)
    """Numbers of features, for `fid64` and `fid` [those with enough images]; each needs more images than features."""
    lpips: AssetName | None = None
    """LPIPS: the asset `lpips-vgg`, or the path of a folder with the same files [the metric is not measured]."""
    shard_size: ShardSize = 256
    """Number of images in a shard; does not affect metrics."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, content: Any) -> Any:
        return fill_in_resize(content) if isinstance(content, Mapping) else content

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_resize(self.extractor, self.resize)
        return self
