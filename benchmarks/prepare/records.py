"""Which sequence comes where: the order of the training data, and the images that are held out.

Both depend on the seed and on the content of images and captions alone. Names of files, their order, and what else is
in the data do not matter.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from evalsvc.data.images import ImageSource
from evalsvc.errors import InvalidRequest
from prepare.caption_texts import CaptionEncoder
from prepare.code_store import CodeStore
from prepare.encoding import EncodedImages
from prepare.pairs import PairData
from prepare.refusals import Refusal

KEY_LENGTH = 32


@dataclass(frozen=True)
class PairRecord:
    """A caption with its ids, and the image that it describes."""

    key: str
    """Name of the sequence: a digest of image and caption, without a dot."""
    caption: str
    text_ids: array[int]
    image: str
    """Name of the image in the source; the first one, if the source has the image under several names."""
    file: str
    """SHA-256 of the stored image, by which the store has the codes."""
    pixels: str
    """SHA-256 of the cropped pixels: what the image is, whatever its name and its format."""
    index: int
    """Index of the image in the source."""


@dataclass(frozen=True)
class Records:
    """All sequences in their order."""

    training: Sequence[PairRecord]
    held_out: Sequence[PairRecord]
    refused: Sequence[Refusal]
    """Captions that became no ids."""
    repeated: int
    """Number of pairs whose image and caption equal those of another pair."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what becomes training data and what is held out, in order."""
        total = hashlib.sha256()
        for part in (self.training, self.held_out):
            total.update(f"{len(part)}\n".encode())
            for record in part:
                total.update(f"{record.key} {record.file} {record.image!r}\n".encode("utf-8", "surrogatepass"))
        return total.hexdigest()


@dataclass(frozen=True)
class Split:
    """The rule that draws the order and the images that are held out."""

    seed: int
    images: int
    """Number of images to hold out, with all their captions."""

    def held_out(self, images: set[str]) -> set[str]:
        """Return the digests to hold out. Raises InvalidRequest if none would be left for training."""
        if self.images and self.images >= len(images):
            raise InvalidRequest(
                f"--held-out is {self.images:,}, but the source has {len(images):,} different images that can be used; "
                "hold out fewer"
            )
        return set(sorted(images, key=self.draw)[: self.images])

    def draw(self, name: str) -> bytes:
        """Return a pseudo-random sort key that is the same on every machine and in every version."""
        return hashlib.sha256(f"{self.seed} {name}".encode()).digest()


def arrange(data: PairData, encoded: EncodedImages, store: CodeStore, encode: CaptionEncoder, rule: Split) -> Records:
    """Order the pairs whose images have codes, and hold out the captions of `rule.images` images.

    Raises InvalidRequest if no image would be left for training.
    """
    refused: list[Refusal] = []
    records = list(_records(data, encoded, store, encode, refused))
    held_out = rule.held_out({record.pixels for record in records})
    training = [record for record in records if record.pixels not in held_out]
    return Records(
        sorted(training, key=lambda record: rule.draw(record.key)),
        sorted((record for record in records if record.pixels in held_out), key=lambda record: record.key),
        refused,
        len(records) - len({(record.pixels, record.caption) for record in records}),
    )


def _records(
    data: PairData, encoded: EncodedImages, store: CodeStore, encode: CaptionEncoder, refused: list[Refusal]
) -> Iterator[PairRecord]:
    names = _first_names(data.images, encoded, store)
    times: dict[tuple[str, str], int] = {}
    for pair in data.pairs:
        file = encoded.files.get(pair.image)
        if file is None:
            continue  # the image was refused, with its reason
        ids = encode(pair.caption)
        if isinstance(ids, str):
            refused.append(Refusal(data.images.name(pair.image), ids))
            continue
        pixels = store.pixels(file)
        times[pixels, pair.caption] = number = times.get((pixels, pair.caption), 0) + 1
        key = hashlib.sha256(f"{pixels} {number} {pair.caption}".encode()).hexdigest()[:KEY_LENGTH]
        yield PairRecord(key, pair.caption, ids, names[pixels], file, pixels, pair.image)


def _first_names(images: ImageSource, encoded: EncodedImages, store: CodeStore) -> Mapping[str, str]:
    """Return one name for each image, by the digest of its pixels: the first one in the order of names."""
    names: dict[str, str] = {}
    for index, file in encoded.files.items():
        name, pixels = images.name(index), store.pixels(file)
        names[pixels] = min(name, names.get(pixels, name))
    return names
