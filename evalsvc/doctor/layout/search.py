"""Scoring candidates, and searching around the best one for the meaning of its special tokens.

The description length of a sequence, in nats, is the summed loss of its text, image and special tokens, plus ln of the
block size for a first token that nothing predicts, plus -ln(1 - p) after the last token. Here p is the probability of
rows that never occur if the layout is right, such as a marker that the template leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Protocol

from evalsvc.data.tokens import Record
from evalsvc.doctor.layout.candidates import TEMPLATES, Proposal
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.layout_presets import IMAGE, SPECIAL, TEXT

MOST_ROWS = 4_096
"""Maximum number of unclaimed rows that are searched for markers; in a larger gap, only the candidate's own rows
are."""

MOST_FIRST = 256
"""Maximum number of unclaimed rows that may be a template's first token; in a larger gap, only the candidate's own row
is."""

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
        losses = (self.sums[f"nll_{kind}"] for kind in ("text", "image", "special"))
        return [math.fsum(parts) for parts in zip(*losses, self.ends, strict=True)]

    @cached_property
    def total(self) -> float:
        """Return the description length of all sequences in nats."""
        return math.fsum(self.totals)

    def loss(self, kind: str, of: str = "nll") -> Ratio | None:
        """Return the loss of `text`, `image` or `special` tokens in nats/token, over all ids, or, with `within`, over
        the ids of their block. The result is None without such tokens."""
        return ratio_of_sums(self.sums[f"{of}_{kind}"], self.sums[f"n_{kind}"])


def score(
    witness: Witness, candidate: Proposal, sequences: Sequence[Sequence[int]], enough: float = math.inf
) -> Scored:
    """Score the data under a candidate. Above `enough` nats, the expectation after the last tokens is not computed."""
    layout, silent = candidate.layout, candidate.silent_rows()
    block_size = {TEXT: layout.text.size, IMAGE: candidate.codebook_size}.get(layout.template[0], 1)
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
    """Callback with the number of layouts scored so far."""
    scores: dict[tuple[tuple[int, ...], ...], Scored] = field(default_factory=dict)

    def run(self, candidates: Sequence[Proposal]) -> None:
        """Score the candidates, and then the special tokens that the model expects for the best one."""
        for candidate in candidates:
            self.score(candidate)
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
