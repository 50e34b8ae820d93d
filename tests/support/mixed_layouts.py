"""Layouts with image and special rows inside the block of text, models with a head of their own for images, and the
losses of both by definition."""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from evalsvc.spec.layout import ImageBlock, TextBlock, VocabularyLayout
from evalsvc.spec.model_config import ImageTables


def mixed_layout(rows: int, text: range, image: range, **special: int) -> VocabularyLayout:
    """Return a resolved layout, with `doc` before each sequence; the blocks are not checked against each other."""
    return VocabularyLayout.model_construct(
        rows=rows,
        text=TextBlock(offset=text.start, size=len(text)),
        image=ImageBlock(offset=image.start, size=len(image)),
        special=special,
        template=("doc", "TEXT", "IMAGE"),
    )


IMAGE_TABLES = ImageTables(rows=1, width=1, depth=1)


def with_heads_apart(model: Any) -> Any:
    """Return the model with the same tables, which says that image ids have a head of their own."""
    apart = copy.copy(model)
    apart.config = model.config.model_copy(update={"image_tables": IMAGE_TABLES})
    return apart


class PlainLoss(NamedTuple):
    nll: float
    within: float
    image_mass: float


def plain_loss(
    logits: Tensor, target: int, text: Sequence[int], image: Sequence[int], heads_apart: bool = False
) -> PlainLoss:
    """The definition for one target, by softmaxes over lists of ids."""
    row, everything = logits.double(), list(range(len(logits)))

    def loss(ids: Sequence[int]) -> float:
        return -float(row[list(ids)].log_softmax(0)[list(ids).index(target)])

    others = [one for one in everything if one not in image]
    over = everything if not heads_apart else image if target in image else others
    within = image if target in image else text if target in text else [*text, target]
    mass = -math.inf if heads_apart or not image else float(row.log_softmax(0)[list(image)].logsumexp(0))
    return PlainLoss(loss(over), loss(within), math.exp(mass))
