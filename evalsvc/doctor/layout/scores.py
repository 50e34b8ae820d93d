"""Scores of candidates: the description length of the data, and how far a candidate is behind another.

The description length of a sequence, in nats, is the summed loss of its text, image and special tokens, plus ln of the
block size for a first token that nothing predicts, plus -ln(1 - p) after the last token. Here p is the probability of
rows that never occur if the layout is right, such as a marker that the template leaves out.
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
