"""What a training draws captioned images from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

Ids = Sequence[int]


class Images(ABC):
    """Images as codes, each in one or several variants, with their captions."""

    groups: tuple[int, ...]
    """Number of images in each group. All images of a group are drawn before those of the next group."""
    variants: int = 1
    """Number of grids of codes of each image."""

    @abstractmethod
    def captions(self, image: int) -> Sequence[Ids]:
        """Return the captions of an image in ids of the tokenizer; none for an image without text."""

    @abstractmethod
    def codes(self, image: int, variant: int) -> Ids | None:
        """Return the codes of an image; None for a record of text only."""
