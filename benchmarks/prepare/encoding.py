"""The first stage: every image becomes codes, which are kept by the digest of the stored image."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray

from evalsvc.data.images import THREADS, ImageSource, loaded_ahead
from evalsvc.errors import InvalidData, OutOfMemory
from evalsvc.sampling.memory import is_out_of_memory
from evalsvc.spec.images import Fit
from evalsvc.tasks.image_codes import ImageCoder, to_signed
from prepare.code_store import CodeStore
from prepare.refusals import Refusal

Show = Callable[[str, int, int | None, str], None]
"""Function that shows a stage's name, the units that are done, all units, and the unit."""


@dataclass
class EncodedImages:
    """The images of a source after the first stage."""

    files: dict[int, str] = field(default_factory=dict)
    """SHA-256 of the stored image, by the image's index. The store has the codes of each."""
    refused: dict[int, Refusal] = field(default_factory=dict)
    """Images that cannot be used, by index."""
    encoded: int = 0
    """Number of images that were not in the store."""
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Images per second that were encoded."""
        return self.encoded / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _Examined:
    file: str
    pixels: NDArray[numpy.uint8] | None
    """The cropped image, uint8 [3, size, size]; None if its codes are known."""


def encode_images(
    images: ImageSource, indices: Sequence[int], coder: ImageCoder, store: CodeStore, show: Show
) -> EncodedImages:
    """Encode the images that the store does not have.

    Images are encoded in batches of one shape, the last one padded: an image has the same codes whichever images are
    encoded with it, and so does an interrupted run.

    Raises OutOfMemory; OSError if the disk is full; DataChanged if the source changes meanwhile.
    """
    result = EncodedImages()
    try:
        for done, _ in enumerate(_encoded(images, indices, coder, store, result), 1):
            show("encode", done, len(indices), f"images, {result.rate:.3g} encoded a second")
    finally:
        store.flush()  # also when the command is interrupted
    return result


def _encoded(
    images: ImageSource, indices: Sequence[int], coder: ImageCoder, store: CodeStore, result: EncodedImages
) -> Iterator[None]:
    """Encode images into `store`, and yield after each one that was examined."""
    begun, size = time.monotonic(), coder.fit.size
    batch = coder.decoder.images_at_once(coder.decoder.grid(size, size))
    waiting: dict[str, NDArray[numpy.uint8]] = {}
    examined = loaded_ahead(partial(_examine, images, coder.fit, store), indices, batch + THREADS)
    for done, (index, image) in enumerate(zip(indices, examined, strict=True), 1):
        if isinstance(image, Refusal):
            result.refused[index] = image
        else:
            result.files[index] = image.file
            if image.pixels is not None and image.file not in store:
                waiting[image.file] = image.pixels
        if len(waiting) == batch or (waiting and done == len(indices)):
            _encode(waiting, batch, coder, store)
            result.encoded += len(waiting)
            waiting.clear()
        result.seconds = time.monotonic() - begun
        yield


def _examine(images: ImageSource, fit: Fit, store: CodeStore, index: int) -> _Examined | Refusal:
    try:
        image = images.stored(index)
        return _Examined(image.digest, None if image.digest in store else image.pixels(fit))
    except InvalidData as error:
        name = images.name(index)
        return Refusal.of_error(name, error, str(Path(images.path) / name))
    except MemoryError:
        raise OutOfMemory(
            f"the image {images.name(index)} does not fit into memory; free memory, or remove it"
        ) from None


def _encode(waiting: Mapping[str, NDArray[numpy.uint8]], batch: int, coder: ImageCoder, store: CodeStore) -> None:
    pixels = numpy.stack(list(waiting.values()))
    padded = numpy.zeros((batch, *pixels.shape[1:]), numpy.uint8)
    padded[: len(pixels)] = pixels
    try:
        codes = coder.decoder.encode(to_signed(torch.from_numpy(padded))).cpu().numpy()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{batch} images of {coder.fit.size} pixels do not fit into memory at once; free memory, or choose another "
            "--device"
        ) from None
    for file, image, row in zip(waiting, pixels, codes, strict=False):
        store.add(file, hashlib.sha256(image.tobytes()).hexdigest(), row)
