"""Scoring candidates, and searching around the best one for the meaning of its special tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import combinations

from evalsvc.data.tokens import Record
from evalsvc.doctor.layout.candidates import (
    TEMPLATES,
    Candidate,
    rows_of,
    slots_of,
    unclaimed_rows,
    with_special,
    with_template,
)
from evalsvc.doctor.layout.scores import Scored, Witness, score
from evalsvc.spec.layout import IMAGE, SPECIAL, TEXT

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

Report = Callable[[int], None]
"""Callback with the number of layouts scored so far."""


@dataclass
class Search:
    """All scored layouts, with each way of writing the data once."""

    witness: Witness
    records: Sequence[Record]
    report: Report = lambda _: None
    scores: dict[tuple[tuple[int, ...], ...], Scored] = field(default_factory=dict)

    def run(self, candidates: Sequence[Candidate]) -> None:
        """Score the candidates, and then the special tokens that the model expects for the best one."""
        for candidate in candidates:
            self.score(candidate)
        for candidate in self._templates():
            for variant in as_the_model_expects(self.witness, candidate, self.records):
                self.score(variant)
        for _ in range(EXCHANGES):
            before = self.best
            for candidate in exchanged(before.candidate):
                self.score(candidate)
            if self.best is before:
                return

    def score(self, candidate: Candidate) -> None:
        sequences = candidate.sequences(self.records)
        key = tuple(map(tuple, sequences))
        if key not in self.scores:
            enough = self.best.total + HOPELESS * len(sequences) if self.scores else math.inf
            self.scores[key] = score(self.witness, candidate, sequences, enough)
            self.report(len(self.scores))

    def _templates(self) -> list[Candidate]:
        """Return the best blocks with every marked template, for the orders of text and image that are not hopeless."""
        best = self.best
        reach = best.total + HOPELESS * len(self.records)
        orders = {slots_of(scored.candidate.layout.template) for scored in self.scores.values() if scored.total < reach}
        return marked_templates(best.candidate, orders)

    @property
    def best(self) -> Scored:
        return min(self.scores.values(), key=lambda scored: scored.total)


def marked_templates(best: Candidate, orders: Set[tuple[str, ...]]) -> list[Candidate]:
    """Return the blocks of `best` with its own template, and with every template of these orders that has special
    tokens."""
    rows = unclaimed_rows(best.layout)
    special = best.layout.special or dict(zip(SPECIAL, rows, strict=False))
    based = with_special(best, special, best.variant)
    variants = [based] if best.template not in TEMPLATES else []
    for template, parts in TEMPLATES.items():
        markers = set(parts) - {TEXT, IMAGE}
        if markers and markers <= special.keys() and slots_of(parts) in orders:
            variants.append(with_template(based, template))
    return variants


def as_the_model_expects(witness: Witness, candidate: Candidate, records: Sequence[Record]) -> Iterator[Candidate]:
    """Yield the candidate with special tokens at the rows that the model expects; the first markers are tried."""
    template, template_special = candidate.layout.template, candidate.layout.special
    rows = unclaimed_rows(candidate.layout)
    if len(rows) > MOST_ROWS:
        rows = sorted(template_special.values())
    start = next(index for index, part in enumerate(template) if part in (TEXT, IMAGE))
    read: dict[str, int] = {}
    prefixes: list[list[int]] = [[] for _ in records]
    for part in template[start:]:
        if part not in (TEXT, IMAGE, *read):
            read[part] = _by_expectation(witness, prefixes, _without(rows, read.values()))[0]
        for prefix, record in zip(prefixes, records, strict=True):
            prefix.extend(rows_of(part, candidate.layout, record, read))
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
        yield with_special(candidate, special, f"as read: {moved}" if moved else candidate.variant)


def exchanged(best: Candidate) -> Iterator[Candidate]:
    """Yield the candidate with the rows of two special tokens exchanged, and with other rows for the first token."""
    special = dict(best.layout.special)
    for left, right in combinations(special, 2):
        yield _varied(best, special | {left: special[right], right: special[left]}, f"{left} ↔ {right}")
    first, rows = best.layout.template[0], unclaimed_rows(best.layout)
    if first in special and len(rows) <= MOST_FIRST:
        for row in _without(rows, special.values()):
            yield _varied(best, special | {first: row}, f"{first} {row}")


def _varied(best: Candidate, special: dict[str, int], change: str) -> Candidate:
    return with_special(best, special, f"{best.variant}, {change}" if best.variant else change)


def _leading(
    witness: Witness, names: Sequence[str], rows: Sequence[int], firsts: Sequence[int]
) -> list[dict[str, int]]:
    """Return rows for the markers before the first slot, ordered by how much the model expects the beginnings `firsts`
    after them."""
    if not names:
        return [{}]
    if len(rows) < len(names):
        return []
    chains = [[row] for row in rows]
    for _ in names[1:]:
        following = witness.next_log_masses(chains, [[row] for row in rows])
        chains = [[*chain, _likeliest(rows, masses, chain)] for chain, masses in zip(chains, following, strict=True)]
    masses = witness.next_log_masses(chains, [[first] for first in firsts])
    ranked = sorted(zip(masses, chains, strict=True), key=lambda pair: -math.fsum(pair[0]))
    return [dict(zip(names, chain, strict=True)) for _, chain in ranked[:TRIED]]


def _by_expectation(witness: Witness, prefixes: Sequence[Sequence[int]], rows: Sequence[int]) -> list[int]:
    """Return the rows by mean log probability after the prefixes, the most expected first."""
    masses = witness.next_log_masses(prefixes, [[row] for row in rows]) if rows else []
    means = {row: math.fsum(column) for row, column in zip(rows, zip(*masses, strict=True), strict=False)}
    return sorted(rows, key=lambda row: -means[row])


def _likeliest(rows: Sequence[int], log_masses: Sequence[float], taken: Sequence[int]) -> int:
    """Return the row with the largest mass that is not taken."""
    return max((mass, row) for mass, row in zip(log_masses, rows, strict=True) if row not in taken)[1]


def _without(rows: Iterable[int], excluded: Iterable[int]) -> list[int]:
    taken = set(excluded)
    return [row for row in rows if row not in taken]
