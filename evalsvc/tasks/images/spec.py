"""Images that another program made, such as a diffusion model: measured as sampled images are, without a model here.

The checkpoint is the images: a folder or an archive, with or without a file of prompts. Work is cut by images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from evalsvc.spec.images import Crop, Fit
from evalsvc.spec.paths import DataPath
from evalsvc.tasks.image_task import ImageTask


class ExternalImages(ImageTask):
    """Images that another program made: their distance from real images, and their agreement with their captions.

    The checkpoint is a folder of images, or an archive: `.tar`, `.npz`, `.parquet` or `.safetensors`. An image is named
    after the id of its prompt, `ID.png`, or `ID_0.png`, `ID_1.png` and so on for several images of a prompt.
    """

    kind: ClassVar[str] = "images"
    work: ClassVar[str] = "evalsvc.tasks.images.work:ExternalImagesWork"
    reads: ClassVar[Literal["weights", "images"]] = "images"
    stages: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[str] = "images as the checkpoint, real images, the asset `inception`"
    example: ClassVar[Mapping[str, Any]] = {"reference": "/path/to/images"}

    captions: DataPath | None = None
    """Prompts of the images: a file of COCO annotations, CSV or JSONL [the prompts that came with the images; without
    any, all images are measured, and no metric of captions]."""
    crop: Crop | None = None
    """Part to measure of an image that is not square, in the words of `reference_crop`; needs `reference_size` [such an
    image is refused]."""

    @model_validator(mode="after")
    def _check_crop(self) -> ExternalImages:
        if self.crop is not None and self.reference_size is None:
            raise ValueError("`crop` is given without `reference_size`; set `reference_size`, or remove `crop`")
        return self

    def fit(self, side: int) -> Fit:
        return Fit(self.reference_size or side, self.crop or "none", self.filter)
