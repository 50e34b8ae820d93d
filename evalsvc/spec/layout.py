"""Vocabulary layouts: which rows of a model's table are text, image and special tokens, and how sequences are built.

The tokenizer's id `t` has the row `text.offset + t`; the image code `c` has the row `image.offset + c`, or
`image.offset + image.map[c]`. Data files therefore hold tokenizer ids and codes and fit any layout.

A row is of an image code, or else a special token, or else text, or else padding: image and special rows may lie inside
the text block, where the tokenizer's ids of these rows are no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

from evalsvc.errors import InvalidData, InvalidLayout, UnknownName, json_reason, os_reason
from evalsvc.files.opened import Allow, anywhere, open_file
from evalsvc.spec.bounds import Beginning
from evalsvc.spec.layout_presets import IMAGE, TEXT, presets
from evalsvc.spec.layout_prompt import PromptForm, PromptText, grid_of
from evalsvc.spec.protocol import digest
from evalsvc.spec.suite import check_keys, validation_message
from evalsvc.spec.yaml_text import MAX_NODES, YamlError, read_yaml

MAX_FILE_BYTES = 20_000_000
"""Maximum number of bytes of a layout file or a map: enough for two million codes."""

MAX_TEXT_RANGES = 256
"""Maximum number of ranges of text rows between image and special rows. A loss visits each range."""

_FROZEN = ConfigDict(
    frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True, serialize_by_alias=True
)


@dataclass(frozen=True)
class TokenSequence:
    """The token ids of one record."""

    ids: list[int]
    cut: int
    """Number of text ids cut from the end of the text to fit the layout's length."""


class TextBlock(BaseModel):
    """The rows of the text tokenizer's ids."""

    model_config = _FROZEN

    offset: StrictInt = Field(default=0, ge=0)
    """Row of the tokenizer's id 0."""
    size: StrictInt = Field(ge=1)
    """Number of text ids. Tokenizer ids from here on are refused."""
    tokenizer: str | None = None
    """Path of the tokenizer's `tokenizer.json`. Only data that holds text needs it. Not part of the layout's
    identity."""
    tokenizer_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the tokenizer's file; any other tokenizer is refused. Not part of the layout's identity."""
    bos: Annotated[StrictInt, Field(ge=0)] | Literal["none"] | None = None
    """Id of the tokenizer that stands before every text, such as Llama 3's `<|begin_of_text|>`; `none` for no token
    [none; needed for a tokenizer that adds tokens by itself]. Not part of the layout's identity: protocols have the
    id."""

    @model_validator(mode="after")
    def _check_bos(self) -> TextBlock:
        if isinstance(self.bos, int) and self.bos >= self.size:
            raise InvalidLayout(f"text.bos is {self.bos}, but there are {self.size} text ids; correct `bos` or `size`")
        return self

    def beginning(self, of_task: Beginning | None) -> Beginning | None:
        """Return what stands before a text: the parameter `bos` of a task, or else the layout's."""
        return self.bos if of_task is None else of_task


class ImageBlock(BaseModel):
    """The rows of the image codes."""

    model_config = _FROZEN

    offset: StrictInt
    """First row of the block; a negative number counts from the end of the table."""
    size: StrictInt = Field(ge=1)
    """Number of codes in the codebook."""
    map: tuple[StrictInt, ...] | None = None
    """Row of each code within the block, a permutation of 0…size-1; None: codes are in order. `parse_layout` also
    accepts the path of a JSON list."""
    row_end: str | None = None
    """Name of the special token that stands after every row of an image's codes, also after the last row."""
    grid: tuple[Annotated[StrictInt, Field(ge=1)], Annotated[StrictInt, Field(ge=1)]] | None = None
    """Numbers of rows and columns of an image's codes; None for a square."""

    @model_validator(mode="after")
    def _check_grid(self) -> ImageBlock:
        if self.grid is not None and self.grid[0] * self.grid[1] > MAX_NODES:
            raise InvalidLayout(
                f"image.grid is {self.grid[0]} × {self.grid[1]}, more than {MAX_NODES:,} codes; correct the grid"
            )
        return self

    @model_validator(mode="after")
    def _check_map(self) -> ImageBlock:
        if self.map is None:
            return self
        if len(self.map) != self.size:
            raise InvalidLayout(
                f"image.map has {len(self.map)} entries, the codebook has {self.size} codes; write one entry per code"
            )
        if sorted(self.map) != list(range(self.size)):
            wrong = [row for row in self.map if not 0 <= row < self.size]
            reason = f"holds {wrong[0]}" if wrong else "holds an entry twice"
            raise InvalidLayout(
                f"image.map {reason}; it must be a permutation of 0…{self.size - 1}, counted from image.offset"
            )
        return self


class VocabularyLayout(BaseModel):
    """The meaning of each row of the table. Blocks are checked against each other, as far as the number of rows is
    known."""

    model_config = _FROZEN

    rows: StrictInt | None = Field(default=None, ge=1)
    """Rows of the model's table; None: any number. Rows that belong to no block are padding."""
    text: TextBlock
    """Rows of the text tokens."""
    image: ImageBlock | None = None
    """Rows of the image tokens; None for a model without images."""
    special: Mapping[str, StrictInt] = {}
    """Row of each special token, by name; a negative number counts from the end of the table. `pad` is never a
    target."""
    template: tuple[str, ...] = ()
    """Special tokens and the slots TEXT and IMAGE, in the order of a sequence. Default: TEXT IMAGE, or TEXT without
    `image`."""
    unconditional_template: tuple[str, ...] | None = None
    """Template of an image without text; None: `template` without its text."""
    length: StrictInt | None = Field(default=None, ge=1)
    """Longest sequence in tokens, to which text is cut; None: no limit. A `prompt` is not cut but refused."""
    image_prompt: PromptText | None = Field(default=None, alias="prompt")
    """Text in front of an image, which takes the place of the slot TEXT; None: the caption."""

    @model_validator(mode="before")
    @classmethod
    def _default_template(cls, content: object) -> Any:
        if isinstance(content, Mapping) and content.get("template") is None:
            return {**content, "template": (TEXT,) if content.get("image") is None else (TEXT, IMAGE)}
        return content

    @model_validator(mode="after")
    def _check(self) -> VocabularyLayout:
        for slot in (TEXT, IMAGE):
            if slot in self.special:
                raise InvalidLayout(f"special token {slot!r}: this name is a slot; choose another name")
        slots = (TEXT,) if self.image is None else (TEXT, IMAGE)
        self._check_template("template", self.template, slots)
        if self.unconditional_template is not None:
            self._check_template("unconditional_template", self.unconditional_template, slots[1:])
        if self.image is not None and self.image.row_end not in (None, *self.special):
            raise InvalidLayout("image.row_end names no special token of the layout; add the token to `special`")
        if self.image_prompt is not None:
            self._check_prompt()
        self._check_blocks()
        return self

    def _check_prompt(self) -> None:
        if self.image is None:
            raise InvalidLayout("prompt is given, but the layout has no `image`; add `image`, or remove `prompt`")
        if self.unconditional_template is not None:
            raise InvalidLayout(
                "both `prompt` and `unconditional_template` are given; write the prompt of an image without text as "
                "`prompt.unconditional`"
            )
        if self.template.index(TEXT) > self.template.index(IMAGE):
            raise InvalidLayout("template has TEXT after IMAGE, but `prompt` stands before an image; exchange the two")

    def resolve(self, rows: int) -> VocabularyLayout:
        """Return this layout for a table of `rows` rows, with no negative ids."""
        if self.rows is not None and self.rows != rows:
            raise InvalidLayout(
                f"the layout is for a table of {self.rows} rows, the model has {rows}; correct `rows` or remove it"
            )
        image = self.image and self.image.model_copy(update={"offset": self.image.offset % rows})
        if self.image and not -rows <= self.image.offset < rows:
            _beyond("image", self.image.offset, self.image.size, rows)
        special = {}
        for name, row in self.special.items():
            if not -rows <= row < rows:
                _beyond(f"special {name!r}", row, 1, rows)
            special[name] = row % rows
        counted = [(f"special {name!r}", row % rows, 1) for name, row in self.special.items() if row < 0]
        if self.image is not None and self.image.offset < 0:
            counted.append(("image", self.image.offset % rows, self.image.size))
        text = ("text", self.text.offset, self.text.size)
        # Only a row that is written as such may be meant to lie inside the text.
        for block in counted:
            if _common(block, text):
                raise _overlap(text, block)
        return VocabularyLayout.model_validate({**self.model_dump(), "rows": rows, "image": image, "special": special})

    @cached_property
    def text_ids(self) -> range:
        """The rows of the text tokens, in the order of the tokenizer's ids."""
        return range(self.text.offset, self.text.offset + self.text.size)

    @cached_property
    def text_ranges(self) -> tuple[range, ...]:
        """The rows of a resolved layout's text block that are neither image nor special, as ascending ranges."""
        ranges, start = [], self.text_ids.start
        _, *others = self._blocks()
        for _, first, size in sorted(others, key=lambda block: block[1]):
            ranges.append(range(start, min(first, self.text_ids.stop)))
            start = max(start, first + size)
        return tuple(rows for rows in (*ranges, range(start, self.text_ids.stop)) if rows)

    @cached_property
    def image_ids(self) -> range | tuple[int, ...] | None:
        """The rows of a resolved layout's image tokens, in the order of the codes; None without `image`."""
        if self.image is None:
            return None
        if self.image.map is not None:
            return tuple(self.image.offset + row for row in self.image.map)
        return self.image_range

    @property
    def image_range(self) -> range | None:
        """The rows of the image block. A map permutes rows within the block."""
        return None if self.image is None else range(self.image.offset, self.image.offset + self.image.size)

    @property
    def special_ids(self) -> Mapping[str, int]:
        """The rows of a resolved layout's special tokens, including `pad`."""
        return self.special

    @property
    def pad_id(self) -> int | None:
        return self.special.get("pad")

    @property
    def row_end_id(self) -> int | None:
        """The row of a resolved layout's token after every row of codes; None without such a token."""
        return None if self.image is None or self.image.row_end is None else self.special[self.image.row_end]

    @property
    def prompt_form(self) -> PromptForm | None:
        """What an encoder of texts needs for the prompts of images; None without `prompt`."""
        return None if self.image_prompt is None else PromptForm(self.image_prompt, self._grid)

    def grid_of(self, codes: int) -> tuple[int, int]:
        """Return the numbers of rows and columns of an image of `codes` codes."""
        return grid_of(codes, self._grid)

    @property
    def _grid(self) -> tuple[int, int] | None:
        return None if self.image is None else self.image.grid

    @cached_property
    def digest(self) -> str:
        """The digest of the layout without its tokenizer and without `text.bos`."""
        content = self.to_json()
        for key in ("tokenizer", "tokenizer_sha256", "bos"):
            content["text"].pop(key, None)
        return digest(content)

    def to_json(self) -> dict[str, Any]:
        """Return the layout as a mapping that `parse_layout` reads."""
        content = self.model_dump(mode="json")
        for block, keys in (("text", ("tokenizer_sha256", "bos")), ("image", ("row_end", "grid")), (None, ("prompt",))):
            part = content if block is None else content[block] or {}
            for key in keys:
                if part.get(key, 0) is None:
                    del part[key]  # layouts without them keep their old form
        return content

    def sequence(
        self, text_ids: Sequence[int] | None, image_codes: Sequence[int] | None, in_template: bool = True
    ) -> TokenSequence:
        """Return the sequence of one record in a resolved layout; without `in_template`, a text without an image is the
        text alone.

        A part that is None removes its slot from the template, and the pair of special tokens `x`, `/x` that directly
        encloses the slot. A record without text uses `unconditional_template` if the layout has one.
        """
        self._check_parts(text_ids, image_codes)
        if in_template and image_codes is None and text_ids is not None and self.image_prompt is not None:
            raise InvalidData(
                "is a text without an image, which the layout's `prompt` does not describe; set `text_prefix: bos`"
            )
        whole = in_template or image_codes is not None
        template = self._template_for(text_ids is not None, image_codes is not None) if whole else (TEXT,)
        cut = self._overlong(template, len(text_ids or ()), len(image_codes or ()))
        return TokenSequence(self._filled(template, text_ids, image_codes, cut), cut)

    def prompt(self, text_ids: Sequence[int] | None, image_length: int) -> TokenSequence:
        """Return the tokens before the IMAGE slot of `sequence`, for an image of `image_length` codes."""
        self._check_parts(text_ids, ())
        template = self._template_for(text_ids is not None, True)
        before = template[: template.index(IMAGE)]
        if text_ids is not None and TEXT not in before:
            raise InvalidLayout(
                f"the template [{', '.join(template)}] has the text after the image, so no image can be drawn from a "
                "text; sample images without text"
            )
        cut = self._overlong(template, len(text_ids or ()), image_length)
        return TokenSequence(self._filled(before, text_ids, None, cut), cut)

    def before_text(self, in_template: bool) -> int:
        """Return the number of tokens before the text in `sequence` of a text without an image."""
        return self._template_for(True, False).index(TEXT) if in_template else 0

    def _check_parts(self, text_ids: Sequence[int] | None, image_codes: Sequence[int] | None) -> None:
        _check_range("text id", text_ids, self.text.size, "the text block has")
        if image_codes is not None and self.image is None:
            raise InvalidData(
                "has image codes, but the layout has no image block; post the checkpoint with a layout of images"
            )
        _check_range("image code", image_codes, self.image.size if self.image else 0, "the codebook has")
        image = self.image_range
        if image is not None and image.start in self.text_ids:
            inside = range(image.start - self.text.offset, image.stop - self.text.offset)
            if (wrong := next((token for token in text_ids or () if token in inside), None)) is not None:
                raise InvalidData(
                    f"has the text id {wrong}, whose row is that of an image code; remove the id from the text, and "
                    "give images as `image_codes`"
                )

    def _filled(
        self, template: tuple[str, ...], text_ids: Sequence[int] | None, image_codes: Sequence[int] | None, cut: int
    ) -> list[int]:
        kept = text_ids if text_ids is None or not cut else text_ids[: len(text_ids) - cut]
        parts: dict[str, Sequence[int]] = {name: (row,) for name, row in self.special.items()}
        parts[TEXT] = [self.text.offset + token for token in kept or ()]
        parts[IMAGE] = self.image_rows(image_codes or ())
        return [token for part in template for token in parts[part]]

    def image_rows(self, codes: Sequence[int]) -> list[int]:
        """Return the rows of a resolved layout for an image: its codes, with the ends of their rows."""
        rows, end = [] if self.image_ids is None else [self.image_ids[code] for code in codes], self.row_end_id
        if end is None or not rows:
            return rows
        columns = self.grid_of(len(rows))[1]
        return [row for start in range(0, len(rows), columns) for row in (*rows[start : start + columns], end)]

    def _template_for(self, has_text: bool, has_image: bool) -> tuple[str, ...]:
        if not has_text and self.unconditional_template is not None:
            return self.unconditional_template
        template = self.template if has_text else _without(self.template, TEXT)
        return template if has_image else _without(template, IMAGE)

    def _overlong(self, template: tuple[str, ...], text: int, image: int) -> int:
        if self.length is None:
            return 0
        fixed = sum(part not in (TEXT, IMAGE) for part in template) + image
        fixed += self.grid_of(image)[0] if image and self.row_end_id is not None else 0
        if fixed > self.length:
            raise InvalidData(
                f"has {image} image codes, {fixed} tokens with the template's special tokens; "
                f"the layout's length is {self.length}"
            )
        over = max(fixed + text - self.length, 0)
        if over and self.image_prompt is not None and IMAGE in template:
            raise InvalidData(
                f"has a prompt of {text} tokens, {fixed + text} with its image; the layout's length is {self.length}, "
                "and a prompt is not cut: shorten the text, or give the layout a greater `length`"
            )
        return over

    def _check_template(self, field: str, template: tuple[str, ...], slots: tuple[str, ...]) -> None:
        for part in template:
            if part in (TEXT, IMAGE) and part not in slots:
                why = "the layout has no `image`" if self.image is None else "is for images without text"
                raise InvalidLayout(f"{field} has the slot {part}, but {why}")
            if part not in (TEXT, IMAGE) and part not in self.special:
                known = [*self.special, *slots]
                raise InvalidLayout(f"{field}: {UnknownName.among('special token or slot', part, known).message}")
        for slot in slots:
            if template.count(slot) != 1:
                problem = "lacks the slot" if slot not in template else f"has {template.count(slot)} times the slot"
                raise InvalidLayout(f"{field} {problem} {slot}; write the slot once")
        if not slots:
            raise InvalidLayout(f"{field} is given, but the layout has no `image`; add `image`, or remove {field}")

    def _check_blocks(self) -> None:
        text, *others = self._blocks()
        others.sort(key=lambda block: block[1])
        for name, start, size in sorted((text, *others), key=lambda block: block[1]):
            if self.rows is not None and start + size > self.rows:
                _beyond(name, start, size, self.rows)
        # Image and special rows lie inside the text block or outside of it.
        cut = [(text, block) for block in others if 0 < _common(block, text) < block[2]]
        for left, right in (*cut, *(pair for pair in pairwise(others) if _common(*pair))):
            raise _overlap(left, right)
        if not self.text_ranges:
            raise InvalidLayout("text has no row that is neither image nor special; move a block out of the text")
        if len(self.text_ranges) > MAX_TEXT_RANGES:
            raise InvalidLayout(
                f"special tokens divide the text into {len(self.text_ranges):,} ranges; name only those that the "
                f"template needs, so that there are at most {MAX_TEXT_RANGES}"
            )

    def _blocks(self) -> Iterator[tuple[str, int, int]]:
        yield "text", self.text.offset, self.text.size
        blocks = [(f"special {name!r}", row, 1) for name, row in self.special.items()]
        if self.image is not None:
            blocks.append(("image", self.image.offset, self.image.size))
        for name, start, size in blocks:
            if start >= 0:
                yield name, start, size
            elif self.rows is not None:
                if start < -self.rows:
                    _beyond(name, start, size, self.rows)
                yield name, start + self.rows, size


@dataclass(frozen=True)
class IdCounts:
    """Numbers of ids from which a model without knowledge chooses."""

    all: int
    text: int
    image: int

    @classmethod
    def of(cls, layout: VocabularyLayout, heads_apart: bool = False) -> IdCounts:
        """Return the numbers of a resolved layout; with `heads_apart`, those of the text's own head."""
        rows, image = layout.rows or 0, layout.image.size if layout.image else 0
        text = sum(map(len, layout.text_ranges))
        return cls(rows - image, text, 0) if heads_apart else cls(rows, text, image)


def text_only(rows: int) -> VocabularyLayout:
    return VocabularyLayout(rows=rows, text=TextBlock(size=rows))


def _without(template: tuple[str, ...], slot: str) -> tuple[str, ...]:
    if slot not in template:
        return template
    place = template.index(slot)
    before, after = template[:place], template[place + 1 :]
    if before and after and after[0] == "/" + before[-1]:
        return before[:-1] + after[1:]
    return before + after


def _check_range(what: str, values: Sequence[int] | None, size: int, whose: str) -> None:
    if values and not (min(values) >= 0 and max(values) < size):
        wrong = next(value for value in values if not 0 <= value < size)
        raise InvalidData(f"has the {what} {wrong}; {whose} 0…{size - 1}")


def _overlap(*blocks: tuple[str, int, int]) -> InvalidLayout:
    before, after = sorted(blocks, key=lambda block: block[1])
    return InvalidLayout(f"{_block(*before)} overlaps {_block(*after)}; move one of the two blocks")


def _common(left: tuple[str, int, int], right: tuple[str, int, int]) -> int:
    return max(0, min(left[1] + left[2], right[1] + right[2]) - max(left[1], right[1]))


def _block(name: str, start: int, size: int) -> str:
    return f"{name} ({start})" if size == 1 else f"{name} ({start}…{start + size - 1})"


def _beyond(name: str, start: int, size: int, rows: int) -> NoReturn:
    raise InvalidLayout(f"{_block(name, start, size)} exceeds the table of {rows} rows; correct the layout or `rows`")


_SIZES = ("text_size", "codebook_size", "rows")

_KEYS = tuple(field.alias or name for name, field in VocabularyLayout.model_fields.items())

_BLOCKS: Mapping[str, type[BaseModel]] = {"text": TextBlock, "image": ImageBlock, "prompt": PromptText}


def parse_layout(
    spec: str | Mapping[str, object], base: Path | None = None, allow: Allow = anywhere
) -> VocabularyLayout:
    """Return a layout from the name of a preset, the path of a YAML or JSON file, or a mapping: the fields of
    `VocabularyLayout`, or `preset` with `text_size`, `codebook_size`, `rows` and any field that replaces the preset's.

    Relative paths start from the folder `base`. `allow` must permit every file that is read.
    """
    if isinstance(spec, str):
        if not spec.endswith((".yaml", ".yml", ".json")):
            return _from_preset({"preset": spec}, _Source(base, allow))
        path = _resolve_path(spec, base, "the layout file")
        try:
            content = read_yaml(_read_file(path, "layout file", allow))
        except YamlError as error:
            raise InvalidLayout(f"the layout file {path} is not valid YAML: {error}; correct the file") from None
        source = _Source(path.parent, allow, file=True)
    else:
        content, source = spec, _Source(base, allow)
    if not isinstance(content, Mapping):
        raise InvalidLayout(f"a layout is a preset's name, a path or a mapping, found a {type(content).__name__}")
    return _from_preset(content, source) if "preset" in content else _from_mapping(content, source)


@dataclass(frozen=True)
class _Source:
    base: Path | None
    """Folder that relative paths start from."""
    allow: Allow
    file: bool = False
    """Whether the mapping comes from a file, whose values are not quoted in messages."""


def _from_preset(spec: Mapping[str, object], source: _Source) -> VocabularyLayout:
    name = str(spec["preset"])
    where = "layout" if source.file else f"layout {name!r}"
    check_keys(where, spec, ("preset", *_SIZES, *_KEYS), InvalidLayout)
    if name not in presets():
        if source.file:
            raise UnknownName(f"the layout's file has an unknown `preset`; available: {', '.join(sorted(presets()))}")
        raise UnknownName.among("layout preset", name, presets(), "or give a path that ends in .yaml or .json")
    sizes: dict[str, int] = {}
    for key in _SIZES:
        value = spec.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            sizes[key] = value
        elif value is not None:
            shown_value = type(value).__name__ if source.file else repr(value)
            raise InvalidLayout(f"{where}: {key} must be a whole number above 0, found {shown_value}")
    overrides = {key: value for key, value in spec.items() if key not in ("preset", *_SIZES)}
    fields = presets()[name].fields(**sizes)
    for block in _BLOCKS:
        if isinstance(given := overrides.get(block), Mapping):
            overrides[block] = {**fields.get(block, {}), **given}
    return _from_mapping(fields | overrides, source)


def _from_mapping(spec: Mapping[str, object], source: _Source) -> VocabularyLayout:
    content = dict(spec)
    check_keys("layout", content, _KEYS, InvalidLayout)
    for block, model in _BLOCKS.items():
        if isinstance(given := content.get(block), Mapping):
            content[block] = dict(given)
            check_keys(f"layout, {block}", given, model.model_fields, InvalidLayout)
    text, image = content.get("text"), content.get("image")
    if isinstance(text, dict) and isinstance(text.get("tokenizer"), str):
        text["tokenizer"] = str(_resolve_path(text["tokenizer"], source.base, "text.tokenizer"))
    if isinstance(image, dict) and isinstance(image.get("map"), str):
        image["map"] = _read_map(_resolve_path(image["map"], source.base, "image.map"), source.allow)
    try:
        return VocabularyLayout.model_validate(content)
    except ValidationError as error:
        raise InvalidLayout(f"layout: {validation_message(error, quoting=not source.file)}") from None


def _resolve_path(path: str, base: Path | None, what: str) -> Path:
    if not Path(path).is_absolute() and base is None:
        raise InvalidLayout(f"{what} {path!r} is a relative path; use an absolute path")
    return Path(path) if base is None else (base / path).resolve()


def _read_map(path: Path, allow: Allow) -> list[int]:
    try:
        content = json.loads(_read_file(path, "image.map", allow))
    except (ValueError, RecursionError) as error:
        raise InvalidLayout(f"image.map {path} is not valid JSON: {json_reason(error)}; correct the file") from None
    if not isinstance(content, list) or any(type(code) is not int for code in content):
        raise InvalidLayout(f"image.map {path} is not a list of whole numbers; write one row per code")
    return content


def _read_file(path: Path, what: str, allow: Allow) -> bytes:
    try:
        with open_file(path, what, allow).stream as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except InvalidData as error:
        raise InvalidLayout(error.message) from None
    except OSError as error:
        raise InvalidLayout(f"the {what} {path} cannot be read: {os_reason(error)}; check the path") from None
    if len(content) > MAX_FILE_BYTES:
        raise InvalidLayout(
            f"the {what} {path} is larger than {MAX_FILE_BYTES:,} bytes, too many for a layout; check the path"
        )
    return content
