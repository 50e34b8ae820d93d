"""Presets of layouts, from `layouts.yaml`: where the blocks of a widened table are, and what published models read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from evalsvc.errors import InvalidLayout, UnsupportedModel
from evalsvc.spec.yaml_text import read_yaml

TEXT = "TEXT"
IMAGE = "IMAGE"

TEXT_ROWS = 50_432
"""Rows of open_lm's table before it is widened, including spare rows."""

TOKENIZER_SIZE = 50_277
"""Number of ids of the GPT-NeoX-20B tokenizer. Rows from here to `TEXT_ROWS` are spare."""

SPECIAL = ("doc", "/doc", "text", "/text", "image", "/image", "pad")


class Preset(BaseModel):
    """An order of blocks, and their default sizes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: tuple[Literal["text", "image", "special"], ...] = ()
    text_size: int = TEXT_ROWS
    codebook_size: int = 16_384
    special: tuple[str, ...] = SPECIAL
    bos: int | None = None
    unsupported: str = ""
    """Why evalsvc does not support such a model, and what to do."""

    def fields(
        self, text_size: int | None = None, codebook_size: int | None = None, rows: int | None = None
    ) -> dict[str, Any]:
        """Return the fields of the layout of a table with blocks of these sizes."""
        if self.unsupported:
            raise UnsupportedModel(f"layout 'split-tables': {self.unsupported}")
        text, image = text_size or self.text_size, codebook_size or self.codebook_size
        sizes = {"text": text, "image": image, "special": len(self.special)}
        first = dict(zip(self.order, accumulate((sizes[block] for block in self.order), initial=0), strict=False))
        special = first.get("special")
        fields: dict[str, Any] = {
            "rows": rows,
            "text": {"offset": first["text"], "size": text, "bos": self.bos},
            "image": {"offset": first.get("image", -image), "size": image},
            "special": {name: -1 - i if special is None else special + i for i, name in enumerate(self.special)},
        }
        if self.special:
            fields |= {
                "template": ("doc", "text", TEXT, "/text", "image", IMAGE, "/image", "/doc"),
                "unconditional_template": ("doc", "image", IMAGE, "/image", "/doc"),
                "length": 1_152,
            }
        return fields


Place: TypeAlias = int | tuple[Literal["text_end", "image", "image_end"], int]
"""A row, or a distance from the end of the text block, or from the beginning or the end of the image block."""


class PublishedPreset(BaseModel):
    """The rows of a published model, its prompt, and what stands after an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_size: int
    codebook_size: int
    image: int | Literal["behind", "last"]
    """First row of the image block; `behind` the text block, or the `last` rows of the text block."""
    bos: Place | Literal["none"]
    special: Mapping[str, Place] = {}
    row_end: str | None = None
    template: tuple[str, ...] = (TEXT, IMAGE)
    prompt: Mapping[str, str | bool]

    def fields(
        self, text_size: int | None = None, codebook_size: int | None = None, rows: int | None = None
    ) -> dict[str, Any]:
        """Return the fields of the layout of a table with blocks of these sizes."""
        text, codes = text_size or self.text_size, codebook_size or self.codebook_size
        image = {"behind": text, "last": text - codes}.get(str(self.image), self.image)
        assert isinstance(image, int)
        edges = {"text_end": text, "image": image, "image_end": image + codes}

        def row(place: Place) -> int:
            return place if isinstance(place, int) else edges[place[0]] + place[1]

        if (first := min([image, *map(row, self.special.values())])) < 0:
            raise InvalidLayout(
                f"`text_size` is {text} and `codebook_size` is {codes}, so a row of the preset would be {first}; give "
                "the sizes of the model"
            )
        bos = self.bos if self.bos == "none" else row(self.bos)
        # In a smaller tokenizer the token has another id. A tokenizer that adds one by itself asks for it.
        known_bos = None if isinstance(bos, int) and not 0 <= bos < text else bos
        return {
            "rows": rows,
            "text": {"size": text, "bos": known_bos},
            "image": {"offset": image, "size": codes, "row_end": self.row_end},
            "special": {name: row(place) for name, place in self.special.items()},
            "template": self.template,
            "prompt": self.prompt,
        }


@cache
def presets() -> Mapping[str, Preset | PublishedPreset]:
    """Return the presets by name."""
    content = read_yaml(Path(__file__).with_name("layouts.yaml").read_bytes())
    return {name: (PublishedPreset if "prompt" in fields else Preset)(**fields) for name, fields in content.items()}
