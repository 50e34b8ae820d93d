"""Candidate layouts of a checkpoint: every preset at its sizes with every template, unless the data rule it out.

A candidate is a layout that fits the model's table and the data. Candidates that give the data the same ids are merged.

The description length of a sequence, in nats, is the summed loss of its text, image and special tokens, plus ln of the
block size for a first token that nothing predicts, plus -ln(1 - p) after the last token. Here p is the probability of
rows that never occur if the layout is right, such as a marker that the template leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Protocol

from evalsvc.data.tokens import Record
from evalsvc.errors import EvalsvcError, InvalidData
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.metrics.shares import standard_error
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

KINDS = ("text", "image", "special")

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

    def changed(self, variant: str, **fields: object) -> Candidate:
        """Return the candidate with other fields of its layout."""
        layout = VocabularyLayout.model_validate({**self.layout.to_json(), **fields})
        return replace(self, layout=layout, variant=variant, same=())

    def sequences(self, records: Sequence[Record]) -> list[list[int]]:
        """Return the data as rows of the table under this layout."""
        return [self.layout.sequence(record.text_ids, record.image_codes).ids for record in records]


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
            f"the pairs have text ids up to {top_text} and a codebook of {codebook_size}, more than the model's {rows} "
            "rows; use the run's own data, or set --text-size and --codebook-size"
        )
    return Sizes(tuple(dict.fromkeys(text_sizes)), codebook_size, tuple(notes))


def propose(
    rows: int, records: Sequence[Record], sizes: Sizes, given_layouts: Mapping[str, VocabularyLayout]
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the given layouts, and every preset with every template at every size. Also return why others do not fit,
    by name."""
    merged: dict[tuple[tuple[int, ...], ...], Candidate] = {}
    dropped: dict[str, str] = {}
    for name, template, build in _attempts(sizes, given_layouts):
        try:
            # Without `rows`, because a preset would check special tokens that its template leaves out.
            layout = build if isinstance(build, VocabularyLayout) else parse_layout(build)
            candidate = Candidate(name, template, layout.resolve(rows))
            key = tuple(map(tuple, candidate.sequences(records)))
        except EvalsvcError as error:
            dropped[name] = error.message  # for all templates of a preset the same
            continue
        # Candidates that give the data the same ids are merged into the first.
        first = merged.setdefault(key, candidate)
        if first is not candidate:
            merged[key] = replace(first, same=(*first.same, candidate.label))
    return list(merged.values()), dropped


def with_order(candidate: Candidate, order: Sequence[int]) -> Candidate:
    """Return the candidate with reordered codes: code `c` gets the row of code `order[c]`."""
    image = candidate.layout.to_json()["image"]
    rows = image["map"] or range(len(order))
    return candidate.changed("codes reordered", image=image | {"map": [rows[code] for code in order]})


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


def _attempts(
    sizes: Sizes, given_layouts: Mapping[str, VocabularyLayout]
) -> Iterator[tuple[str, str, VocabularyLayout | dict[str, object]]]:
    for name, layout in given_layouts.items():
        yield name, "its own", layout
    for (preset, build), size, (template, parts) in product(PRESETS.items(), sizes.text, TEMPLATES.items()):
        is_bare = not set(parts) - {TEXT, IMAGE}
        if isinstance(build, WidenedPreset) and not is_bare:
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


class Witness(Protocol):
    """The interface of a model that scores candidates."""

    def sums(self, layout: VocabularyLayout, sequences: Sequence[Sequence[int]]) -> Mapping[str, Sequence[float]]:
        """Return counts and summed losses of each sequence, see `teacher_forcing.COLUMNS`."""

    def next_log_masses(self, prefixes: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log probabilities that some row of a group follows: for each prefix, one number per group."""


@dataclass(frozen=True)
class Scored:
    """A candidate with the model's losses of the data."""

    candidate: Candidate
    sums: Mapping[str, Sequence[float]]
    ends: Sequence[float]
    """Nats of each sequence for its first token and after its last token, added to the losses."""

    @cached_property
    def totals(self) -> list[float]:
        """Return the description length of each sequence in nats."""
        losses = (self.sums[f"nll_{kind}"] for kind in KINDS)
        return [math.fsum(parts) for parts in zip(*losses, self.ends, strict=True)]

    @cached_property
    def total(self) -> float:
        """Return the description length of all sequences in nats."""
        return math.fsum(self.totals)

    def loss(self, kind: str) -> Ratio | None:
        """Return the loss of `text`, `image` or `special` tokens over all ids, in nats/token; None without such
        tokens."""
        return ratio_of_sums(self.sums[f"nll_{kind}"], self.sums[f"n_{kind}"])

    @property
    def image_within(self) -> Ratio | None:
        """Return the loss of image tokens within image ids, in nats/token."""
        return ratio_of_sums(self.sums["within_image"], self.sums["n_image"])

    @property
    def tokens(self) -> float:
        """Return the mean number of text and image targets of a sequence."""
        return math.fsum([*self.sums["n_text"], *self.sums["n_image"]]) / len(self.ends)


@dataclass(frozen=True)
class Behind:
    """Distance of a candidate behind the best, paired over sequences."""

    scored: Scored
    nats: float
    """Nats per sequence; negative if the candidate is better."""
    stderr: float | None
    """Standard error; None for a single sequence."""
    tokens: float
    """Number of text and image tokens of a sequence."""

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def standard_errors(self) -> float:
        return in_errors(self.nats, self.stderr)

    def __str__(self) -> str:
        side = "worse" if self.nats > 0 else "better"
        return f"{abs(self.nats):.2f} nats/sequence {side}, {abs(self.standard_errors):.1f} standard errors"


def score(witness: Witness, candidate: Candidate, sequences: Sequence[Sequence[int]], enough: float) -> Scored:
    """Score the data under a candidate. Above `enough` nats, the expectation after the last tokens is not computed."""
    layout = candidate.layout
    scored = Scored(candidate, witness.sums(layout, sequences), [_first_token(layout)] * len(sequences))
    silent = silent_rows(layout)
    if not silent or scored.total > enough:
        return scored
    masses = witness.next_log_masses(sequences, [silent])
    ends = [start + _surprise(mass) for start, (mass,) in zip(scored.ends, masses, strict=True)]
    return Scored(candidate, scored.sums, ends)


def behind(best: Scored, other: Scored) -> Behind:
    """Return how far `other` is behind `best`."""
    differences = [rival - leader for rival, leader in zip(other.totals, best.totals, strict=True)]
    mean = math.fsum(differences) / len(differences)
    return Behind(other, mean, standard_error(differences), best.tokens)


def in_errors(margin: float, stderr: float | None) -> float:
    """Return a margin in standard errors; 0 if the standard error is unknown."""
    if stderr is None or math.isnan(margin):
        return 0.0
    return margin / stderr if stderr else math.copysign(math.inf, margin)


def _first_token(layout: VocabularyLayout) -> float:
    """Return the nats of a first token: 0 for a marker, ln of the block size for any other."""
    first = layout.template[0]
    if first == TEXT:
        return math.log(layout.text.size)
    return math.log(layout.image.size) if first == IMAGE and layout.image else 0.0


def _surprise(log_mass: float) -> float:
    """Return -ln(1 - p), bounded by its value for a p that rounds to 1."""
    return -math.log(max(-math.expm1(log_mass), 1e-12))
