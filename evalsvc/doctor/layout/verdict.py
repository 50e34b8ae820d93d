"""The verdict on the best candidate: a rule of several conditions, all of which must hold."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from evalsvc.data.tokens import Record
from evalsvc.doctor.layout.candidates import Candidate, rows_of, silent_rows, with_order
from evalsvc.doctor.layout.scores import Behind, Scored, Witness, behind, in_errors, score
from evalsvc.doctor.layout.search import MOST_ROWS, Search
from evalsvc.metrics.student import critical_value
from evalsvc.spec.layout import IMAGE, TEXT


@dataclass(frozen=True)
class Rule:
    """The conditions for deciding on a layout."""

    level: float = 0.001
    """Probability of a false decision over all comparisons, which are one-sided t-tests over sequences (Bonferroni)."""
    nats: float = 1.0
    """Minimum distance of every other candidate in nats per sequence."""
    silent: float = 0.5
    """Maximum probability of rows that never occur, after each part of the template."""
    reorderings: int = 8
    """Number of random orders of the codes, each of which must be worse."""


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


def judge(search: Search, rule: Rule) -> Verdict:
    """Judge the result of a search."""
    best, witness, records = search.best, search.witness, search.records
    rivals = (scored for scored in search.scores.values() if scored is not best)
    ranking = sorted((behind(best, other) for other in rivals), key=lambda rival: rival.nats)
    reordered = [behind(best, _reordered(witness, best.candidate, records, seed)) for seed in range(rule.reorderings)]
    comparisons = len(ranking) + len(reordered) + 1
    needed = critical_value(rule.level / comparisons, len(records) - 1)
    expectations = _expectations(witness, best.candidate, records)
    conditions = [
        _images_are_known(best, needed),
        _order_matters(reordered, needed),
        _others_are_worse(ranking, needed, rule),
        _nothing_is_missing(expectations, rule),
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
            everything, *single = (_mean_exp(column) for column in zip(*masses, strict=True))
            likeliest = max(single)
            expectations.append(Expectation(part, everything, silent[single.index(likeliest)], likeliest))
    return expectations


def _mean_exp(logs: Sequence[float]) -> float:
    return math.fsum(map(math.exp, logs)) / len(logs)


def _images_are_known(best: Scored, needed: float) -> Condition:
    name = "the images are known"
    image, uniform = best.loss("image"), math.log(best.candidate.codebook_size)
    do = "use a later checkpoint, or describe the layout with --layout"
    if image is None:
        return Condition(name, False, "no image token is a target", do)
    below = in_errors(uniform - image.value, image.stderr)
    side = "below" if below > 0 else "above"
    evidence = (
        f"image loss {image.value:.3f} nats/token, {abs(below):.1f} standard errors {side} "
        f"ln {best.candidate.codebook_size} = {uniform:.3f}"
    )
    return Condition(name, below >= needed, evidence, do)


def _order_matters(reordered: Sequence[Behind], needed: float) -> Condition:
    # An untrained model with tied tables expects what it has just read. If codes repeat, the image loss is then below
    # ln of the codebook, in any order of the codes.
    nearest = min(reordered, key=lambda rival: rival.standard_errors)
    evidence = f"of {len(reordered)} random orders of the codes the nearest is {describe(nearest)}"
    do = "the image block has another position or order of codes: describe it with --layout"
    return Condition("the order of the codes matters", nearest.standard_errors >= needed, evidence, do)


def _others_are_worse(ranking: Sequence[Behind], needed: float, rule: Rule) -> Condition:
    name = "every other candidate is worse"
    if not ranking:
        return Condition(
            name, False, "there is no other", "set the sizes with --text-size, or other layouts with --layout"
        )
    close = [rival for rival in ranking if rival.nats < rule.nats or rival.standard_errors < needed]
    nearest = close[0] if close else min(ranking, key=lambda rival: rival.standard_errors)
    evidence = f"{nearest.scored.candidate.label} is {describe(nearest)}"
    if len(close) > 1:
        evidence += f"; {len(close) - 1} more are too close"
    do = "use more pairs (--limit), set the sizes (--text-size), or use a later checkpoint"
    return Condition(name, not close, evidence, do)


def _nothing_is_missing(expectations: Sequence[Expectation], rule: Rule) -> Condition:
    name = "nothing else is expected"
    if not expectations:
        return Condition(name, True, "every row has a meaning", "")
    most = max(expectations, key=lambda expectation: expectation.mass)
    evidence = f"after {most.place}, row {most.row}, which never occurs, has a probability of {most.probability:.3f}"
    do = f"a marker is missing: describe the template with --layout, with row {most.row} after {most.place}"
    return Condition(name, most.mass < rule.silent, evidence, do)


def describe(rival: Behind) -> str:
    """Describe for people how far a candidate is behind."""
    side = "worse" if rival.nats > 0 else "better"
    return f"{abs(rival.nats):.2f} nats/sequence {side}, {abs(rival.standard_errors):.1f} standard errors"
