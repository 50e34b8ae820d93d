"""Images as data: a folder of image files, or one file with all images.

A folder's images are its files with the suffixes in `PICTURES`, also in subfolders, in the order of their relative
paths, without hidden files. Each file is JPEG, PNG, WebP or BMP, regardless of its suffix. A folder without images that
holds one file `images.tar`, `.npz`, `.parquet` or `.safetensors` stands for that file.

A tar without compression has the images of the folder that it was packed from, in the same order. A safetensors file
has the tensor `images`, uint8 [n, 3, H, W]. An .npz file of `numpy.savez` has the array `arr_0`, uint8 [n, H, W, 3] or
[n, 3, H, W]. A Parquet file has a column of image files' bytes, or of structs with `bytes`, that is named `image` or is
the only one. Its images are named by the column `id` or `image_id`, else by `path` in the structs.

Images are requested by index, and by name where they have names. The same images have the same digests in all forms:
files that of their bytes, arrays that of their pixels.

The camera's orientation (EXIF) is applied, grey becomes three equal channels, palettes and CMYK become RGB as in
Pillow, and colour profiles are ignored. Then images are cropped and resized; see `Fit`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePosixPath
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
from evalsvc.data.archives import (
    MAX_STORED_BYTES,
    StoredFiles,
    bounded_names,
    is_image,
    npz_images,
    tar_images,
)
from evalsvc.data.captions import CaptionData
from evalsvc.data.files import CACHED_FILES, read_bytes, unreadable
from evalsvc.errors import CheckpointError, InvalidData, show_name
from evalsvc.files.opened import Allow, OpenFile, anywhere, open_file, opened_folder
from evalsvc.spec.images import ARCHIVES, PICTURES, Fit

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that Pillow may detect: its other readers are many and old, and one runs a program."""
TENSOR = "images"

MAX_PIXELS = 89_478_485
"""Largest number of pixels of one image, a quarter of a gigabyte decoded: Pillow's limit for decompression bombs."""
KEPT_DIGESTS = 1 << 16

THREADS = 4
"""Number of threads that read and resize ahead; Pillow releases the interpreter's lock for both."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class StoredImage:
    """One reading of an image: the pixels are those of the bytes that the digest is of."""

    digest: str
    pixels: Callable[[Fit | None], NDArray[numpy.uint8]]
    """Function that returns the image as uint8 [3, size, size], or [3, H, W] as stored without a fit. Raises
    InvalidData for what is no image to measure."""


class ImageSource(ABC):
    """Images in a fixed order."""

    path: str
    named: bool = True
    """Whether images are requested by name; else by index only, and `name` is the index."""
    captions: CaptionData | None = None
    """Texts of all images in their order, if the file with the images has texts."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image in messages and results."""

    @abstractmethod
    def index(self, image: str | int) -> int:
        """Return the index of an image that is requested by name or index."""

    def load(self, index: int, fit: Fit | None) -> NDArray[numpy.uint8]:
        """Load an image as `StoredImage.pixels` does."""
        return self.stored(index).pixels(fit)

    def content_digest(self, index: int) -> str:
        """Return the SHA-256 of the stored image."""
        return self.stored(index).digest

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
    """Open the images of a folder, or of a file with a suffix in `ARCHIVES`. Raises InvalidData for no images.

    `allow` checks every file that is opened, also later: links in a folder may lead anywhere.
    """
    path = Path(path)
    if path.is_dir():
        with opened_folder(path, "image folder", allow) as folder:
            listed = sorted(bounded_names(_image_names(folder), str(path)))
            archives = [name for suffix in ARCHIVES if (folder / (name := f"images{suffix}")).exists()]
        if listed or not archives:
            return _Folder(path, listed, allow)
        if len(archives) > 1:
            raise InvalidData(f"the folder {path} holds {' and '.join(archives)}; keep one of them")
        path /= archives[0]
    file = open_file(path, "image folder or file", allow)
    with file.stream:
        if path.suffix not in _ARCHIVES:
            raise InvalidData(f"{path} is neither a folder of images nor a file {', '.join(ARCHIVES)}; give one")
        return _archive(path, file)


class _Files(ImageSource):
    """Images that are stored as files are, with names."""

    def __init__(self, path: Path, files: StoredFiles) -> None:
        self.path, self._names, self._read = str(path), files.names, files.read
        self.captions, self.named = files.captions, files.named
        self._indices = {name: index for index, name in enumerate(self._names)}
        if not self._names:
            raise InvalidData(f"{path} holds no images; add files with the suffix {', '.join(PICTURES)}")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def index(self, image: str | int) -> int:
        if isinstance(image, int):
            return self._checked(image)
        if image not in self._indices:
            near = difflib.get_close_matches(image, self._names[:2000], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {len(self)}, the first is {self._names[0]!r}"
            raise InvalidData(f"{self.path} has no image {image!r}{hint}")
        return self._indices[image]

    def stored(self, index: int) -> StoredImage:
        return stored_image(self._read(index), f"{self.path}/{self._names[index]}")


class _Folder(_Files):
    def __init__(self, path: Path, names: Sequence[str], allow: Allow) -> None:
        super().__init__(path, StoredFiles(names, lambda index: read_bytes(self._file(index), allow, MAX_STORED_BYTES)))
        self._allow = allow

    def load(self, index: int, fit: Fit | None) -> NDArray[numpy.uint8]:
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

    def _file(self, index: int) -> Path:
        return Path(self.path) / self._names[index]


_digests: dict[tuple[Path, tuple[int, ...]], str] = {}
"""Digests of files that were read before: a plan and its shards request the same files."""


def _image_names(folder: Path) -> Iterator[str]:
    for place, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        for name in files:
            if is_image(PurePosixPath(name)):
                yield (below / name).as_posix()


class _Packed(ImageSource):
    """Images of one size that are stored as pixels, without names."""

    named = False

    def __init__(self, path: Path, shape: Sequence[int], pixels: Callable[[int], NDArray[numpy.uint8]]) -> None:
        self.path, self._count, self._pixels = str(path), shape[0], pixels
        _check_size(f"{path}, image 0", shape[3], shape[2])

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return str(index)

    def index(self, image: str | int) -> int:
        if isinstance(image, str) and not image.isdecimal():
            raise InvalidData(f"{self.path} has no names, so {image!r} is none of its images; give 0…{len(self) - 1}")
        return self._checked(int(image))

    def load(self, index: int, fit: Fit | None) -> NDArray[numpy.uint8]:
        return fit_pixels(self._pixels(index), fit)

    def stored(self, index: int) -> StoredImage:
        pixels = self._pixels(index)
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        return StoredImage(digest, partial(fit_pixels, pixels))


def _safetensors(path: Path, file: OpenFile) -> _Packed:
    try:
        read_header(Path(file.name))
        # The file is memory-mapped, and so the descriptor may be closed.
        content: Any = safe_open(file.name, framework="numpy")
        names = list(content.keys())
        slices = content.get_slice(TENSOR) if TENSOR in names else None
        dtype, shape = (slices.get_dtype(), slices.get_shape()) if slices else ("", [])
    except (SafetensorError, CheckpointError, OSError):
        # The library's messages quote the file.
        raise InvalidData(f"{path} is not a safetensors file, or is cut off; copy or write it again") from None
    if slices is None:
        shown = ", ".join(map(show_name, sorted(names)[:10])) or "nothing"
        raise InvalidData(f"{path} has no tensor `{TENSOR}`, found {shown}; name the images `{TENSOR}`")
    if dtype != "U8" or len(shape) != 4 or shape[1] != 3 or not shape[0]:
        raise InvalidData(f"{path}: `{TENSOR}` is {dtype} {shape}; it must be U8 [n, 3, height, width], n above 0")
    return _Packed(path, shape, lambda index: content.get_slice(TENSOR)[index])


def _parquet(path: Path, file: OpenFile) -> ImageSource:
    module = importlib.import_module("evalsvc.data.parquet_images")
    stored: StoredFiles = module.parquet_images(file, str(path))
    return _Files(path, stored)


_ARCHIVES: Mapping[str, Callable[[Path, OpenFile], ImageSource]] = {
    ".tar": lambda path, file: _Files(path, tar_images(file, str(path))),
    ".npz": lambda path, file: _Packed(path, *npz_images(file, str(path))),
    ".parquet": _parquet,
    ".safetensors": _safetensors,
}


@lru_cache(maxsize=CACHED_FILES)
def _archive(path: Path, file: OpenFile) -> ImageSource:  # a rewritten file is another `OpenFile`
    return _ARCHIVES[path.suffix](path, file)


def load_image(path: str | Path, fit: Fit | None, allow: Allow = anywhere) -> NDArray[numpy.uint8]:
    """Return uint8 [3, size, size] of an image file, or [3, H, W] without a fit; see the module and `Fit`."""
    path = Path(path)
    with open_file(path, "image", allow).stream as stream:
        return _decoded(stream, str(path), fit)


def stored_image(content: bytes, shown: str) -> StoredImage:
    """Return the image file in `content`, which messages name `shown`; its pixels are those of `load_image`."""
    digest = hashlib.sha256(content).hexdigest()
    return StoredImage(digest, lambda fit: _decoded(BytesIO(content), shown, fit))


def _decoded(stream: BinaryIO, shown: str, fit: Fit | None) -> NDArray[numpy.uint8]:
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


def fit_pixels(pixels: NDArray[numpy.uint8], fit: Fit | None) -> NDArray[numpy.uint8]:  # [3, H, W] → [3, size, size]
    """Crop and resize an image in memory, as `load_image` does for a file."""
    if fit is None or pixels.shape == (3, fit.size, fit.size):
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


def _fitted(image: Image, fit: Fit | None) -> NDArray[numpy.uint8]:
    if fit is not None:
        image = _cropped(image, fit)
        if image.size != (fit.size, fit.size):
            image = image.resize((fit.size, fit.size), PIL.Image.Resampling[fit.filter.upper()])
    return numpy.ascontiguousarray(numpy.asarray(image).transpose(2, 0, 1))


def _cropped(image: Image, fit: Fit) -> Image:
    if fit.crop == "center-adm":
        while min(image.size) >= 2 * fit.size:
            image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
        width, height = (round(side * (fit.size / min(image.size))) for side in image.size)
        _check_size(f"an image of {image.width}×{image.height}, resized for the crop center-adm,", width, height)
        image = image.resize((width, height), PIL.Image.Resampling[fit.filter.upper()])
    width, height = image.size
    if fit.crop == "none" or width == height:
        return image
    side = min(width, height)
    rounded = fit.crop == "center-torchvision"  # by Python, a half to the even number
    left, top = (round(margin / 2) if rounded else margin // 2 for margin in (width - side, height - side))
    return image.crop((left, top, left + side, top + side))
