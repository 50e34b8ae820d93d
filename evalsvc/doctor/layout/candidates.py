"""Candidate layouts of a checkpoint: every preset at its sizes with every template, unless the data rule it out.

A candidate is a layout that fits the model's table and the data. Candidates that give the data the same ids are merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from evalsvc.data.tokens import Record
from evalsvc.errors import EvalsvcError, InvalidData
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.layout_presets import IMAGE, SPECIAL, TEXT, TEXT_ROWS, TOKENIZER_SIZE, presets

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
class Proposal:
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

    def changed(self, variant: str, **fields: object) -> Proposal:
        """Return the candidate with other fields of its layout."""
        layout = VocabularyLayout.model_validate({**self.layout.to_json(), **fields})
        return replace(self, layout=layout, variant=variant, same=())

    def reordered(self, order: Sequence[int]) -> Proposal:
        """Return the candidate with reordered codes: code `c` gets the row of code `order[c]`."""
        image = self.layout.to_json()["image"]
        rows = image["map"] or range(len(order))
        return self.changed("codes reordered", image=image | {"map": [rows[code] for code in order]})

    def sequences(self, records: Sequence[Record]) -> list[list[int]]:
        """Return the data as rows of the table under this layout."""
        return [self.layout.sequence(record.text_ids, record.image_codes).ids for record in records]

    def rows_of(self, part: str, record: Record, special: Mapping[str, int]) -> list[int]:
        """Return the rows of one part of a template, with these rows for the special tokens."""
        if part == TEXT:
            return [self.layout.text_ids[token] for token in record.text_ids or ()]
        rows = self.layout.image_ids or ()
        return [rows[code] for code in record.image_codes or ()] if part == IMAGE else [special[part]]

    def unclaimed_rows(self) -> list[int]:
        """Return the rows that are neither text nor image."""
        layout = self.layout
        return sorted(set(range(layout.rows or 0)).difference(layout.text_ids, layout.image_range or ()))

    def silent_rows(self) -> list[int]:
        """Return the rows that never occur if the layout is right: not in a block, not in the template, not the pad.

        The layout does not determine whether the pad is ever a target.
        """
        used = {row for name, row in self.layout.special.items() if name in (*self.layout.template, "pad")}
        return [row for row in self.unclaimed_rows() if row not in used]


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
        listed = ", ".join(map(str, text_sizes))
        notes.append(f"text sizes {listed} inferred from a table of {rows} rows less the codebook")
    if not text_sizes:
        raise InvalidData(
            f"the pairs have text ids up to {top_text} and a codebook of {codebook_size}, more than the model's {rows} "
            "rows; use the run's own data, or set --text-size and --codebook-size"
        )
    return Sizes(tuple(dict.fromkeys(text_sizes)), codebook_size, tuple(notes))


def propose(
    rows: int, records: Sequence[Record], sizes: Sizes, given_layouts: Mapping[str, VocabularyLayout]
) -> tuple[list[Proposal], dict[str, str]]:
    """Return the given layouts, and every preset with every template at every size. Also return why others do not fit,
    by name."""
    merged: dict[tuple[tuple[int, ...], ...], Proposal] = {}
    dropped: dict[str, str] = {}
    for name, template, fields in (
        *((name, "its own", layout.to_json()) for name, layout in given_layouts.items()),
        *_presets(sizes),
    ):
        try:
            # Without `rows`, because a preset would check special tokens that its template leaves out.
            candidate = Proposal(name, template, parse_layout(fields).resolve(rows))
            key = tuple(map(tuple, candidate.sequences(records)))
        except EvalsvcError as error:
            dropped[name] = error.message  # for all templates of a preset the same
            continue
        # Candidates that give the data the same ids are merged into the first.
        first = merged.setdefault(key, candidate)
        if first is not candidate:
            merged[key] = replace(first, same=(*first.same, candidate.label))
    return list(merged.values()), dropped


def _presets(sizes: Sizes) -> Iterator[tuple[str, str, dict[str, object]]]:
    for (preset, order), size, (template, parts) in product(presets().items(), sizes.text, TEMPLATES.items()):
        is_bare = not set(parts) - {TEXT, IMAGE}
        if not order.special and not is_bare:
            continue  # such a table has no rows for special tokens
        fields: dict[str, object] = {
            "preset": preset,
            "text_size": size,
            "codebook_size": sizes.codebook,
            "template": list(parts),
            "unconditional_template": None,
            "length": None,
        }
        # Nor has a table without special tokens those that another preset assigns to them.
        yield f"{preset} {size}", template, fields | ({"special": {}} if is_bare else {})
