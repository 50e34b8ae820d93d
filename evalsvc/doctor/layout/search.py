"""Scoring candidates, and searching around the best one for the meaning of its special tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean

from evalsvc.data.tokens import Record
from evalsvc.doctor.layout.candidates import (
    TEMPLATES,
    Behind,
    Candidate,
    Scored,
    Witness,
    behind,
    in_errors,
    rows_of,
    score,
    silent_rows,
    slots_of,
    unclaimed_rows,
    with_order,
)
from evalsvc.metrics.student import critical_value
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

LEVEL = 0.001
"""Probability of a false decision over all comparisons, which are one-sided t-tests over sequences (Bonferroni)."""

NATS = 1.0
"""Minimum distance of every other candidate in nats per sequence."""

SILENT = 0.5
"""Maximum probability of rows that never occur, after each part of the template."""

REORDERINGS = 8
"""Number of random orders of the codes, each of which must be worse."""

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
        for candidate in list(self._templates()):
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

    def _templates(self) -> Iterator[Candidate]:
        """Yield the best blocks with its own template, and with every marked template, for the orders of text and image
        that are not hopeless."""
        best = self.best
        layout, reach = best.candidate.layout, best.total + HOPELESS * len(self.records)
        orders = {slots_of(scored.candidate.layout.template) for scored in self.scores.values() if scored.total < reach}
        special = layout.special or dict(zip(SPECIAL, unclaimed_rows(layout), strict=False))
        based = best.candidate.changed(best.candidate.variant, special=special)
        if based.template not in TEMPLATES:
            yield based
        for name, parts in TEMPLATES.items():
            markers = set(parts) - {TEXT, IMAGE}
            if markers and markers <= special.keys() and slots_of(parts) in orders:
                changed = based.changed(based.variant, template=parts, unconditional_template=None)
                yield replace(changed, template=name)

    @property
    def best(self) -> Scored:
        return min(self.scores.values(), key=lambda scored: scored.total)


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
        yield candidate.changed(f"as read: {moved}" if moved else candidate.variant, special=special)


def exchanged(best: Candidate) -> Iterator[Candidate]:
    """Yield the candidate with the rows of two special tokens exchanged, and with other rows for the first token."""
    special = dict(best.layout.special)
    changes = [
        (f"{left} ↔ {right}", {left: special[right], right: special[left]}) for left, right in combinations(special, 2)
    ]
    first, rows = best.layout.template[0], unclaimed_rows(best.layout)
    if first in special and len(rows) <= MOST_FIRST:
        changes += [(f"{first} {row}", {first: row}) for row in _without(rows, special.values())]
    for change, moved in changes:
        yield best.changed(f"{best.variant}, {change}" if best.variant else change, special=special | moved)


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
        # The likeliest row that the chain does not have yet follows.
        chains = [
            [*chain, max((mass, row) for mass, row in zip(masses, rows, strict=True) if row not in chain)[1]]
            for chain, masses in zip(chains, following, strict=True)
        ]
    masses = witness.next_log_masses(chains, [[first] for first in firsts])
    ranked = sorted(zip(masses, chains, strict=True), key=lambda pair: -math.fsum(pair[0]))
    return [dict(zip(names, chain, strict=True)) for _, chain in ranked[:TRIED]]


def _by_expectation(witness: Witness, prefixes: Sequence[Sequence[int]], rows: Sequence[int]) -> list[int]:
    """Return the rows by mean log probability after the prefixes, the most expected first."""
    masses = witness.next_log_masses(prefixes, [[row] for row in rows]) if rows else []
    means = {row: math.fsum(column) for row, column in zip(rows, zip(*masses, strict=True), strict=False)}
    return sorted(rows, key=lambda row: -means[row])


def _without(rows: Iterable[int], excluded: Iterable[int]) -> list[int]:
    taken = set(excluded)
    return [row for row in rows if row not in taken]


@dataclass(frozen=True)
class Expectation:
    """Probability of rows that never occur if the layout is right, after a part of the template."""

    place: str
    """Name of the part."""
    mass: float
    """Mean probability of all such rows together."""
    row: int
    """Likeliest such row."""
    probability: float


@dataclass(frozen=True)
class Condition:
    """One condition of the rule."""

    name: str
    ok: bool
    found: str
    do: str
    """Remedy if the condition fails."""


@dataclass(frozen=True)
class Verdict:
    """The best layout, the decision, and the reasons."""

    best: Scored
    ranking: Sequence[Behind]
    """All other scored candidates, nearest first."""
    reordered: Sequence[Behind]
    """The best candidate with its codes in random orders."""
    expectations: Sequence[Expectation]
    conditions: Sequence[Condition]
    needed: float
    """Standard errors that each comparison needs."""
    comparisons: int

    @property
    def decided(self) -> bool:
        return all(condition.ok for condition in self.conditions)


def judge(search: Search) -> Verdict:
    """Judge the result of a search by four conditions, all of which must hold."""
    best, witness, records = search.best, search.witness, search.records
    rivals = (scored for scored in search.scores.values() if scored is not best)
    ranking = sorted((behind(best, other) for other in rivals), key=lambda rival: rival.nats)
    reordered = [behind(best, _reordered(witness, best.candidate, records, seed)) for seed in range(REORDERINGS)]
    comparisons = len(ranking) + len(reordered) + 1
    needed = critical_value(LEVEL / comparisons, len(records) - 1)
    expectations = _expectations(witness, best.candidate, records)
    # An untrained model with tied tables expects what it has just read. If codes repeat, the image loss is then below
    # ln of the codebook, in any order of the codes.
    nearest = min(reordered, key=lambda rival: rival.standard_errors)
    conditions = [
        _images_are_known(best, needed),
        Condition(
            "the order of the codes matters",
            nearest.standard_errors >= needed,
            f"of {len(reordered)} random orders of the codes the nearest is {nearest}",
            "the image block has another position or order of codes: describe it with --layout",
        ),
        _others_are_worse(ranking, needed),
        _nothing_is_missing(expectations),
    ]
    return Verdict(best, ranking, reordered, expectations, conditions, needed, comparisons)


def _reordered(witness: Witness, best: Candidate, records: Sequence[Record], seed: int) -> Scored:
    order = list(range(best.codebook_size))
    random.Random(seed).shuffle(order)
    candidate = with_order(best, order)
    return score(witness, candidate, candidate.sequences(records), math.inf)


def _expectations(witness: Witness, best: Candidate, records: Sequence[Record]) -> list[Expectation]:
    silent = silent_rows(best.layout)[:MOST_ROWS]
    expectations = []
    prefixes: list[list[int]] = [[] for _ in records]
    for index, part in enumerate(best.layout.template if silent else ()):
        for prefix, record in zip(prefixes, records, strict=True):
            prefix.extend(rows_of(part, best.layout, record, best.layout.special))
        if part in (TEXT, IMAGE) or index == len(best.layout.template) - 1:
            masses = witness.next_log_masses(prefixes, [silent, *([row] for row in silent)])
            mass, *single = (fmean(map(math.exp, column)) for column in zip(*masses, strict=True))
            probability, row = max(zip(single, silent, strict=True), key=lambda pair: pair[0])
            expectations.append(Expectation(part, mass, row, probability))
    return expectations


def _images_are_known(best: Scored, needed: float) -> Condition:
    image, codes = best.loss("image"), best.candidate.codebook_size
    below, evidence = -math.inf, "no image token is a target"
    if image is not None:
        below = in_errors(math.log(codes) - image.value, image.stderr)
        evidence = (
            f"image loss {image.value:.3f} nats/token, {abs(below):.1f} standard errors "
            f"{'below' if below > 0 else 'above'} ln {codes} = {math.log(codes):.3f}"
        )
    do = "use a later checkpoint, or describe the layout with --layout"
    return Condition("the images are known", below >= needed, evidence, do)


def _others_are_worse(ranking: Sequence[Behind], needed: float) -> Condition:
    close = [rival for rival in ranking if rival.nats < NATS or rival.standard_errors < needed]
    nearest = close[0] if close else min(ranking, key=lambda rival: rival.standard_errors, default=None)
    evidence = "there is no other" if nearest is None else f"{nearest.scored.candidate.label} is {nearest}"
    if len(close) > 1:
        evidence += f"; {len(close) - 1} more are too close"
    do = "use more pairs (--limit), set the sizes (--text-size), try others (--layout), or use a later checkpoint"
    return Condition("every other candidate is worse", nearest is not None and not close, evidence, do)


def _nothing_is_missing(expectations: Sequence[Expectation]) -> Condition:
    name = "nothing else is expected"
    if not expectations:
        return Condition(name, True, "every row has a meaning", "")
    most = max(expectations, key=lambda expectation: expectation.mass)
    evidence = f"after {most.place}, row {most.row}, which never occurs, has a probability of {most.probability:.3f}"
    do = f"a marker is missing: describe the template with --layout, with row {most.row} after {most.place}"
    return Condition(name, most.mass < SILENT, evidence, do)
