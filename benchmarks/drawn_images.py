"""Images whose codes and features are drawn at random, in no time: what `looks.py` has the service evaluate.

Importing this module in a worker replaces what samples codes and what extracts features; all else of the task
`text_to_image` is as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from evalsvc.sampling import Prompt, SamplerSpec, Samples
from evalsvc.tasks.text_to_image import pipeline
from evalsvc.tasks.text_to_image.work import TextToImageWork
from evalsvc.worker.context import ShardContext

FEATURES = 2048


class DrawnExtractor:
    """Gives normal features, whatever the image."""

    digest = "drawn"
    images_at_once = 8
    taps = (64, FEATURES)
    program: ClassVar[dict[str, str]] = {}

    def digest_of(self, tap: int) -> str:
        return f"drawn {tap}"

    def features(self, images: Tensor, resize: str, taps: Collection[int]) -> dict[int, Tensor]:
        return {tap: torch.randn(len(images), tap) for tap in taps}


def drawn_batches(
    model: object,
    prompts: Sequence[Prompt],
    spec: SamplerSpec,
    on_step: Callable[[int], None],
    **_: Any,
) -> Iterator[Samples]:
    """Draw codes in the place of `generate_fitting`."""
    for start in range(0, len(prompts), spec.batch):
        indices = tuple(range(start, min(start + spec.batch, len(prompts))))
        yield Samples(indices, torch.randint(0, len(spec.image_ids), (len(indices), spec.length)), "drawn")  # type: ignore[arg-type]
        on_step(indices[-1] * spec.length)


class DrawnWork(TextToImageWork):
    """`text_to_image` on drawn images."""


pipeline.generate_fitting = drawn_batches  # type: ignore[assignment]
ShardContext.extractor = lambda self, name, kind="inception": DrawnExtractor()  # type: ignore[assignment,method-assign,return-value]
