"""Whether the best candidate is believed: a rule in four parts, all of which must hold."""

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
    """When a layout is believed."""

    level: float = 0.001
    """Probability of a false decision over all comparisons, which are one-sided t-tests over sequences (Bonferroni)."""
    nats: float = 1.0
    """Every other candidate must be worse by so many nats per sequence at least."""
    silent: float = 0.5
    """Rows that never occur must have less than this probability wherever a part of the template ends."""
    reorderings: int = 8
    """Random orders of the codes, each of which must be worse."""


@dataclass(frozen=True)
class Expectation:
    """What the model expects, where a part of the template ends, of rows that never occur if the layout is right."""

    place: str
    """The part."""
    mass: float
    """Mean probability of all such rows together."""
    row: int
    """The likeliest of them."""
    probability: float


@dataclass(frozen=True)
class Condition:
    """One part of the rule."""

    name: str
    ok: bool
    found: str
    do: str
    """What to do where it fails."""


@dataclass(frozen=True)
class Verdict:
    """The best layout, whether to believe it, and why."""

    best: Scored
    ranking: Sequence[Behind]
    """All others that were scored, nearest first."""
    reordered: Sequence[Behind]
    """The best with its codes in random orders."""
    expectations: Sequence[Expectation]
    conditions: Sequence[Condition]
    needed: float
    """Standard errors that each comparison needs."""
    comparisons: int

    @property
    def decided(self) -> bool:
        return all(condition.ok for condition in self.conditions)


def judge(search: Search, rule: Rule) -> Verdict:
    """The verdict on what the search found."""
    best, witness, records = search.best, search.witness, search.records
    others = (scored for scored in search.found.values() if scored is not best)
    ranking = sorted((behind(best, other) for other in others), key=lambda rival: rival.nats)
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
    found = []
    prefixes: list[list[int]] = [[] for _ in records]
    for index, part in enumerate(best.layout.template if silent else ()):
        for prefix, record in zip(prefixes, records, strict=True):
            prefix.extend(rows_of(part, best.layout, record, best.layout.special))
        if part in (TEXT, IMAGE) or index == len(best.layout.template) - 1:
            masses = witness.next_log_masses(prefixes, [silent, *([row] for row in silent)])
            everything, *single = (_mean_exp(column) for column in zip(*masses, strict=True))
            likeliest = max(single)
            found.append(Expectation(part, everything, silent[single.index(likeliest)], likeliest))
    return found


def _mean_exp(logs: Sequence[float]) -> float:
    return math.fsum(map(math.exp, logs)) / len(logs)


def _images_are_known(best: Scored, needed: float) -> Condition:
    name = "the images are known"
    image, uniform = best.loss("image"), math.log(best.candidate.codebook_size)
    do = "ask for a later checkpoint; or the layout is none of these: describe it by --layout"
    if image is None:
        return Condition(name, False, "no image token is a target", do)
    below = in_errors(uniform - image.value, image.stderr)
    side = "below" if below > 0 else "above"
    found = (
        f"image loss {image.value:.3f} nats/token, {abs(below):.1f} standard errors {side} "
        f"ln {best.candidate.codebook_size} = {uniform:.3f}"
    )
    return Condition(name, below >= needed, found, do)


def _order_matters(reordered: Sequence[Behind], needed: float) -> Condition:
    # An untrained model with tied tables expects what it has just read. Where codes repeat, the image loss is then
    # below ln of the codebook, but so it is in any order.
    nearest = min(reordered, key=lambda rival: rival.standard_errors)
    found = f"of {len(reordered)} random orders of the codes the nearest is {describe(nearest)}"
    do = "the image block lies elsewhere, or its codes have another order: describe it by --layout"
    return Condition("the order of the codes matters", nearest.standard_errors >= needed, found, do)


def _others_are_worse(ranking: Sequence[Behind], needed: float, rule: Rule) -> Condition:
    name = "every other candidate is worse"
    if not ranking:
        return Condition(name, False, "there is no other", "give the sizes by --text-size, or rivals by --layout")
    close = [rival for rival in ranking if rival.nats < rule.nats or rival.standard_errors < needed]
    nearest = close[0] if close else min(ranking, key=lambda rival: rival.standard_errors)
    found = f"{nearest.scored.candidate.label} is {describe(nearest)}"
    if len(close) > 1:
        found += f"; {len(close) - 1} more are too near"
    do = "give more pairs (--limit), the sizes (--text-size), or a later checkpoint; or ask the trainer which it is"
    return Condition(name, not close, found, do)


def _nothing_is_missing(expectations: Sequence[Expectation], rule: Rule) -> Condition:
    name = "nothing else is expected"
    if not expectations:
        return Condition(name, True, "every row has a meaning", "")
    most = max(expectations, key=lambda expectation: expectation.mass)
    found = f"behind {most.place}, row {most.row}, which never occurs, has a probability of {most.probability:.3f}"
    do = f"a marker is missing: describe the template by --layout, with row {most.row} behind {most.place}"
    return Condition(name, most.mass < rule.silent, found, do)


def describe(rival: Behind) -> str:
    """For people: how far it is behind."""
    side = "worse" if rival.nats > 0 else "better"
    return f"{abs(rival.nats):.2f} nats/sequence {side}, {abs(rival.standard_errors):.1f} standard errors"
