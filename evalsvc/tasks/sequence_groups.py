"""Groups of dependent sequences: captions of one image, windows of one document, equal texts.

Five captions of one image share the image. A standard error that counts them as five is up to √5 too small.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from hashlib import blake2b

from evalsvc.data.tokens import Record

GROUP, GENERAL_GROUP = "group", "group_general_text"
"""Keys of the items that hold the group of a sequence, for the data and for general text."""


def group_of_each(keys: Iterable[Hashable]) -> list[int] | None:
    """Return for each key the index of the first equal key, which no later key changes; None if all keys differ."""
    first: dict[Hashable, int] = {}
    groups = [first.setdefault(key, index) for index, key in enumerate(keys)]
    return groups if len(first) < len(groups) else None


def groups_of_records(records: Iterable[Record]) -> list[int] | None:
    """Return the group of each record, by `document`, else by image codes, else by text; None if every record is
    independent. Equal captions of different images are no group."""
    return group_of_each(map(_key, records))


def _key(record: Record) -> Hashable:
    if record.document is not None:
        return "document", record.document
    part, ids = ("image", record.image_codes) if record.image_codes else ("text", record.text_ids)
    return part, blake2b(b"" if ids is None else ids.tobytes(), digest_size=16).digest()


def group_order(groups: Sequence[int]) -> list[int]:
    """Return the indices of the sequences group by group, each group in its own order."""
    return sorted(range(len(groups)), key=groups.__getitem__)


def at_border(groups: Sequence[int], place: int) -> int:
    """Return the first position, from `place` on, at which a group of these ascending `groups` begins, or the end."""
    while 0 < place < len(groups) and groups[place] == groups[place - 1]:
        place += 1
    return place
