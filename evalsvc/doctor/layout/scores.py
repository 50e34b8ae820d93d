"""How well a candidate explains the data: their description length under it, and by how much another one is worse.

The description length of a sequence, in nats, is the summed loss of its text, image and special tokens, ln of the block
for a first token that nothing predicts, and -ln(1 - p) behind the last, where p is what the model gives to rows that
never occur if the layout is right, such as a marker that the template leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from evalsvc.doctor.layout.candidates import Candidate, silent_rows
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.layout import IMAGE, TEXT, VocabularyLayout

KINDS = ("text", "image", "special")


class Witness(Protocol):
    """The model that is asked."""

    def sums(self, layout: VocabularyLayout, sequences: Sequence[Sequence[int]]) -> Mapping[str, Sequence[float]]:
        """Counts and summed losses of each sequence, see `teacher_forcing.COLUMNS`."""

    def next_log_masses(self, prefixes: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[list[float]]:
        """log of the probability that some row of a group follows, for each prefix one number a group."""


@dataclass(frozen=True)
class Scored:
    """A candidate and what the model made of the data under it."""

    candidate: Candidate
    sums: Mapping[str, Sequence[float]]
    ends: Sequence[float]
    """Per sequence, nats: what the first and behind the last token is added to the losses."""

    @cached_property
    def totals(self) -> list[float]:
        """Description length of each sequence in nats."""
        losses = (self.sums[f"nll_{kind}"] for kind in KINDS)
        return [math.fsum(parts) for parts in zip(*losses, self.ends, strict=True)]

    @cached_property
    def total(self) -> float:
        """Of all sequences together."""
        return math.fsum(self.totals)

    def loss(self, kind: str) -> Ratio | None:
        """nats/token over all ids, of `text`, `image` or `special` tokens; None where there are none."""
        return ratio_of_sums(self.sums[f"nll_{kind}"], self.sums[f"n_{kind}"])

    @property
    def image_within(self) -> Ratio | None:
        """nats/token of the image tokens with the softmax over image ids."""
        return ratio_of_sums(self.sums["within_image"], self.sums["n_image"])

    @property
    def tokens(self) -> float:
        """Text and image tokens that are targets, of a sequence on average."""
        return math.fsum([*self.sums["n_text"], *self.sums["n_image"]]) / len(self.ends)


@dataclass(frozen=True)
class Behind:
    """By how much a candidate is worse than the best, paired over sequences."""

    scored: Scored
    nats: float
    """Per sequence; negative where it is better."""
    stderr: float | None
    """None with a single sequence."""
    tokens: float
    """Text and image tokens of a sequence."""

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def standard_errors(self) -> float:
        return in_errors(self.nats, self.stderr)


def score(witness: Witness, candidate: Candidate, sequences: Sequence[Sequence[int]], enough: float) -> Scored:
    """Score the data as the candidate writes them; above `enough` nats, without what the model expects behind them."""
    layout = candidate.layout
    scored = Scored(candidate, witness.sums(layout, sequences), [_first_token(layout)] * len(sequences))
    silent = silent_rows(layout)
    if not silent or scored.total > enough:
        return scored
    masses = witness.next_log_masses(sequences, [silent])
    ends = [start + _surprise(mass) for start, (mass,) in zip(scored.ends, masses, strict=True)]
    return Scored(candidate, scored.sums, ends)


def behind(best: Scored, other: Scored) -> Behind:
    """How far `other` is behind."""
    differences = [theirs - ours for theirs, ours in zip(other.totals, best.totals, strict=True)]
    mean = math.fsum(differences) / len(differences)
    return Behind(other, mean, standard_error(differences), best.tokens)


def in_errors(margin: float, stderr: float | None) -> float:
    """A margin in standard errors; 0 where nothing is known of its error."""
    if stderr is None or math.isnan(margin):
        return 0.0
    return margin / stderr if stderr else math.copysign(math.inf, margin)


def _first_token(layout: VocabularyLayout) -> float:
    """Nats of a first token: a marker is certain, anything else some id of its block."""
    first = layout.template[0]
    if first == TEXT:
        return math.log(layout.text.size)
    return math.log(layout.image.size) if first == IMAGE and layout.image else 0.0


def _surprise(log_mass: float) -> float:
    """-ln(1 - p), at most that of a p which rounds to 1."""
    return -math.log(max(-math.expm1(log_mass), 1e-12))
