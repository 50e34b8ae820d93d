"""An extractor of means of 8x8 squares: 64 features without an asset, in no time."""

from collections.abc import Collection
from typing import Any, ClassVar

import pytest
from torch import Tensor

from evalsvc.features import digit_classifier
from evalsvc.worker.context import ShardContext


class SquareFeatures:
    digest = "squares"
    images_at_once = 8
    program: ClassVar[dict[str, str]] = {}

    def __init__(self, taps: tuple[int, ...]) -> None:
        self.taps = taps

    def digest_of(self, tap: int) -> str:
        return f"squares {tap}"

    def features(self, images: Tensor, resize: str, taps: Collection[int]) -> dict[int, Tensor]:
        found = digit_classifier.features(images)
        return {tap: found.repeat(1, tap // 64) for tap in taps}

    def scores(self, rows: Tensor, texts: list[str], prefix: str, factor: float) -> Tensor:
        return rows.mean(1) * (factor / 100)


def offer_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the name `squares` stand for such an extractor, in the place of Inception or CLIP."""
    extractor = ShardContext.extractor

    def extractor_or_squares(self: ShardContext, name: str, kind: str = "inception") -> Any:
        if name == "squares":
            return SquareFeatures((64, 2048) if kind == "inception" else (64,))
        return extractor(self, name, kind)

    monkeypatch.setattr(ShardContext, "extractor", extractor_or_squares)
