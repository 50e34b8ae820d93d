"""Features for image metrics: one pass of every required extractor over each image."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalsvc.errors import AssetMissing, DataChanged
from evalsvc.features import FeatureExtractor
from evalsvc.spec.images import PROGRAMS
from evalsvc.tasks.task import Context

ACTIVATION_BYTES = 13 << 20
"""Approximate number of bytes that an extractor needs per image in addition to the weights: Inception's stem."""

Rows = NDArray[np.float32]
"""Features of n images, [n, d]."""

SCORES: Mapping[str, tuple[str, float]] = {"clip_score": ("", 100.0), "clip_s": ("A photo depicts ", 2.5)}
"""Text before the caption, and factor, by key of a joint feature of image and caption: one number per image."""


@dataclass(frozen=True)
class ExtractorSpec:
    kind: str
    name: str
    """An asset, the path of a file or folder, or a program in PROGRAMS."""
    resize: str


def open_extractor(context: Context, spec: ExtractorSpec) -> FeatureExtractor:
    """Load the extractor; for a program, load the first of its assets that was pulled."""
    if spec.name not in PROGRAMS:
        return context.extractor(spec.name, spec.kind)
    *preferred, last = PROGRAMS[spec.name].assets
    for asset in preferred:
        with suppress(AssetMissing):
            return context.extractor(asset, spec.name)
    return context.extractor(last, spec.name)


def identity_of(extractor: FeatureExtractor, tap: int, resize: str) -> dict[str, str]:
    return {"extractor": extractor.digest_of(tap), "resize": resize, **extractor.program}


class FeaturePass:
    """The extractors of some features, by the features' keys in metrics: `inception/2048`, `clip`, …"""

    def __init__(self, context: Context, specs: Sequence[ExtractorSpec], keys: Collection[str]) -> None:
        self.keys = tuple(sorted(keys))
        kinds = {kind_of(key) for key in keys}
        self._specs = {spec.kind: spec for spec in specs if spec.kind in kinds}
        self._extractors = {spec.kind: open_extractor(context, spec) for spec in self._specs.values()}

    def lacks(self, key: str) -> str | None:
        """Return why the extractor cannot give these features; None if it can."""
        kind, _, tap = key.partition("/")
        extractor = self._extractors[kind_of(key)]
        if not tap or int(tap) in extractor.taps:
            return None
        taps = ", ".join(map(str, extractor.taps))
        shown = kind if self._specs[kind].name not in PROGRAMS else self._specs[kind].name
        return f"{shown} gives no features {tap}, but {taps}{extractor.advice([int(tap)])}"

    def identity(self, key: str) -> dict[str, str]:
        kind = kind_of(key)
        return identity_of(self._extractors[kind], self._tap(key), self._specs[kind].resize)

    def require_planned(self, planned: Mapping[str, Mapping[str, str]]) -> None:
        for key in self.keys:
            if self.identity(key) != planned[key]:
                raise DataChanged(
                    f"the weights or the program behind {key} have changed since this evaluation was planned, or "
                    "differ between workers; install the same on all workers, and evaluate again"
                )

    def bytes(self) -> int:
        """Return the approximate bytes of one call in addition to the weights."""
        return ACTIVATION_BYTES * max((each.images_at_once for each in self._extractors.values()), default=0)

    def __call__(self, images: Tensor, texts: Sequence[str] = ()) -> dict[str, Tensor]:
        """Return features [B, d] float32 on the CPU of images [B, 3, H, W] uint8, and their similarity to `texts`."""
        features: dict[str, Tensor] = {}
        for kind, extractor in self._extractors.items():
            keys = [key for key in self.keys if kind_of(key) == kind]
            taps = extractor.features(images, self._specs[kind].resize, {self._tap(key) for key in keys})
            for key in keys:
                rows = taps[self._tap(key)]
                if key in SCORES:
                    scores: Tensor = extractor.scores(rows, texts, *SCORES[key])  # type: ignore[attr-defined]  # CLIP's
                    rows = scores[:, None].float()
                features[key] = rows.cpu()
        return features

    def _tap(self, key: str) -> int:
        tap = key.partition("/")[2]
        return int(tap) if tap else self._extractors[kind_of(key)].taps[0]


def kind_of(key: str) -> str:
    return "clip" if key in SCORES else key.partition("/")[0]


class FeatureRows:
    """Features of images by index, collected in any order."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, Tensor]]] = {}

    def add(self, indices: Sequence[int], features: Mapping[str, Tensor]) -> None:
        for key, rows in features.items():
            self._rows.setdefault(key, []).extend(zip(indices, rows, strict=True))

    def joined(self) -> dict[str, Rows]:
        ordered = {key: sorted(rows, key=lambda pair: pair[0]) for key, rows in self._rows.items()}
        return {key: np.stack([row.to(torch.float32).numpy() for _, row in rows]) for key, rows in ordered.items()}


def join_features(parts: Sequence[Mapping[str, Rows]]) -> dict[str, Rows]:
    return {key: np.concatenate([part[key] for part in parts]) for key in (parts[0] if parts else ())}
