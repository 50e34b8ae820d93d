"""The prompt of an image as text, in which special tokens are written by the tokenizer's names.

A model that was trained on `caption + " Generate an image based on this description.<boi>"` needs these ids and no
others. The pieces of a prompt merge where they meet, so a prompt is encoded whole, see `data.tokens.TextEncoder`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evalsvc.errors import InvalidData, InvalidLayout

MAX_CHARACTERS = 4_000
"""Maximum number of characters of each text of a prompt."""

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

_MARKER = re.compile(r"<(?!\s)[^<>\n]+(?<!\s)>")

PromptString = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class PromptText(BaseModel):
    """The text in front of an image. It takes the place of the slot TEXT, with `text.bos` in front."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    text: PromptString
    """Text with `{caption}` once, and with `{rows}` and `{columns}` of the grid of codes where the model was trained
    with them. Write `{{` for a brace. The tokenizer must have every special token under the name in the text."""
    unconditional: PromptString | None = None
    """Prompt of an image without text; may have `{rows}` and `{columns}`."""
    negative: PromptString | None = None
    """Prompt that guidance leads away from, instead of `unconditional`; may have `{rows}` and `{columns}`."""
    pad: PromptString | None = None
    """Name of a token of the tokenizer: the unconditional prompt is the prompt with this token in place of every id
    between the first and the last. Excludes `unconditional` and `negative`."""
    strip: bool = False
    """Whether blanks around the caption are removed."""

    @model_validator(mode="after")
    def _check(self) -> PromptText:
        for name, text in self._texts():
            if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                raise InvalidLayout(f"prompt.{name} holds a character that no text has, NUL or a lone surrogate")
            allowed = ("caption", "rows", "columns") if name == "text" else ("rows", "columns")
            fields = [] if name == "pad" else list(_fields(name, text))
            if not set(allowed).issuperset(fields):
                known = ", ".join(f"{{{field}}}" for field in allowed)
                raise InvalidLayout(f"prompt.{name} has a field in braces other than {known}; write `{{{{` for a brace")
            if name == "text" and (count := fields.count("caption")) != 1:
                raise InvalidLayout(f"prompt.text has {{caption}} {count} times; write it once")
        if self.pad is not None:
            if not self.pad:
                raise InvalidLayout("prompt.pad is empty; give the name of a token of the tokenizer")
            if given := next((name for name, _ in self._texts() if name in ("unconditional", "negative")), None):
                raise InvalidLayout(
                    f"prompt has both `pad` and `{given}`, which both are the other side of guidance; remove one"
                )
        return self

    @property
    def needs_grid(self) -> bool:
        """Whether a text holds the numbers of rows and columns."""
        return any({"rows", "columns"} & {*_fields(name, text)} for name, text in self._texts() if name != "pad")

    def _texts(self) -> Iterator[tuple[str, str]]:
        for name in ("text", "unconditional", "negative", "pad"):
            if (text := getattr(self, name)) is not None:
                yield name, text


def _fields(name: str, text: str) -> Iterator[str]:
    for match in _BRACES.finditer(text):
        if match[0] in ("{", "}"):
            raise InvalidLayout(f"prompt.{name} has a brace without its pair; write `{{{{` or `}}}}` for a brace")
        if match[1] is not None:
            yield match[1]


@dataclass(frozen=True)
class PromptForm:
    """What a layout makes of a caption or of no text, for images of every size."""

    prompt: PromptText
    grid: tuple[int, int] | None
    """Rows and columns of the codes; None for a square."""

    def filled(self, text: str, codes: int, caption: str = "") -> str:
        """Return a text of the prompt for an image of `codes` codes; nothing in the caption is replaced."""
        values = {"caption": caption.strip() if self.prompt.strip else caption}
        if self.prompt.needs_grid:
            values["rows"], values["columns"] = map(str, grid_of(codes, self.grid))

        def value(match: re.Match[str]) -> str:
            return match[0][0] if match[1] is None else values[match[1]]

        return _BRACES.sub(value, text)


def markers(text: str) -> list[str]:
    """Return what looks like a special token in a text, such as `<boi>` and `<|image start|>`."""
    return list(dict.fromkeys(_MARKER.findall(text)))


def grid_of(codes: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Return the numbers of rows and columns of an image of `codes` codes; `grid` None is a square."""
    rows, columns = (isqrt(max(codes, 0)),) * 2 if grid is None else grid
    if codes < 1 or rows * columns != codes:
        shape = "a square" if grid is None else f"{rows} rows of {columns}"
        raise InvalidData(
            f"has {codes} image codes, but the layout's images are {shape}; set the layout's `image.grid` to the "
            "numbers of rows and columns, or correct the codes"
        )
    return rows, columns
