"""Images as data: a folder of image files, or a safetensors file with all images.

A folder's images are its files with the suffixes in `SUFFIXES`, also in subfolders, in the order of their relative
paths, without hidden files. Each file is JPEG, PNG, WebP or BMP, regardless of its suffix. A safetensors file has the
tensor `images`, uint8 [n, 3, H, W]. Images are requested by index, in a folder also by relative path.

The camera's orientation (EXIF) is applied, grey becomes three equal channels, palettes and CMYK become RGB as in
Pillow, and colour profiles are ignored. Then images are cropped and resized; see `Fit`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy
import PIL.Image
import PIL.ImageOps
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evalsvc.checkpoints.formats import read_header
from evalsvc.data.files import CACHED_FILES, read_bytes, unreadable
from evalsvc.errors import CheckpointError, InvalidData, show_name
from evalsvc.files.opened import Allow, OpenFile, anywhere, open_file, opened_folder
from evalsvc.spec.images import Fit

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that Pillow may detect: its other readers are many and old, and one runs a program."""
TENSOR = "images"

MAX_PIXELS = 89_478_485
"""Largest number of pixels of one image, a quarter of a gigabyte decoded: Pillow's limit for decompression bombs."""
MAX_STORED_BYTES = 1 << 28
"""Largest number of bytes of a stored image that is read as a whole: those of MAX_PIXELS without compression."""
KEPT_DIGESTS = 1 << 16

THREADS = 4
"""Number of threads that read and resize ahead; Pillow releases the interpreter's lock for both."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class StoredImage:
    """One reading of an image: the pixels are those of the bytes that the digest is of."""

    digest: str
    pixels: Callable[[Fit], NDArray[numpy.uint8]]
    """Function that returns the image as uint8 [3, size, size]. Raises InvalidData for what is no image to measure."""


class ImageSource(ABC):
    """Images in a fixed order."""

    path: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image in messages and results."""

    @abstractmethod
    def index(self, image: str | int) -> int:
        """Return the index of an image that is requested by name or index."""

    @abstractmethod
    def load(self, index: int, fit: Fit) -> NDArray[numpy.uint8]:
        """Load an image as uint8 [3, size, size]. Raises InvalidData for a file that is not an image to measure."""

    @abstractmethod
    def content_digest(self, index: int) -> str:
        """Return the SHA-256 of the stored image."""

    @abstractmethod
    def stored(self, index: int) -> StoredImage:
        """Read an image of at most MAX_STORED_BYTES once, for its digest and its pixels."""

    def digest(self, indices: Sequence[int]) -> str:
        """Return the identity of these images in this order: a digest of their content, without their names."""
        return hashlib.sha256("".join(self.content_digest(index) for index in indices).encode()).hexdigest()

    def batches(self, indices: Sequence[int], fit: Fit, batch: int, threads: int = THREADS) -> Iterator[Tensor]:
        """Yield uint8 [B, 3, size, size] with B = `batch`, or fewer in the last batch, in the order of `indices`."""
        loaded = loaded_ahead(lambda index: self.load(index, fit), indices, batch + threads, threads)
        while images := list(islice(loaded, batch)):
            yield torch.from_numpy(numpy.stack(images))

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise InvalidData(f"{self.path} has no image {index}; give one of 0…{len(self) - 1}")
        return index


def loaded_ahead(
    load: Callable[[int], Loaded], indices: Iterable[int], ahead: int, threads: int = THREADS
) -> Iterator[Loaded]:
    """Yield `load(index)` in the order of `indices`, while threads load up to `ahead` more."""
    pending: deque[Future[Loaded]] = deque()
    executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="images")
    try:
        for index in indices:
            pending.append(executor.submit(load, index))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def read_images(path: str | Path, allow: Allow = anywhere) -> ImageSource:
    """Open the images of a folder, or of a file with the suffix .safetensors. Raises InvalidData for no images.

    `allow` checks every file that is opened, also later: links in a folder may lead anywhere.
    """
    path = Path(path)
    if path.is_dir():
        return _Folder(path, allow)
    file = open_file(path, "image folder or file", allow)
    with file.stream:
        if path.suffix != ".safetensors":
            raise InvalidData(f"{path} is neither a folder of images nor a .safetensors file; give one of the two")
        return _packed(path, file)


class _Folder(ImageSource):
    def __init__(self, path: Path, allow: Allow) -> None:
        self.path = str(path)
        self._allow = allow
        with opened_folder(path, "image folder", allow) as folder:
            self._names = sorted(_image_names(folder))
        self._indices = {name: index for index, name in enumerate(self._names)}
        if not self._names:
            raise InvalidData(f"the folder {path} holds no images; add files with the suffix {', '.join(SUFFIXES)}")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def index(self, image: str | int) -> int:
        if isinstance(image, int):
            return self._checked(image)
        if image not in self._indices:
            near = difflib.get_close_matches(image, self._names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {len(self)}, the first is {self._names[0]!r}"
            raise InvalidData(f"the folder {self.path} has no image {image!r}{hint}")
        return self._indices[image]

    def load(self, index: int, fit: Fit) -> NDArray[numpy.uint8]:
        return load_image(self._file(index), fit, self._allow)

    def content_digest(self, index: int) -> str:
        path = self._file(index)
        file = open_file(path, "image", self._allow)
        with file.stream as stream:
            key = (file.real, file.version)
            if key not in _digests:
                if len(_digests) >= KEPT_DIGESTS:
                    _digests.clear()
                try:
                    _digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
                except OSError as error:
                    raise unreadable(path, error) from None
            return _digests[key]

    def stored(self, index: int) -> StoredImage:
        path = self._file(index)
        return stored_image(read_bytes(path, self._allow, MAX_STORED_BYTES), str(path))

    def _file(self, index: int) -> Path:
        return Path(self.path) / self._names[index]


_digests: dict[tuple[Path, tuple[int, ...]], str] = {}
"""Digests of files that were read before: a plan and its shards request the same files."""


def _image_names(folder: Path) -> Iterator[str]:
    for place, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield (below / name).as_posix()


class _Packed(ImageSource):
    def __init__(self, path: Path, file: OpenFile) -> None:
        self.path = str(path)
        try:
            read_header(Path(file.name))
            self._content: Any = safe_open(file.name, framework="numpy")
            names = list(self._content.keys())  # type: ignore[no-untyped-call]
            slices = self._content.get_slice(TENSOR) if TENSOR in names else None  # type: ignore[no-untyped-call]
            dtype, shape = (slices.get_dtype(), slices.get_shape()) if slices else ("", [])
        except (SafetensorError, CheckpointError, OSError):
            # The library's messages quote the file.
            raise InvalidData(f"{path} is not a safetensors file, or is cut off; copy or write it again") from None
        if slices is None:
            shown = ", ".join(map(show_name, sorted(names)[:10])) or "nothing"
            raise InvalidData(f"{path} has no tensor `{TENSOR}`, found {shown}; name the images `{TENSOR}`")
        if dtype != "U8" or len(shape) != 4 or shape[1] != 3 or not shape[0]:
            raise InvalidData(f"{path}: `{TENSOR}` is {dtype} {shape}; it must be U8 [n, 3, height, width], n above 0")
        _check_size(f"{path}, image 0", shape[3], shape[2])
        self._count: int = shape[0]

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return str(index)

    def index(self, image: str | int) -> int:
        if isinstance(image, str) and not image.isdecimal():
            raise InvalidData(f"{self.path} has no names, so {image!r} is none of its images; give 0…{len(self) - 1}")
        return self._checked(int(image))

    def load(self, index: int, fit: Fit) -> NDArray[numpy.uint8]:
        return fit_pixels(self._pixels(index), fit)

    def content_digest(self, index: int) -> str:
        return _pixel_digest(self._pixels(index))

    def stored(self, index: int) -> StoredImage:
        pixels = self._pixels(index)
        return StoredImage(_pixel_digest(pixels), partial(fit_pixels, pixels))

    def _pixels(self, index: int) -> NDArray[numpy.uint8]:
        pixels: NDArray[numpy.uint8] = self._content.get_slice(TENSOR)[index]
        return pixels


# A rewritten file is another `OpenFile`. The file is memory-mapped, and so the descriptor may be closed.
_packed = lru_cache(maxsize=CACHED_FILES)(_Packed)


def load_image(path: str | Path, fit: Fit, allow: Allow = anywhere) -> NDArray[numpy.uint8]:
    """Return uint8 [3, size, size] of an image file; see the module and `Fit` for the processing."""
    path = Path(path)
    with open_file(path, "image", allow).stream as stream:
        return _decoded(stream, str(path), fit)


def stored_image(content: bytes, shown: str) -> StoredImage:
    """Return the image file in `content`, which messages name `shown`; its pixels are those of `load_image`."""
    digest = hashlib.sha256(content).hexdigest()
    return StoredImage(digest, lambda fit: _decoded(BytesIO(content), shown, fit))


def _decoded(stream: BinaryIO, shown: str, fit: Fit) -> NDArray[numpy.uint8]:
    try:
        with PIL.Image.open(stream, formats=FORMATS) as image:
            _check_size(shown, *image.size)
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise InvalidData(f"{shown} has {frames} frames; save a single frame")
            image.load()
            upright = PIL.ImageOps.exif_transpose(image)
    except (MemoryError, InvalidData):
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise _too_large(shown, "too many") from None
    except PIL.UnidentifiedImageError:
        raise InvalidData(f"{shown} is not a JPEG, PNG, WebP or BMP image; save it as one of these") from None
    except Exception:  # each of Pillow's formats raises other errors, and some quote the file
        raise InvalidData(f"{shown} is not an image that can be read, or is truncated; save it again") from None
    return _fitted(_opaque_rgb(shown, upright), fit)


def fit_pixels(pixels: NDArray[numpy.uint8], fit: Fit) -> NDArray[numpy.uint8]:  # [3, H, W] → [3, size, size]
    """Crop and resize an image in memory, as `load_image` does for a file."""
    if pixels.shape == (3, fit.size, fit.size):
        return pixels
    return _fitted(PIL.Image.fromarray(pixels.transpose(1, 2, 0)), fit)


def _check_size(where: str, width: int, height: int) -> None:
    if min(width, height) < 2:
        raise InvalidData(f"{where} is {width}×{height}, which is too small; give at least 2×2 pixels")
    if width * height > MAX_PIXELS:
        raise _too_large(where, f"{width}×{height}")


def _too_large(where: str, size: str) -> InvalidData:
    return InvalidData(
        f"{where} has {size} pixels, more than the {MAX_PIXELS:,} that are decoded; give a smaller image"
    )


def _opaque_rgb(shown: str, image: Image) -> Image:
    if image.mode.startswith(("I", "F")):
        raise InvalidData(f"{shown} has pixels of mode {image.mode}; save it with 8 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        least = image.getchannel("A").getextrema()[0]
        if least != 255:
            raise InvalidData(
                f"{shown} has an alpha channel that is not opaque (down to {least} of 255), so its colours depend on a "
                "background; flatten the image onto a background and save it without alpha"
            )
    return image.convert("RGB")


def _fitted(image: Image, fit: Fit) -> NDArray[numpy.uint8]:
    resampling = PIL.Image.Resampling[fit.filter.upper()]
    if fit.crop == "center-adm":
        while min(image.size) >= 2 * fit.size:
            image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
        width, height = (round(side * (fit.size / min(image.size))) for side in image.size)
        _check_size(f"an image of {image.width}×{image.height}, resized for the crop center-adm,", width, height)
        image = image.resize((width, height), resampling)
    width, height = image.size
    if fit.crop != "none" and width != height:
        side = min(width, height)
        rounded = fit.crop == "center-torchvision"  # by Python, a half to the even number
        left, top = (round(margin / 2) if rounded else margin // 2 for margin in (width - side, height - side))
        image = image.crop((left, top, left + side, top + side))
    if image.size != (fit.size, fit.size):
        image = image.resize((fit.size, fit.size), resampling)
    return numpy.ascontiguousarray(numpy.asarray(image).transpose(2, 0, 1))


def _pixel_digest(pixels: NDArray[numpy.uint8]) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
