"""Pairs of captions and images, out of every kind of source.

A source is one of these:

- a folder of images, each with its caption in a text file of the same name: `cat.jpg`, `cat.txt`;
- COCO annotations, CSV or JSONL, see `evalsvc.data.captions`, with a folder of images;
- WebDataset's tar files, see `tars.py`.

A caption or an image that cannot be used is left out, with its reason. Nothing else of the source is skipped silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalsvc.data.captions import read_captions
from evalsvc.data.files import read_bytes
from evalsvc.data.images import ImageSource, read_images
from evalsvc.errors import InvalidData, InvalidRequest
from evalsvc.files.opened import Allow, open_file, opened_folder
from prepare.caption_texts import MAX_CAPTION_BYTES, caption_of, problem_of
from prepare.refusals import Refusal
from prepare.tars import Sample, TarImages, read_samples

MAX_CAPTION_FILE = 1 << 30
"""Largest number of bytes of a file of captions, which is parsed as a whole."""

MAX_PAIRS = 5_000_000
"""Largest number of pairs of one source; a pair takes about a kilobyte of memory."""


@dataclass(frozen=True)
class Pair:
    """A caption that can be used, and the image that it describes."""

    caption: str
    image: int
    """Index of the image in the source's images."""


@dataclass(frozen=True)
class PairData:
    """The pairs of a source in its order."""

    images: ImageSource
    pairs: Sequence[Pair]
    refused: Sequence[Refusal]
    """Captions and images that were left out so far."""


def read_source(source: Path, images: Path | None, allow: Allow) -> PairData:
    """Read the captions of a source, and list its images. `allow` checks every file that is opened, also later.

    Raises:
        InvalidRequest: `images` is missing for a file of captions, or is given for another source.
        InvalidData: the source is missing or broken, is none of the kinds above, or has more than MAX_PAIRS captions.
    """
    is_folder, tars = os.path.isdir(source), _tars(source, allow)
    if images is not None and (is_folder or tars):
        raise InvalidRequest(f"--images is given, but {source} holds its own images; leave --images out")
    if tars:
        return _read_tars(source, tars, allow)
    return _read_folder(source, allow) if is_folder else _read_caption_file(source, images, allow)


def _tars(source: Path, allow: Allow) -> list[Path]:
    """Return the tar files that a source is, or has directly in its folder, in the order of their names."""
    if not os.path.isdir(source):
        return [source] if source.suffix == ".tar" else []
    with opened_folder(source, "source", allow) as folder:
        return [source / name for name in sorted(os.listdir(folder)) if name.endswith(".tar") and name[0] != "."]


def _read_folder(folder: Path, allow: Allow) -> PairData:
    source = read_images(folder, allow)
    names = (source.name(index) for index in range(len(source)))
    return _judged(source, ((name, index, _read_text(folder, name, allow)) for index, name in enumerate(names)))


def _read_text(folder: Path, image: str, allow: Allow) -> str | Refusal:
    """Return the caption in the text file next to an image, or why the caption cannot be used."""
    path = (folder / image).with_suffix(".txt")
    if not path.exists():
        return Refusal(image, "the image has no text file with its caption")
    try:
        return caption_of(read_bytes(path, allow, MAX_CAPTION_BYTES))
    except InvalidData as error:
        return Refusal.of_error(f"{image.rpartition('.')[0]}.txt", error, str(path))


def _read_tars(source: Path, tars: Sequence[Path], allow: Allow) -> PairData:
    refused: list[Refusal] = []

    def refuse(refusal: Refusal) -> None:
        refused.append(refusal)
        _require_few(refused, source, "members that are left out")

    samples: list[Sample] = []
    for tar in tars:
        for sample in read_samples(tar, allow, refuse):
            samples.append(sample)
            _require_few(samples, source, "pairs")
    if not samples:
        reason = f"; the first of {len(refused):,} problems: {refused[0]}" if refused else ""
        raise InvalidData(f"{source} has no images with captions{reason}")
    images = TarImages(source, [sample.image for sample in samples], allow)
    data = _judged(images, ((sample.image.shown, index, sample.caption) for index, sample in enumerate(samples)))
    return PairData(images, data.pairs, [*refused, *data.refused])


def _require_few(items: Sequence[object], source: Path | str, what: str) -> None:
    """Raise InvalidData for more than MAX_PAIRS items, before they fill the memory."""
    if len(items) > MAX_PAIRS:
        raise InvalidData(f"{source} has more than {MAX_PAIRS:,} {what}; cut it into several sources")


def _read_caption_file(path: Path, images: Path | None, allow: Allow) -> PairData:
    with open_file(path, "source", allow).stream as stream:
        size = os.fstat(stream.fileno()).st_size
    if size > MAX_CAPTION_FILE:
        raise InvalidData(f"{path} has {size:,} bytes, more than {MAX_CAPTION_FILE:,}; cut it into several sources")
    if images is None:
        raise InvalidRequest(f"{path} holds captions alone; name the folder of their images by --images")
    data, source = read_captions(path, allow), read_images(images, allow)
    places = {source.name(index): index for index in range(len(source))}
    indices = (_place(caption.image, places, len(source)) for caption in data.captions)
    named = zip(data.captions, indices, strict=True)
    return _judged(source, ((f"{path.name}, {caption.where}", index, caption.text) for caption, index in named))


def _place(image: str | int | None, places: dict[str, int], count: int) -> int | str:
    """Return the index of an image, or why a caption has no image."""
    if image is None:
        return "the caption names no image"
    if isinstance(image, int):
        return image if 0 <= image < count else "the image is not in --images"
    return places.get(image, "the image is not in --images")


def _judged(source: ImageSource, captions: Iterable[tuple[str, int | str, str | Refusal]]) -> PairData:
    """Return the pairs out of (name in messages, index of the image, caption); a text in place of an index is why the
    caption has no image."""
    refused: list[Refusal] = []
    pairs = list(_usable(captions, refused))
    _require_few(pairs, source.path, "pairs")
    return PairData(source, pairs, refused)


def _usable(captions: Iterable[tuple[str, int | str, str | Refusal]], refused: list[Refusal]) -> Iterator[Pair]:
    for shown, image, caption in captions:
        if isinstance(caption, Refusal):
            refused.append(caption)
        elif isinstance(image, str):
            refused.append(Refusal(shown, image))
        elif (problem := problem_of(caption)) is not None:
            refused.append(Refusal(shown, problem))
        else:
            yield Pair(caption.strip(), image)
