"""Candidate layouts of a checkpoint: every preset at its sizes with every template, unless the data rule it out.

A candidate is a layout that fits the model's table and the data. Candidates that give the data the same ids are merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from evalsvc.data.tokens import Record
from evalsvc.errors import EvalsvcError, InvalidData
from evalsvc.spec.layout import (
    IMAGE,
    PRESETS,
    SPECIAL,
    TEXT,
    TEXT_ROWS,
    TOKENIZER_SIZE,
    VocabularyLayout,
    WidenedPreset,
    parse_layout,
)

_TEXT_MARKED, _IMAGE_MARKED = ("text", TEXT, "/text"), ("image", IMAGE, "/image")

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "text, image": ("doc", *_TEXT_MARKED, *_IMAGE_MARKED, "/doc"),
    "text, image; no doc": (*_TEXT_MARKED, *_IMAGE_MARKED),
    "text, image; only doc": ("doc", TEXT, IMAGE, "/doc"),
    "text, image; only image": (TEXT, *_IMAGE_MARKED),
    "text, image; bare": (TEXT, IMAGE),
    "image, text": ("doc", *_IMAGE_MARKED, *_TEXT_MARKED, "/doc"),
    "image, text; no doc": (*_IMAGE_MARKED, *_TEXT_MARKED),
    "image, text; only doc": ("doc", IMAGE, TEXT, "/doc"),
    "image, text; only image": (*_IMAGE_MARKED, TEXT),
    "image, text; bare": (IMAGE, TEXT),
}
"""Orders of text and image, and the special tokens that mark them."""


@dataclass(frozen=True)
class Candidate:
    """A layout that the checkpoint may have."""

    name: str
    """Name of the preset with its text size, or the file that the layout was read from."""
    template: str
    """Name in `TEMPLATES`, or `its own`."""
    layout: VocabularyLayout
    """Layout with an image block, resolved for the model's table."""
    variant: str = ""
    """Changes since the candidate was proposed."""
    same: tuple[str, ...] = ()
    """Labels of the candidates that give the data the same ids."""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.template}{'; ' + self.variant if self.variant else ''})"

    @property
    def codebook_size(self) -> int:
        return self.layout.image.size if self.layout.image else 0

    def sequences(self, records: Sequence[Record]) -> list[list[int]]:
        """Return the data as rows of the table under this layout."""
        return [self.layout.sequence(record.text_ids, record.image_codes).ids for record in records]


@dataclass(frozen=True)
class Dropped:
    """A layout that was ruled out, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sizes:
    """Sizes of the blocks that presets are built of."""

    text: tuple[int, ...]
    """Numbers of text rows to try."""
    codebook: int
    notes: tuple[str, ...]
    """Explanations of the inferred sizes."""


def find_sizes(
    rows: int, records: Sequence[Record], text_sizes: Sequence[int] = (), codebook_size: int | None = None
) -> Sizes:
    """Return the given sizes, and infer the others from the table's `rows` and from the data.

    A codebook is the smallest power of two that has all codes. A text block has the rows that image and special tokens,
    or the image alone, leave of the table, or the size of open_lm's own table or tokenizer if that fits. Raises
    InvalidData if the table is too small for the text ids and codes of the data.
    """
    notes = []
    top_text = max(max(record.text_ids or (0,)) for record in records)
    top_code = max(max(record.image_codes or (0,)) for record in records)
    if codebook_size is None:
        codebook_size = 1 << max(top_code, 1).bit_length()
        notes.append(f"codebook of {codebook_size} inferred from the highest code {top_code}")
    if not text_sizes:
        rest = rows - codebook_size
        proposed = dict.fromkeys((rest - len(SPECIAL), rest, TEXT_ROWS, TOKENIZER_SIZE))
        text_sizes = [size for size in proposed if top_text < size <= rest]
        shown = ", ".join(map(str, text_sizes))
        notes.append(f"text sizes {shown} inferred from a table of {rows} rows less the codebook")
    if not text_sizes:
        raise InvalidData(
            f"has text ids up to {top_text} and a codebook of {codebook_size}, more than the model's {rows} rows; "
            "use the run's own data, or set --text-size and --codebook-size"
        )
    return Sizes(tuple(dict.fromkeys(text_sizes)), codebook_size, tuple(notes))


def propose(
    rows: int, records: Sequence[Record], sizes: Sizes, given_layouts: Mapping[str, VocabularyLayout]
) -> tuple[list[Candidate], list[Dropped]]:
    """Return every preset with every template at every size, and the layouts in `own`, by name; also return layouts
    that do not fit."""
    candidates, dropped = [], []
    for name, template, build in _attempts(sizes, given_layouts):
        try:
            candidate = Candidate(name, template, _resolved(build, rows))
            candidate.sequences(records)
            candidates.append(candidate)
        except EvalsvcError as error:
            dropped.append(Dropped(name, error.message))
    # A preset that fails with one template fails with all for the same reason.
    return merge_same(candidates, records), list(dict.fromkeys(dropped))


def merge_same(candidates: Iterable[Candidate], records: Sequence[Record]) -> list[Candidate]:
    """Merge candidates that give the data the same ids into the first one, with the labels of the others."""
    merged: dict[tuple[tuple[int, ...], ...], Candidate] = {}
    for candidate in candidates:
        key = tuple(map(tuple, candidate.sequences(records)))
        first = merged.setdefault(key, candidate)
        if first is not candidate:
            merged[key] = replace(first, same=(*first.same, candidate.label))
    return list(merged.values())


def with_special(candidate: Candidate, special: Mapping[str, int], variant: str) -> Candidate:
    """Return the candidate with other rows for the special tokens."""
    return replace(candidate, layout=_changed(candidate, special=dict(special)), variant=variant, same=())


def with_template(candidate: Candidate, template: str) -> Candidate:
    """Return the candidate with another template in `TEMPLATES`."""
    layout = _changed(candidate, template=TEMPLATES[template], unconditional_template=None)
    return replace(candidate, layout=layout, template=template, same=())


def with_order(candidate: Candidate, order: Sequence[int]) -> Candidate:
    """Return the candidate with reordered codes: code `c` gets the row of code `order[c]`."""
    image = candidate.layout.to_json()["image"]
    rows = image["map"] or range(len(order))
    layout = _changed(candidate, image=image | {"map": [rows[code] for code in order]})
    return replace(candidate, layout=layout, variant="codes reordered", same=())


def _changed(candidate: Candidate, **fields: object) -> VocabularyLayout:
    return VocabularyLayout.model_validate({**candidate.layout.to_json(), **fields})


def rows_of(part: str, layout: VocabularyLayout, record: Record, special: Mapping[str, int]) -> list[int]:
    """Return the rows of one part of a template, with these rows for the special tokens."""
    if part == TEXT:
        return [layout.text_ids[token] for token in record.text_ids or ()]
    if part == IMAGE:
        rows = layout.image_ids or ()
        return [rows[code] for code in record.image_codes or ()]
    return [special[part]]


def unclaimed_rows(layout: VocabularyLayout) -> list[int]:
    """Return the rows of a resolved layout that are neither text nor image."""
    return sorted(set(range(layout.rows or 0)).difference(layout.text_ids, layout.image_range or ()))


def silent_rows(layout: VocabularyLayout) -> list[int]:
    """Return the rows that never occur if the layout is right: not in a block, not in the template, not the pad.

    The layout does not determine whether the pad is ever a target.
    """
    used = {layout.special[part] for part in layout.template if part in layout.special}
    return [row for row in unclaimed_rows(layout) if row not in used and row != layout.pad_id]


def slots_of(template: Sequence[str]) -> tuple[str, ...]:
    """Return the slots of a template in order."""
    return tuple(part for part in template if part in (TEXT, IMAGE))


def check_pairs(path: str, records: Sequence[Record]) -> None:
    """Raise InvalidData unless every record has text and image."""
    for record in records:
        if not record.text_ids or not record.image_codes:
            missing = "`image_codes`" if record.text_ids else "`text_ids` or `text`"
            raise InvalidData(f"{path}, {record.where} has no {missing}; the layout doctor needs both in every record")


def _attempts(
    sizes: Sizes, given_layouts: Mapping[str, VocabularyLayout]
) -> Iterator[tuple[str, str, VocabularyLayout | dict[str, object]]]:
    for name, layout in given_layouts.items():
        yield name, "its own", layout
    for preset, build in PRESETS.items():
        for size in sizes.text:
            for template, parts in TEMPLATES.items():
                is_bare = not set(parts) - {TEXT, IMAGE}
                if isinstance(build, WidenedPreset) and not is_bare:
                    continue  # such a table has no rows for special tokens
                # Nor has a table without special tokens those that another preset assigns to them.
                special: dict[str, object] = {"special": {}} if is_bare else {}
                yield (
                    f"{preset} {size}",
                    template,
                    {
                        "preset": preset,
                        "text_size": size,
                        "codebook_size": sizes.codebook,
                        "template": list(parts),
                        "unconditional_template": None,
                        "length": None,
                        **special,
                    },
                )


def _resolved(build: VocabularyLayout | dict[str, object], rows: int) -> VocabularyLayout:
    # Without `rows`, because a preset would check special tokens that its template leaves out.
    return (build if isinstance(build, VocabularyLayout) else parse_layout(build)).resolve(rows)
