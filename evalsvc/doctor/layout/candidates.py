"""Which layouts a checkpoint may have: every preset at its sizes, every template, and what of that its data rule out.

A candidate is a layout that fits the model's table and the data. Candidates that give the data the same ids are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from evalsvc.data.tokens import Record
from evalsvc.errors import EvalsvcError, InvalidData
from evalsvc.spec.layout import IMAGE, PRESETS, SPECIAL, TEXT, TEXT_ROWS, TOKENIZER_SIZE, VocabularyLayout, parse_layout

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
"""Orders of text and image, and which special tokens mark them."""


@dataclass(frozen=True)
class Candidate:
    """A layout that the checkpoint may have."""

    name: str
    """The preset with its text size, or the file that it was read from."""
    template: str
    """One of `TEMPLATES`, or `its own`."""
    layout: VocabularyLayout
    """Resolved for the model's table; it has an image block."""
    variant: str = ""
    """What was changed of it since it was proposed."""
    same: tuple[str, ...] = ()
    """Labels of those that give the data the same ids."""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.template}{'; ' + self.variant if self.variant else ''})"

    @property
    def codebook_size(self) -> int:
        return self.layout.image.size if self.layout.image else 0

    def sequences(self, records: Sequence[Record]) -> list[list[int]]:
        """The data as this layout has them: rows of the table."""
        return [self.layout.sequence(record.text_ids, record.image_codes).ids for record in records]


@dataclass(frozen=True)
class Dropped:
    """What cannot be the layout, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sizes:
    """Of the blocks that presets are made of."""

    text: tuple[int, ...]
    """Rows of the text block, each of them tried."""
    codebook: int
    notes: tuple[str, ...]
    """Which of them were inferred, and from what."""


def find_sizes(
    rows: int, records: Sequence[Record], text_sizes: Sequence[int] = (), codebook_size: int | None = None
) -> Sizes:
    """Return the sizes as given, else inferred from the table's `rows` and from the data.

    A codebook is the smallest power of two that has all codes; a text block what image and special tokens, or the image
    alone, leave of the table, or open_lm's own table or tokenizer where those fit in. Raises InvalidData where the
    table is too small for the text ids and codes of the data.
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
            "these are other data, or the table holds no images; else give --text-size and --codebook-size"
        )
    return Sizes(tuple(dict.fromkeys(text_sizes)), codebook_size, tuple(notes))


def propose(
    rows: int, records: Sequence[Record], sizes: Sizes, own: Mapping[str, VocabularyLayout]
) -> tuple[list[Candidate], list[Dropped]]:
    """Every preset with every template at every size, and `own` layouts by name; what does not fit, with its reason."""
    candidates, dropped = [], []
    for name, template, build in _attempts(sizes, own):
        try:
            candidate = Candidate(name, template, _resolved(build, rows))
            candidate.sequences(records)
            candidates.append(candidate)
        except EvalsvcError as error:
            dropped.append(Dropped(name, error.message))
    # A preset that fails with one template fails with the others for the same reason.
    return merge_same(candidates, records), list(dict.fromkeys(dropped))


def merge_same(candidates: Iterable[Candidate], records: Sequence[Record]) -> list[Candidate]:
    """One candidate for all that give the data the same ids: the first, with the labels of the others."""
    merged: dict[tuple[tuple[int, ...], ...], Candidate] = {}
    for candidate in candidates:
        key = tuple(map(tuple, candidate.sequences(records)))
        first = merged.setdefault(key, candidate)
        if first is not candidate:
            merged[key] = replace(first, same=(*first.same, candidate.label))
    return list(merged.values())


def with_special(candidate: Candidate, special: Mapping[str, int], variant: str) -> Candidate:
    """The same with other rows for the special tokens."""
    return replace(candidate, layout=_changed(candidate, special=dict(special)), variant=variant, same=())


def with_template(candidate: Candidate, template: str) -> Candidate:
    """The same with another of `TEMPLATES`."""
    layout = _changed(candidate, template=TEMPLATES[template], unconditional_template=None)
    return replace(candidate, layout=layout, template=template, same=())


def with_order(candidate: Candidate, order: Sequence[int]) -> Candidate:
    """The same with the codes in another order: code `c` gets the row that code `order[c]` has."""
    image = candidate.layout.to_json()["image"]
    own = image["map"] or range(len(order))
    layout = _changed(candidate, image=image | {"map": [own[code] for code in order]})
    return replace(candidate, layout=layout, variant="codes reordered", same=())


def _changed(candidate: Candidate, **fields: object) -> VocabularyLayout:
    return VocabularyLayout.model_validate({**candidate.layout.to_json(), **fields})


def rows_of(part: str, layout: VocabularyLayout, record: Record, special: Mapping[str, int]) -> list[int]:
    """The rows of one part of a template, with these rows for the special tokens."""
    if part == TEXT:
        return [layout.text_ids[token] for token in record.text_ids or ()]
    if part == IMAGE:
        rows = layout.image_ids or ()
        return [rows[code] for code in record.image_codes or ()]
    return [special[part]]


def unclaimed_rows(layout: VocabularyLayout) -> list[int]:
    """Rows of a resolved layout that are neither text nor image."""
    return sorted(set(range(layout.rows or 0)).difference(layout.text_ids, layout.image_range or ()))


def silent_rows(layout: VocabularyLayout) -> list[int]:
    """Rows that never occur if the layout is right: not in a block, no part of the template, not the pad.

    Whether the pad is ever a target is not the layout's to say.
    """
    used = {layout.special[part] for part in layout.template if part in layout.special}
    return [row for row in unclaimed_rows(layout) if row not in used and row != layout.pad_id]


def slots_of(template: Sequence[str]) -> tuple[str, ...]:
    """The slots in their order."""
    return tuple(part for part in template if part in (TEXT, IMAGE))


def check_pairs(path: str, records: Sequence[Record]) -> None:
    """Raise InvalidData unless every record is a pair of text and image."""
    for record in records:
        if not record.text_ids or not record.image_codes:
            missing = "`image_codes`" if record.text_ids else "`text_ids` or `text`"
            raise InvalidData(f"{path}, {record.where} has no {missing}; the layout doctor needs pairs of both")


def _attempts(
    sizes: Sizes, own: Mapping[str, VocabularyLayout]
) -> Iterator[tuple[str, str, VocabularyLayout | dict[str, object]]]:
    for name, layout in own.items():
        yield name, "its own", layout
    for preset in PRESETS:
        for size in sizes.text:
            for template, parts in TEMPLATES.items():
                # A table without special tokens has none of the rows that a preset gives them.
                special: dict[str, object] = {} if set(parts) - {TEXT, IMAGE} else {"special": {}}
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
    # Without `rows`, since a preset would first check those special tokens that its template leaves out.
    return (build if isinstance(build, VocabularyLayout) else parse_layout(build)).resolve(rows)
