"""The datasheet of a data set, `prepare.json`: what was read, what became of it, and digests of all parts.

The same data and settings give the same datasheet: it holds no times and no paths.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from evalsvc import __version__
from prepare.encoding import EncodedImages
from prepare.pairs import PairData
from prepare.records import Records
from prepare.refusals import Refusal, count_reasons
from prepare.sequence_form import SequenceForm
from prepare.shards import ShardFile

FORMAT = 1
"""Version of the datasheet."""


@dataclass(frozen=True)
class OpenLm:
    """What open_lm must be told about the data."""

    seq_len: int
    """`seq_len` of the model: one less than the ids of a record, since the last id is a target only."""
    vocab_size: int
    """Rows that the model's table needs at least."""
    target_mask_individual: int
    """Row of `pad`, which is no target."""


@dataclass(frozen=True)
class PairCounts:
    """Numbers of pairs of a caption and an image."""

    training: int
    held_out: int
    refused_image: int
    """Pairs whose image was left out."""
    refused_otherwise: int
    """Captions that were left out, and images or members of tars without a caption."""
    repeated: int
    """Pairs whose image and caption equal those of another pair; they are kept."""


@dataclass(frozen=True)
class ImageCounts:
    """Numbers of images that differ in their cropped pixels."""

    training: int
    held_out: int
    refused: int
    """Images that were left out."""
    repeated: int
    """Names and formats of images beyond the first; all of them are on one side of the split."""


@dataclass(frozen=True)
class CaptionCounts:
    """Captions of the training data in ids of the tokenizer."""

    room: int
    """Ids of a caption that fit into a record."""
    longest: int
    cut: int
    """Number of captions that were cut."""
    cut_ids: int
    """Number of ids that were cut off."""


@dataclass(frozen=True)
class TokenCounts:
    """Ids of all training records by kind."""

    text: int
    image: int
    special: int
    pad: int


@dataclass(frozen=True)
class Datasheet:
    """The content of `prepare.json`."""

    format: int
    evalsvc: str
    zlib: str
    """Version of zlib, on which the bytes of shards depend."""
    settings: Mapping[str, JsonValue]
    """Settings and digests that the bytes depend on."""
    open_lm: OpenLm
    pairs: PairCounts
    images: ImageCounts
    captions: CaptionCounts
    tokens: TokenCounts
    refused: Mapping[str, int]
    """Number of captions and images by the reason for which they were left out."""
    sequences: str
    """SHA-256 over the order of images and captions."""
    files: Mapping[str, str]
    """SHA-256 of the other files, by name."""
    shards: Sequence[ShardFile]


@dataclass(frozen=True)
class Contents:
    """Everything that a data set was made of."""

    data: PairData
    encoded: EncodedImages
    records: Records
    form: SequenceForm

    @property
    def refused(self) -> list[Refusal]:
        """Captions and images that were left out, in the order of their names."""
        refused = [*self.data.refused, *self.encoded.refused.values(), *self.records.refused]
        return sorted(refused, key=lambda refusal: (refusal.item, refusal.reason))


def make_datasheet(
    contents: Contents,
    settings: Mapping[str, JsonValue],
    shards: Sequence[ShardFile],
    files: Mapping[str, bytes],
) -> Datasheet:
    """Return the datasheet; `files` has the other files of the data set by name."""
    form = contents.form
    return Datasheet(
        format=FORMAT,
        evalsvc=__version__,
        zlib=zlib.ZLIB_RUNTIME_VERSION,
        settings=settings,
        open_lm=OpenLm(form.length - 1, form.rows, form.pad),
        pairs=_pair_counts(contents),
        images=_image_counts(contents),
        captions=_caption_counts(contents),
        tokens=_token_counts(contents),
        refused=count_reasons(contents.refused),
        sequences=contents.records.digest,
        files={name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
        shards=shards,
    )


def _pair_counts(contents: Contents) -> PairCounts:
    records, encoded = contents.records, contents.encoded
    return PairCounts(
        training=len(records.training),
        held_out=len(records.held_out),
        refused_image=sum(pair.image in encoded.refused for pair in contents.data.pairs),
        refused_otherwise=len(contents.data.refused) + len(records.refused),
        repeated=records.repeated,
    )


def _image_counts(contents: Contents) -> ImageCounts:
    records = contents.records
    training, held_out = ({record.pixels for record in part} for part in (records.training, records.held_out))
    named = {record.index for record in (*records.training, *records.held_out)}
    refused = len(contents.encoded.refused)
    return ImageCounts(len(training), len(held_out), refused, len(named) - len(training) - len(held_out))


def _caption_counts(contents: Contents) -> CaptionCounts:
    form, training = contents.form, contents.records.training
    cuts = [form.cut(record.text_ids) for record in training]
    longest = max((len(record.text_ids) for record in training), default=0)
    return CaptionCounts(form.room, longest, sum(cut > 0 for cut in cuts), sum(cuts))


def _token_counts(contents: Contents) -> TokenCounts:
    total: Counter[str] = Counter()
    for record in contents.records.training:
        total.update(contents.form.count_tokens(record.text_ids))
    return TokenCounts(**total)
