"""Scoring candidates, and looking around the best one: which of its special tokens is which."""

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
"""Markers are looked for among so many unclaimed rows at most; in a larger gap among the candidate's own."""

MOST_FIRST = 256
"""Unclaimed rows up to which all may be the first token of a template; in a larger gap the candidate's own."""

EXCHANGES = 3
"""How often special tokens are exchanged before the search ends."""

TRIED = 4
"""Rows that are tried for the first token of a template, which nothing predicts."""

HOPELESS = 30.0
"""Nats per sequence behind the best from which on a candidate's exact place does not matter."""

Report = Callable[[int], None]
"""Called with the number of layouts scored so far."""


@dataclass
class Search:
    """All layouts that were scored, each way to write the data once."""

    witness: Witness
    records: Sequence[Record]
    report: Report = lambda _: None
    found: dict[tuple[tuple[int, ...], ...], Scored] = field(default_factory=dict)

    def run(self, candidates: Sequence[Candidate]) -> None:
        """Score the candidates, then what the model itself says of the special tokens of the best."""
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
        if key not in self.found:
            enough = self.best.total + HOPELESS * len(sequences) if self.found else math.inf
            self.found[key] = score(self.witness, candidate, sequences, enough)
            self.report(len(self.found))

    def _templates(self) -> list[Candidate]:
        """The blocks of the best with every marked template, in those orders of text and image that are in reach."""
        best = self.best
        reach = best.total + HOPELESS * len(self.records)
        orders = {slots_of(scored.candidate.layout.template) for scored in self.found.values() if scored.total < reach}
        return marked_templates(best.candidate, orders)

    @property
    def best(self) -> Scored:
        return min(self.found.values(), key=lambda scored: scored.total)


def marked_templates(best: Candidate, orders: Set[tuple[str, ...]]) -> list[Candidate]:
    """The blocks of `best` with its own template and with every one of these orders that has special tokens."""
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
    """Yield the candidate with its special tokens where the model expects them; the first markers are tried."""
    template, own = candidate.layout.template, candidate.layout.special
    rows = unclaimed_rows(candidate.layout)
    if len(rows) > MOST_ROWS:
        rows = sorted(own.values())
    start = next(index for index, part in enumerate(template) if part in (TEXT, IMAGE))
    read: dict[str, int] = {}
    prefixes: list[list[int]] = [[] for _ in records]
    for part in template[start:]:
        if part not in (TEXT, IMAGE, *read):
            read[part] = _by_expectation(witness, prefixes, _without(rows, read.values()))[0]
        for prefix, record in zip(prefixes, records, strict=True):
            prefix.extend(rows_of(part, candidate.layout, record, read))
    # What is not in the template gets what is left, and the pad, which is last, what is expected least at the end.
    left = _by_expectation(witness, prefixes, _without(own.values(), read.values()))
    firsts = [prefix[0] for prefix in prefixes]
    before = [name for name in template[:start] if name not in read]
    free = _without(rows if len(rows) <= MOST_FIRST else own.values(), read.values())
    for leading in _leading(witness, before, free, firsts):
        special = read | leading
        unread = [name for name in own if name not in special]
        special |= dict(zip(unread, _without(left, special.values()), strict=False))
        moved = ", ".join(f"{name} {row}" for name, row in special.items() if name in template and own[name] != row)
        yield with_special(candidate, special, f"as read: {moved}" if moved else candidate.variant)


def exchanged(best: Candidate) -> Iterator[Candidate]:
    """Yield the candidate with the rows of two special tokens exchanged, and with other rows for the first token."""
    special = dict(best.layout.special)
    for one, other in combinations(special, 2):
        yield _varied(best, special | {one: special[other], other: special[one]}, f"{one} ↔ {other}")
    first, rows = best.layout.template[0], unclaimed_rows(best.layout)
    if first in special and len(rows) <= MOST_FIRST:
        for row in _without(rows, special.values()):
            yield _varied(best, special | {first: row}, f"{first} {row}")


def _varied(best: Candidate, special: dict[str, int], change: str) -> Candidate:
    return with_special(best, special, f"{best.variant}, {change}" if best.variant else change)


def _leading(
    witness: Witness, names: Sequence[str], rows: Sequence[int], firsts: Sequence[int]
) -> list[dict[str, int]]:
    """Rows for the markers before the first slot, behind which the model expects the beginnings `firsts` most."""
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
    """The rows, that which the model expects most behind the prefixes first, by mean log-probability."""
    masses = witness.next_log_masses(prefixes, [[row] for row in rows]) if rows else []
    means = {row: math.fsum(column) for row, column in zip(rows, zip(*masses, strict=True), strict=False)}
    return sorted(rows, key=lambda row: -means[row])


def _likeliest(rows: Sequence[int], log_masses: Sequence[float], taken: Sequence[int]) -> int:
    """That of the rows, but for those taken, which has the largest mass."""
    return max((mass, row) for mass, row in zip(log_masses, rows, strict=True) if row not in taken)[1]


def _without(rows: Iterable[int], others: Iterable[int]) -> list[int]:
    taken = set(others)
    return [row for row in rows if row not in taken]
