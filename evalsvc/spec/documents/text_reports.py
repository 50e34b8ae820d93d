"""Reports of the tasks `forgetting` and `completions`: the content of their artifacts, as JSON.

Text and tables for readers are rendered from these documents, see `text_pages`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from evalsvc.spec.documents.comparisons import Basis
from evalsvc.spec.documents.results import Completion
from evalsvc.spec.protocol import Direction

BITS = "bits/byte"
NATS = "nats/token"

Verdict = Literal["lost", "gained", "indistinguishable", "too few"]
"""Verdict on the checkpoint relative to its base. `too few`: fewer independent items than a test needs."""

Flip = Literal["lost", "gained"]
"""Kind of flip. `lost`: only the base is right; `gained`: only the checkpoint is right."""


class Report(BaseModel):
    """A part of a report. NaN and infinities are texts in JSON."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="strings")


class ForgettingRow(Report):
    """One number of base and checkpoint. Missing values are None."""

    what: str
    """Benchmark, or `text`."""
    metric: str
    """Metric: `acc`, `bits_per_byte`, `loss`, …"""
    scope: Literal["all", "text"]
    """Scope: `all` for all ids, `text` within the text ids."""
    unit: str
    n: int
    """Number of items: questions or texts."""
    base: float
    base_stderr: float | None
    checkpoint: float
    checkpoint_stderr: float | None
    change: float
    """Checkpoint minus base."""
    change_stderr: float | None
    change_basis: Basis
    change_low: float | None
    change_high: float | None
    """Ends of the change's interval of level 0.95."""
    lost: int
    """Number of items on which the checkpoint is worse; for accuracies, questions that only the base gets right."""
    gained: int
    """Number of items on which the checkpoint is better."""
    p: float | None
    """Two-sided p-value of no change; None if there are too few items."""
    p_corrected: float | None
    """`p` corrected by Holm's method over the rows of this metric and scope."""
    verdict: Verdict
    chance: float | None = None
    chance_table: int | None = None
    """Version of the table that `chance` is from; None if it is right options / options."""
    centred_base: float | None = None
    centred: float | None = None
    """(accuracy − chance) / (1 − chance) of base and checkpoint."""
    retained: float | None = None
    """`centred` / `centred_base`, if the base is above chance by two standard errors; biased low below four."""
    retained_stderr: float | None = None
    retained_low: float | None = None
    """Lower end of the interval of `retained`, of level 0.95; None if it is unbounded."""
    retained_high: float | None = None
    direction: Direction = "higher"
    """Better direction: `higher` for accuracies, `lower` for losses."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.what, self.metric, self.scope


class ChangePart(Report):
    """A part of a loss change."""

    value: float
    stderr: float | None
    share: float
    """Share of the total change; 0 if the part may be zero or has the opposite sign."""


class LossParts(Report):
    """Decomposition of a loss change: −log p(id) = −log p(id | text) − log p(text).

    The first term is knowledge of the text, the second the expectation of other ids in its place, mainly image ids.
    """

    what: str
    unit: str
    total: ChangePart
    knowledge: ChangePart
    """Change within the text ids."""
    expectation: ChangePart
    """Change of the remaining term."""
    base_image_mass: float | None
    image_mass: float
    """Mean probability of image ids where text is due, of base and checkpoint; None if it was not measured."""


class ReportMetric(Report):
    """A metric of the task that is no difference of two values."""

    name: str
    value: float
    stderr: float | None
    low: float | None
    high: float | None


class FlippedQuestion(Report):
    """A question that only one of two models gets right, in words."""

    index: int
    flip: Flip | None
    """Kind of flip over all ids; None if both models are right or both are wrong."""
    flip_within: Flip | None
    """Kind of flip with text ids only."""
    question: str
    options: list[str] | None
    right: list[str]
    """Right answers; empty where only the benchmark's code knows them."""
    base: str
    checkpoint: str
    base_within: str
    checkpoint_within: str


class FlippedQuestions(Report):
    """The flipped questions of one benchmark."""

    benchmark: str
    lost: int
    """Number of questions that only the base gets right."""
    lost_within: int
    """Number of questions that only the base gets right with text ids only, and that have not flipped over all ids."""
    gained: int
    gained_within: int
    questions: list[FlippedQuestion]
    """The first flipped questions, in the order of the data."""

    @property
    def left_out(self) -> int:
        """Number of flipped questions that `questions` lacks."""
        return self.lost + self.lost_within + self.gained + self.gained_within - len(self.questions)


class ForgettingReport(Report):
    """What a checkpoint has forgotten of its base's abilities, by one task."""

    base: str | None
    checkpoint: str
    """Labels of base and checkpoint."""
    rows: list[ForgettingRow]
    parts: list[LossParts]
    recovered: dict[str, float]
    """By benchmark, the corrected p-value that equally many right answers are lost and recovered with text ids only."""
    over_benchmarks: list[ReportMetric]
    of_text: list[ReportMetric]
    flipped: list[FlippedQuestions]


class CompletionsReport(Report):
    """Completions of fixed prompts by a checkpoint and its base, sorted by prompt."""

    checkpoint: str
    base: str | None
    """Label of the base; None without a base."""
    completions: list[Completion]
