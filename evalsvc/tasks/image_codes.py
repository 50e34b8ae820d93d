"""Encoding images to codes: the part of tasks with an image tokenizer that needs torch."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from pydantic import JsonValue
from torch import Tensor

from evalsvc.data.images import ImageSource
from evalsvc.decoders import ImageDecoder
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.spec.images import Crop, Filter, Fit
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.tasks.task import Context


def require_codebook(layout: VocabularyLayout, decoder: ImageDecoder, name: str) -> None:
    """Raise InvalidData unless the layout and the decoder called `name` have the same codes."""
    size = layout.image.size if layout.image else 0
    if size != decoder.codebook_size:
        where = f" from row {layout.image.offset:,} on" if layout.image else ""
        raise InvalidData(
            f"the checkpoint has {size:,} image ids{where}, but the decoder {name} has {decoder.codebook_size:,}; "
            "set `decoder` to the decoder that the run was trained with, or correct the layout"
        )


def require_grid(layout: VocabularyLayout, grid: tuple[int, int], size: int) -> None:
    """Raise InvalidData unless the layout's images have the rows and columns of the decoder's, for `size` pixels."""
    if layout.image is None or (layout.image.grid, layout.image_prompt, layout.image.row_end) == (None, None, None):
        return
    expected = layout.image.grid or layout.grid_of(grid[0] * grid[1])
    if expected != grid:
        raise InvalidData(
            f"the layout's images have {expected[0]} rows of {expected[1]} codes, but the decoder's images of {size} "
            f"pixels have {grid[0]} rows of {grid[1]}; set the task's `size`, or correct the layout's `image.grid`"
        )


def to_signed(images: Tensor) -> Tensor:
    """Convert pixels [B, 3, H, W] to the input of an encoder in [-1, 1]; the inverse of `decoders.to_uint8`."""
    return images.float() / 127.5 - 1


class ImageCoder:
    """An image decoder, with the resizing of images to its size."""

    def __init__(self, decoder: ImageDecoder, size: int | None, crop: Crop, filter_: Filter) -> None:
        self.decoder = decoder
        self.fit = Fit(size or decoder.resolution, crop, filter_)
        self.grid = decoder.grid(self.fit.size, self.fit.size)
        self.codes = self.grid[0] * self.grid[1]

    def identity(self) -> dict[str, JsonValue]:
        """Return the identity for protocols: the weights, and the resizing of images."""
        return {"decoder": self.decoder.digest, "fit": self.fit.to_json()}

    def require_planned(self, source: ImageSource, images: Sequence[int], digest: str, decoder_digest: object) -> None:
        """Raise DataChanged unless images and decoder are those of the plan."""
        if source.digest(images) != digest:
            raise DataChanged(f"images of {source.path} have changed since this evaluation was planned; evaluate again")
        if self.decoder.digest != decoder_digest:
            raise DataChanged("the decoder's weights have changed since this evaluation was planned; evaluate again")

    def batches(self, context: Context, source: ImageSource, images: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels [B, 3, size, size] uint8 on the CPU and codes [B, N] int64 on the device, in the order of
        `images`. A batch has at most `context.batch_tokens` codes, or a single image."""
        batch = max(1, context.batch_tokens // self.codes)
        for pixels in source.batches(images, self.fit, batch):
            yield pixels, self.decoder.encode(to_signed(pixels))

    def encode(self, context: Context, source: ImageSource, images: Sequence[int]) -> list[array[int]]:
        """Return the codes of each image. A repeated image, as in COCO's captions, is encoded once."""
        distinct = sorted(set(images))
        rows: list[array[int]] = []
        context.report(0)
        for _, codes in self.batches(context, source, distinct):
            rows += [array("i", row) for row in codes.tolist()]
            context.report(0)
        by_image = dict(zip(distinct, rows, strict=True))
        return [by_image[image] for image in images]
