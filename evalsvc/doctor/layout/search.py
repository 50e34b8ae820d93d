"""Candidate layouts of a checkpoint, their scores, and a search around the best one for its special tokens.

A candidate is a layout that fits the model's table and the data: every preset at its sizes with every template, and
every published model's preset whose special tokens the tokenizer has. Candidates that give the data the same ids are
merged.

The description length of a sequence, in nats, is the summed loss of its text, image and special tokens, plus ln of the
block size for a first token that nothing predicts, plus -ln(1 - p) after the last token. Here p is the probability of
rows that never occur if the layout is right, such as a marker that the template leaves out.

Where a candidate has a prompt, texts differ, and few models are trained on theirs: then only the image and what follows
count, for all candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, product
from typing import Protocol

from evalsvc.data.tokens import Record
from evalsvc.errors import EvalsvcError, InvalidData
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.layout_presets import IMAGE, SPECIAL, TEXT, TEXT_ROWS, TOKENIZER_SIZE, PublishedPreset, presets

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
    prompts: tuple[Record, ...] | None = None
    """The data as the layout's prompt writes them; None for a layout without a prompt."""
    text_is_given: bool = False

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
        pairs = self.prompts or records
        return [self.layout.sequence(record.text_ids, record.image_codes).ids for record in pairs]

    def rows_of(self, part: str, record: Record, special: Mapping[str, int]) -> list[int]:
        """Return the rows of one part of a template, with these rows for the special tokens."""
        if part == TEXT:
            return [self.layout.text_ids[token] for token in record.text_ids or ()]
        return self.layout.image_rows(record.image_codes or ()) if part == IMAGE else [special[part]]

    def unclaimed_rows(self) -> list[int]:
        """Return the rows that are neither text nor image."""
        layout = self.layout
        return sorted(set(range(layout.rows or 0)).difference(layout.text_ids, layout.image_range or ()))

    def silent_rows(self) -> list[int]:
        """Return the rows that never occur if the layout is right: not the pad either, which may be a target."""
        used = {row for name, row in self.layout.special.items() if name in (*self.layout.template, "pad")}
        return [row for row in self.unclaimed_rows() if row not in used | {self.layout.row_end_id}]

    def scored_layout(self) -> VocabularyLayout:
        """Return the layout in which the special tokens of a prompt count as text."""
        if self.prompts is None:
            return self.layout
        names = (*self.layout.template, "pad", self.layout.image and self.layout.image.row_end)
        kept = {name: row for name, row in self.layout.special.items() if name in names}
        return self.layout.model_copy(update={"special": kept})


@dataclass(frozen=True)
class Sizes:
    text: tuple[int, ...]
    codebook: int
    notes: tuple[str, ...]


def find_sizes(
    rows: int, records: Sequence[Record], text_sizes: Sequence[int] = (), codebook_size: int | None = None
) -> Sizes:
    """Return the given sizes, and infer the others from the table's `rows` and from the data.

    A codebook is the smallest power of two that has all codes. A text block has the rows that image and special tokens,
    or the image alone, leave of the table, or the size of open_lm's own table or tokenizer if that fits.
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
        notes.append(f"text sizes {listed or 'none'} inferred from a table of {rows} rows less the codebook")
    if not text_sizes and max(top_text, top_code) >= rows:
        raise InvalidData(
            f"the pairs have text ids up to {top_text} and codes up to {top_code}, more than the model's {rows} rows; "
            "use the run's own data"
        )
    return Sizes(tuple(dict.fromkeys(text_sizes)), codebook_size, tuple(notes))


def propose(
    rows: int,
    records: Sequence[Record],
    sizes: Sizes,
    given_layouts: Mapping[str, VocabularyLayout],
    prompts_of: Callable[[VocabularyLayout], tuple[Record, ...] | None],
) -> tuple[list[Proposal], dict[str, str]]:
    """Return the given layouts and every preset with every template and size, and by name why others do not fit.

    `prompts_of` returns the data as the prompt of a resolved layout writes them, None for a layout without a prompt.
    """
    merged: dict[tuple[tuple[int, ...], ...], Proposal] = {}
    dropped: dict[str, str] = {}
    for name, template, fields in (
        *((name, "its own", layout.to_json()) for name, layout in given_layouts.items()),
        *_presets(sizes),
        *_published(sizes, rows),
    ):
        try:
            # Without `rows`, because a preset would check special tokens that its template leaves out.
            layout = parse_layout(fields).resolve(rows)
            candidate = Proposal(name, template, layout, prompts=prompts_of(layout))
            key = tuple(map(tuple, candidate.sequences(records)))
        except EvalsvcError as error:
            dropped[name] = error.message  # for all templates of a preset the same
            continue
        # Candidates that give the data the same ids are merged into the first.
        first = merged.setdefault(key, candidate)
        if first is not candidate:
            merged[key] = replace(first, same=tuple(dict.fromkeys((*first.same, candidate.label))))
    prompted = {candidate.name for candidate in merged.values() if candidate.prompts is not None}
    dropped = {name: reason for name, reason in dropped.items() if name not in prompted}  # another of its sizes fits
    return [replace(candidate, text_is_given=bool(prompted)) for candidate in merged.values()], dropped


def _presets(sizes: Sizes) -> Iterator[tuple[str, str, dict[str, object]]]:
    for (preset, order), size, (template, parts) in product(presets().items(), sizes.text, TEMPLATES.items()):
        is_bare = not set(parts) - {TEXT, IMAGE}
        if isinstance(order, PublishedPreset) or (not order.special and not is_bare):
            continue  # the table has no rows for special tokens
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


def _published(sizes: Sizes, rows: int) -> Iterator[tuple[str, str, dict[str, object]]]:
    for preset in (name for name, order in presets().items() if isinstance(order, PublishedPreset)):
        yield preset, "its own", {"preset": preset}
        for size in (rows, *sizes.text):  # images inside the text leave a text block as large as the table
            yield preset, "its own", {"preset": preset, "text_size": size, "codebook_size": sizes.codebook}


MOST_ROWS, MOST_FIRST = 4_096, 256
"""Most unclaimed rows that are searched for markers, and for a template's first token; in a larger gap, only the
candidate's own rows are."""

EXCHANGES = 3
"""Maximum number of rounds of exchanging special tokens."""

TRIED = 4
"""Number of rows that are tried for the first token of a template, which nothing predicts."""

HOPELESS = 30.0
"""Nats per sequence behind the best beyond which a candidate's exact rank does not matter."""


class Witness(Protocol):
    """The interface of a model that scores candidates."""

    def sums(self, layout: VocabularyLayout, sequences: Sequence[Sequence[int]]) -> Mapping[str, Sequence[float]]:
        """Return counts and summed losses of each sequence, see `teacher_forcing.COLUMNS`."""

    def next_log_masses(self, prefixes: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log probabilities that some row of a group follows: for each prefix, one number per group."""


@dataclass(frozen=True)
class Scored:
    """A candidate with the model's losses of the data."""

    candidate: Proposal
    sums: Mapping[str, Sequence[float]]
    ends: Sequence[float]
    """Nats of each sequence for its first token and after its last token, added to the losses."""

    @cached_property
    def totals(self) -> list[float]:
        """Return the description length of each sequence in nats."""
        kinds = ("image", "special") if self.candidate.text_is_given else ("text", "image", "special")
        losses = (self.sums[f"nll_{kind}"] for kind in kinds)
        return [math.fsum(parts) for parts in zip(*losses, self.ends, strict=True)]

    @cached_property
    def total(self) -> float:
        return math.fsum(self.totals)

    def loss(self, kind: str, of: str = "nll") -> Ratio | None:
        """Return the loss of `text`, `image` or `special` tokens in nats/token, over all ids, or, with `within`, over
        the ids of their block. The result is None without such tokens."""
        return ratio_of_sums(self.sums[f"{of}_{kind}"], self.sums[f"n_{kind}"])


def score(
    witness: Witness, candidate: Proposal, sequences: Sequence[Sequence[int]], enough: float = math.inf
) -> Scored:
    """Score the data under a candidate. Above `enough` nats, the expectation after the last tokens is not computed."""
    layout, silent = candidate.scored_layout(), candidate.silent_rows()
    text_size = 1 if candidate.text_is_given else layout.text.size
    block_size = {TEXT: text_size, IMAGE: candidate.codebook_size}.get(layout.template[0], 1)
    scored = Scored(candidate, witness.sums(layout, sequences), [math.log(block_size)] * len(sequences))
    if not silent or scored.total > enough:
        return scored
    masses = witness.next_log_masses(sequences, [silent])
    # Bounded, because a probability may round to 1.
    surprises = (-math.log(max(-math.expm1(mass), 1e-12)) for (mass,) in masses)
    return replace(scored, ends=[start + nats for start, nats in zip(scored.ends, surprises, strict=True)])


@dataclass
class Search:
    """All scored layouts, with each way of writing the data once."""

    witness: Witness
    records: Sequence[Record]
    report: Callable[[int], None] = lambda _: None
    scores: dict[tuple[tuple[int, ...], ...], Scored] = field(default_factory=dict)

    def run(self, candidates: Sequence[Proposal]) -> None:
        """Score the candidates, and then the special tokens that the model expects for the best one."""
        for candidate in candidates:
            self.score(candidate)
        if self.best.candidate.prompts is not None:
            return  # the tokenizer names the special tokens
        for candidate in list(self._templates()):
            for variant in as_the_model_expects(self.witness, candidate, self.records):
                self.score(variant)
        for _ in range(EXCHANGES):
            before = self.best
            for candidate in exchanged(before.candidate):
                self.score(candidate)
            if self.best is before:
                return

    def score(self, candidate: Proposal) -> None:
        sequences = candidate.sequences(self.records)
        key = tuple(map(tuple, sequences))
        if key not in self.scores:
            enough = self.best.total + HOPELESS * len(sequences) if self.scores else math.inf
            self.scores[key] = score(self.witness, candidate, sequences, enough)
            self.report(len(self.scores))

    def _templates(self) -> Iterator[Proposal]:
        best = self.best
        reach = best.total + HOPELESS * len(self.records)
        orders = {_slots(scored.candidate.layout.template) for scored in self.scores.values() if scored.total < reach}
        special = best.candidate.layout.special or dict(zip(SPECIAL, best.candidate.unclaimed_rows(), strict=False))
        based = best.candidate.changed(best.candidate.variant, special=special)
        if based.template not in TEMPLATES:
            yield based
        for name, parts in TEMPLATES.items():
            markers = set(parts) - {TEXT, IMAGE}
            if markers and markers <= special.keys() and _slots(parts) in orders:
                changed = based.changed(based.variant, template=parts, unconditional_template=None)
                yield replace(changed, template=name)

    @property
    def best(self) -> Scored:
        return min(self.scores.values(), key=lambda scored: scored.total)


def as_the_model_expects(witness: Witness, candidate: Proposal, records: Sequence[Record]) -> Iterator[Proposal]:
    """Yield the candidate with special tokens at the rows that the model expects; the first markers are tried."""
    template, template_special = candidate.layout.template, candidate.layout.special
    rows = candidate.unclaimed_rows()
    if len(rows) > MOST_ROWS:
        rows = sorted(template_special.values())
    start = next(index for index, part in enumerate(template) if part in (TEXT, IMAGE))
    read: dict[str, int] = {}
    prefixes: list[list[int]] = [[] for _ in records]
    for part in template[start:]:
        if part not in (TEXT, IMAGE, *read):
            read[part] = _by_expectation(witness, prefixes, _without(rows, read.values()))[0]
        for prefix, record in zip(prefixes, records, strict=True):
            prefix.extend(candidate.rows_of(part, record, read))
    # Special tokens outside the template get the remaining rows. The pad comes last and gets the row that is least
    # expected.
    left = _by_expectation(witness, prefixes, _without(template_special.values(), read.values()))
    firsts = [prefix[0] for prefix in prefixes]
    before = [name for name in template[:start] if name not in read]
    free = _without(rows if len(rows) <= MOST_FIRST else template_special.values(), read.values())
    for leading in _leading(witness, before, free, firsts):
        special = read | leading
        unread = [name for name in template_special if name not in special]
        special |= dict(zip(unread, _without(left, special.values()), strict=False))
        moved = ", ".join(
            f"{name} {row}" for name, row in special.items() if name in template and template_special[name] != row
        )
        yield candidate.changed(f"as read: {moved}" if moved else candidate.variant, special=special)


def exchanged(best: Proposal) -> Iterator[Proposal]:
    """Yield the candidate with the rows of two special tokens exchanged, and with other rows for the first token."""
    special = dict(best.layout.special)
    changes = [
        (f"{left} ↔ {right}", {left: special[right], right: special[left]}) for left, right in combinations(special, 2)
    ]
    first, rows = best.layout.template[0], best.unclaimed_rows()
    if first in special and len(rows) <= MOST_FIRST:
        changes += [(f"{first} {row}", {first: row}) for row in _without(rows, special.values())]
    for change, moved in changes:
        yield best.changed(f"{best.variant}, {change}" if best.variant else change, special=special | moved)


def _leading(
    witness: Witness, names: Sequence[str], rows: Sequence[int], firsts: Sequence[int]
) -> list[dict[str, int]]:
    if not names:
        return [{}]
    if len(rows) < len(names):
        return []
    chains = [[row] for row in rows]
    for _ in names[1:]:
        following = witness.next_log_masses(chains, [[row] for row in rows])
        # The likeliest row that the chain does not have yet follows.
        chains = [
            [*chain, max((mass, row) for mass, row in zip(masses, rows, strict=True) if row not in chain)[1]]
            for chain, masses in zip(chains, following, strict=True)
        ]
    masses = witness.next_log_masses(chains, [[first] for first in firsts])
    ranked = sorted(zip(masses, chains, strict=True), key=lambda pair: -math.fsum(pair[0]))
    return [dict(zip(names, chain, strict=True)) for _, chain in ranked[:TRIED]]


def _by_expectation(witness: Witness, prefixes: Sequence[Sequence[int]], rows: Sequence[int]) -> list[int]:
    masses = witness.next_log_masses(prefixes, [[row] for row in rows]) if rows else []
    means = {row: math.fsum(column) for row, column in zip(rows, zip(*masses, strict=True), strict=False)}
    return sorted(rows, key=lambda row: -means[row])


def _without(rows: Iterable[int], excluded: Iterable[int]) -> list[int]:
    taken = set(excluded)
    return [row for row in rows if row not in taken]


def _slots(template: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for part in template if part in (TEXT, IMAGE))
