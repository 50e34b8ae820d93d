"""Selecting and ordering the pairs of a data file: captions and the codes of their images, as ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evalsvc.data.tokens import TokenData
from evalsvc.errors import InvalidData
from evalsvc.spec.layout import VocabularyLayout


@dataclass(frozen=True)
class TokenPairs:
    """Captions and images, where the i-th caption belongs to the i-th image."""

    places: tuple[int, ...]
    """Index of each pair's record in the data."""
    texts: tuple[Sequence[int], ...]
    """Ids of the tokenizer for each caption, at least one."""
    codes: tuple[Sequence[int], ...]
    """Codes of each image, at least one."""

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: Iterable[int]) -> TokenPairs:
        rows = [(self.places[row], self.texts[row], self.codes[row]) for row in chosen]
        return TokenPairs(*map(tuple, zip(*rows, strict=True)))

    def one_per_image(self) -> TokenPairs:
        """Return the first pair of each image. Several captions of one image are not independent, and each would be a
        right answer."""
        first: dict[tuple[int, ...], int] = {}
        for row, codes in enumerate(self.codes):
            first.setdefault(tuple(codes), row)
        return self.take(first.values())


def pairs_of(data: TokenData, layout: VocabularyLayout, limit: int | None = None) -> TokenPairs:
    """Return the first `limit` records without those that lack text or image."""
    rows = []
    for place, record in enumerate(data.records[:limit]):
        try:
            layout.sequence(record.text_ids, record.image_codes)
        except InvalidData as error:
            raise InvalidData(f"{data.path}, {record.where} {error.message}") from None
        if record.text_ids and record.image_codes:
            rows.append((place, record.text_ids, record.image_codes))
    if len({tuple(codes) for _, _, codes in rows}) < 2:
        raise InvalidData(
            f"{data.path} has {len(rows)} records with both text and image codes, but needs two of different images; "
            "add pairs"
        )
    places, texts, codes = zip(*rows, strict=True)
    return TokenPairs(places, texts, codes)


def batches(pairs: TokenPairs, size: int, seed: int) -> list[TokenPairs]:
    """Return random batches of `size` pairs, because files are often sorted; one batch of all pairs if there are
    fewer."""
    if len(pairs) <= size:
        return [pairs]

    def draw(row: int) -> bytes:
        return hashlib.sha256(f"{seed} {pairs.places[row]}".encode()).digest()

    order = sorted(range(len(pairs)), key=draw)  # the same on every machine and in every version
    return [pairs.take(order[start : start + size]) for start in range(0, len(order) - size + 1, size)]
