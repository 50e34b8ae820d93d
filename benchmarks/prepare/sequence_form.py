"""The form of the sequences: a layout's template for one caption and one image, padded to the length of a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evalsvc.errors import InvalidData, InvalidLayout, InvalidRequest
from evalsvc.spec.layout import VocabularyLayout


@dataclass(frozen=True)
class SequenceForm:
    """The form of all sequences of a data set."""

    layout: VocabularyLayout
    """Resolved layout, with an image block, `pad` and `length`."""
    codes: int
    """Number of codes of an image."""
    length: int
    """Number of ids of a record, padding included."""
    room: int
    """Number of text ids that fit; longer captions are cut."""

    @property
    def pad(self) -> int:
        """Row of `pad`, which fills a record up to its length."""
        return self.layout.special_ids["pad"]

    @property
    def rows(self) -> int:
        """Number of rows that the model's table needs at least."""
        return self.layout.rows or 0

    def ids(self, text_ids: Sequence[int], codes: Sequence[int]) -> list[int]:
        """Return the ids of a record. Raises InvalidData if an id or a code is out of range."""
        ids = self.layout.sequence(text_ids, codes).ids
        return ids + [self.pad] * (self.length - len(ids))

    def cut(self, text_ids: Sequence[int]) -> int:
        """Return the number of text ids of a caption that do not fit."""
        return max(len(text_ids) - self.room, 0)

    def count_tokens(self, text_ids: Sequence[int]) -> dict[str, int]:
        """Return the number of ids of each kind in a record."""
        text = min(len(text_ids), self.room)
        special = sum(part not in ("TEXT", "IMAGE") for part in self.layout.template)
        pad = self.length - text - special - self.codes
        return {"text": text, "image": self.codes, "special": special, "pad": pad}


def sequence_form(layout: VocabularyLayout, codes: int, codebook_size: int, records: int | None) -> SequenceForm:
    """Return the form for images of `codes` codes, in records of `records` ids [the layout's length].

    Raises:
        InvalidLayout: the layout has no image block of this size, no `pad`, no `length`, or no room for text.
        InvalidRequest: `records` is neither the layout's length nor one more.
    """
    layout = _resolved(layout)
    if layout.image is None or layout.image.size != codebook_size:
        size = "no image ids" if layout.image is None else f"{layout.image.size:,} image ids"
        raise InvalidLayout(
            f"--layout has {size}, but the decoder has {codebook_size:,} codes; correct `image`, or give the "
            "layout's own --decoder"
        )
    if layout.length is None or layout.pad_id is None:
        missing = "length" if layout.length is None else "special token `pad`"
        raise InvalidLayout(f"--layout has no {missing}, to which all sequences are filled up; add it")
    if records not in (None, layout.length, layout.length + 1):
        raise InvalidRequest(
            f"--records is {records:,}, but the layout's length is {layout.length:,}; give this number, or "
            f"{layout.length + 1:,} for a model with `seq_len` {layout.length:,}"
        )
    try:
        fixed = len(layout.sequence((), (0,) * codes).ids)
    except InvalidData as error:
        raise InvalidLayout(f"--layout has too small a length: an image {error.message}; raise `length`") from None
    if fixed >= layout.length:
        raise InvalidLayout(f"--layout has the length {layout.length:,}, which leaves no room for text; raise `length`")
    return SequenceForm(layout, codes, records or layout.length, layout.length - fixed)


def _resolved(layout: VocabularyLayout) -> VocabularyLayout:
    """Return a layout without negative ids. Raises InvalidLayout if the number of rows is needed and missing."""
    if layout.rows is not None:
        return layout.resolve(layout.rows)
    first = [*layout.special.values(), *([layout.image.offset] if layout.image else [])]
    if min(first, default=0) < 0:
        raise InvalidLayout("--layout has ids that count from the end of the table; add `rows`, the table's size")
    ends = [layout.text.offset + layout.text.size, *(row + 1 for row in layout.special.values())]
    if layout.image is not None:
        ends.append(layout.image.offset + layout.image.size)
    return layout.resolve(max(ends))
