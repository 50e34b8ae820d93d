"""Documents of a run's history: values along training, buckets, summaries, imports and protocols."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evalsvc.spec.documents.comparisons import Basis, Verdict
from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.fields import (
    Count,
    Direction,
    Id,
    NextCursor,
    Number,
    Open,
    RunName,
    Step,
    SuiteName,
    Time,
    Variant,
)

BEST_STEPS = 40
"""Most steps, those with the best values, that are compared with the best one."""

MANY_STEPS = 8
"""Most steps that a sentence names one by one."""

MetricTitle = Annotated[str | None, Field(examples=["Image loss"])]
MetricName = Annotated[str, Field(examples=["loss/image"])]
Unit = Annotated[str, Field(examples=["nats/token"])]
ProtocolId = Annotated[str, Field(examples=["9a3f0c1d2e4b5a69"])]
Stderr = Annotated[float | None, Field(examples=[0.02])]
Items = Annotated[Count | None, Field(examples=[400])]
Groups = Annotated[Count | None, Field(examples=[80])]
Source = Annotated[str, Field(examples=["spreadsheet of 2025"])]
Steps = Annotated[list[Count], Field(examples=[[0, 2500]])]
Bucketed = Annotated[list[float | None], Field(examples=[[6.54, 6.31]])]
Counts = Annotated[list[Count], Field(examples=[[4, 4]])]

Axis = Literal["step", "tokens"]


class SeriesHead(Document):
    """One metric of one variant under one protocol. All values of a series are comparable."""

    metric: MetricName
    variant: Variant
    protocol: ProtocolId
    unit: Unit
    direction: Direction
    baseline: Annotated[Number | None, Field(examples=[9.704])]
    """Value of a model that knows nothing; null if there is no such value."""
    differs: Annotated[dict[str, object], Field(examples=[{"sampling.guidance_scale": 3.0}])]
    """Fields that distinguish the protocol from other protocols of the metric, where the metric has several."""
    title: MetricTitle = None
    """The metric in words; null if the metric has no title."""


class ValueSeries(SeriesHead):
    """The values of a series, in columns ordered by x."""

    x: Steps
    value: Annotated[list[Number], Field(examples=[["NaN", 6.31]])]
    stderr: Annotated[list[float | None], Field(examples=[[None, 0.02]])]
    low: Annotated[list[float | None], Field(examples=[[None, 6.27]])]
    """Lower end of the interval of each value, of 95 %; null where a value has no interval."""
    high: Annotated[list[float | None], Field(examples=[[None, 6.35]])]
    n: Annotated[list[Count | None], Field(examples=[[400, 400]])]
    """Number of items behind each value."""
    groups: Annotated[list[Count | None] | None, Field(examples=[[None, 80]])] = None
    """Independent groups of the items; null if no value of the series has groups."""
    import_: Annotated[list[Id | None] | None, Field(examples=[[1, None]])]
    """Ids of the imports that the values come from; null if all values were measured."""
    omitted: Annotated[Count, Field(examples=[0])]
    """Number of values without a position on the axis."""


class BucketSeries(SeriesHead):
    """A series in buckets, in columns ordered by x."""

    x: Annotated[list[Count], Field(examples=[[1500, 3500]])]
    """Position of the last value of each bucket."""
    last: Annotated[list[Number], Field(examples=[[6.54, 6.31]])]
    """Last value of each bucket."""
    stderr: Annotated[list[float | None], Field(examples=[[None, 0.02]])] = []
    """Standard error of the last value of each bucket."""
    low: Annotated[list[float | None], Field(examples=[[None, 6.27]])] = []
    """Lower end of the interval of the last value of each bucket, of 95 %; null where a value has no interval."""
    high: Annotated[list[float | None], Field(examples=[[None, 6.35]])] = []
    n: Annotated[list[Count | None], Field(examples=[[400, 400]])] = []
    """Number of items behind the last value of each bucket."""
    groups: Annotated[list[Count | None] | None, Field(examples=[[None, 80]])] = None
    """Independent groups of the items; null if no last value has groups."""
    min: Bucketed
    max: Annotated[list[float | None], Field(examples=[[9.7, 6.48]])]
    mean: Annotated[list[float | None], Field(examples=[[7.21, 6.4]])]
    """Mean of the finite values of each bucket; null if the bucket has none, or one of 1e290 or more."""
    count: Counts
    """Number of values of each bucket."""
    nan: Annotated[list[Count], Field(examples=[[1, 0]])]
    positive_infinity: Annotated[list[Count], Field(examples=[[0, 0]])]
    negative_infinity: Annotated[list[Count], Field(examples=[[0, 0]])]
    imported: Annotated[list[Count], Field(examples=[[1, 0]])]
    """Number of imported values in each bucket."""
    virtual: Annotated[list[bool], Field(examples=[[False, False]])] = []
    """Whether the last value of each bucket is of a virtual checkpoint."""
    omitted: Annotated[Count, Field(examples=[0])]
    """Number of values without a position on the axis."""


class KnownMetric(Document):
    """The name, unit and direction of a metric of a run."""

    name: MetricName
    unit: Unit
    direction: Direction
    title: MetricTitle = None
    """The metric in words; null if the metric has no title."""


class ImportSource(Document):
    """The origin of imported values, and the time of the import."""

    source: Source
    created_at: Time


ImportSources = Annotated[
    dict[str, ImportSource],
    Field(examples=[{"1": {"source": "spreadsheet of 2025", "created_at": "2026-02-03T10:11:12.131+00:00"}}]),
]
"""Sources of imported values, by the id of the import."""


Why = Literal["failed", "skipped", "cancelled", "pending"]
"""Reason why a value is missing. `skipped`: the plan dropped the evaluation because of `when_behind: newest`.
`pending`: the evaluation is queued or running."""


class Gap(Document):
    """A checkpoint that lacks values which other steps of the run have, with the evaluation that would measure them."""

    step: Step
    variant: Variant
    suite: SuiteName
    evaluation: Id
    """Id of the evaluation."""
    why: Annotated[Why, Field(examples=["failed"])]
    message: Annotated[str, Field(examples=["the file /checkpoints/epoch_25.pt was deleted after it was posted; …"])]
    """Error of the evaluation, or what the evaluation waits for; at most 300 characters."""


class History(Document):
    """All values of the selected series of a run, or one page of them."""

    run: RunName
    x: Axis
    series: list[ValueSeries]
    names: list[KnownMetric]
    """All metrics of the run."""
    imports: ImportSources
    next_cursor: Annotated[str | None, Field(examples=[None])]
    """Cursor of the next page; null on the last page, and in answers without `limit`."""
    gaps: list[Gap] = []
    """Missing values by step; if there are more than 500, those of the highest steps. If there are several pages, only
    the first page has gaps."""
    more_gaps: bool = False
    """Whether gaps of lower steps are left out."""


class Buckets(Document):
    """The selected series of a run in buckets of equal width, which all series share."""

    run: RunName
    x: Axis
    sampled: Literal[True]
    start: Annotated[Count, Field(examples=[0])]
    """Start of the first bucket."""
    width: Annotated[int, Field(ge=1, examples=[2000])]
    """Width of each bucket."""
    series: list[BucketSeries]
    names: list[KnownMetric]
    """All metrics of the run."""
    gaps: list[Gap] = []
    """Missing values by step; if there are more than 500, those of the highest steps."""
    more_gaps: bool = False
    """Whether gaps of lower steps are left out."""


class LeftOutMetric(Document):
    """A metric that a suite asks for but an evaluation could not measure."""

    metric: Annotated[str, Field(examples=["coco/fid"])]
    step: Step
    variant: Variant
    message: Annotated[str, Field(examples=["fid is left out: 256 images, and it needs 2,049; sample more images"])]
    """Reason why there is no value, and a remedy."""


class Headline(Document):
    """The headline metrics of a run."""

    run: RunName
    metrics: Annotated[list[str], Field(examples=[["loss/image", "loss/text"]])]
    """Metrics that have values, most important first."""
    chosen_by: Annotated[Literal["suites", "rule"], Field(examples=["suites"])]
    """Origin of the choice: `suites` for the headlines of the suites that evaluated the run, `rule` for runs without
    such headlines."""
    names: list[KnownMetric]
    """All metrics of the run."""
    left_out: list[LeftOutMetric]
    """Metrics that a suite asks for but its newest evaluation could not measure."""


class Point(Document):
    """A value of a series at a step."""

    step: Step
    value: Number
    stderr: Stderr
    low: Annotated[float | None, Field(examples=[6.27])] = None
    """Lower end of the interval of 95 %; null if the value has no interval."""
    high: Annotated[float | None, Field(examples=[6.35])] = None
    n: Items
    groups: Groups
    import_: Annotated[Id | None, Field(examples=[None])]
    """Id of the import that the value comes from; null if the value was measured."""


class BestPoint(Point):
    """The best value of a series. It is partly luck, so the true value is probably worse."""

    of: Annotated[Count, Field(examples=[6])] = 1
    """Number of values that the best one was chosen from."""


class SummarySeries(SeriesHead):
    """The newest and the best value of a series."""

    count: Count
    latest: Point | None
    best: BestPoint | None


OtherSide = Literal["best", "base"]
"""The value that the newest one is held against: the best value of the run, or the value of its base."""


class NewestVerdict(Document):
    """The newest value of a series against another value, under one protocol."""

    side: Annotated[OtherSide, Field(examples=["best"])]
    checkpoint: Annotated[str, Field(examples=["t2i-1b-pretrained@2000"])]
    """Name of the checkpoint of the other value."""
    difference: Annotated[Number, Field(examples=[0.012])]
    """Newest value minus the other value."""
    stderr: Annotated[Number | None, Field(examples=[0.008])]
    """Standard error of the difference; null if it is unknown."""
    verdict: Annotated[Verdict, Field(examples=["indistinguishable"])]
    """Verdict on the newest value at `level`."""
    basis: Basis
    """Source of `stderr`."""
    best_of: Annotated[Count, Field(examples=[6])] = 1
    """Number of values that the other value is the best of; 1 for the base."""
    level: Annotated[float, Field(examples=[0.99])] = 0.95
    """Level of the verdict: 0.95, and 1 − 0.05 / (K − 1) against the best of K values, which is partly luck."""


class HeadlineSeries(SeriesHead):
    """The series of a headline metric that has the newest value, with the values that a table of runs shows."""

    latest: Point
    best: BestPoint | None
    """Best finite value by the metric's direction, the first of equal ones; null if the metric has no direction or no
    finite value."""
    base: Point | None
    """Value of the run's base under the same protocol; null if the base has no such value."""
    base_name: Annotated[str | None, Field(examples=["text-1b@240000"])]
    """Name of the checkpoint that `base` belongs to; null without `base`."""
    x: Annotated[list[Count], Field(examples=[[0, 2500]])]
    """Steps of `values`; empty unless the request has `points`."""
    values: Annotated[list[Number], Field(examples=[[9.7, 6.31]])]
    """All values if there are at most `points`, or else `points` values evenly by rank, with the first and the last."""
    at_chance_since: Annotated[int | None, Field(examples=[80])] = None
    """First step from which on the interval of every value covers `baseline`; null if that of the newest does not."""
    near_best: Annotated[list[Count] | None, Field(examples=[[300, 3000]])] = None
    """Other steps whose values are not worse than the best one beyond noise, of the 40 best values; null without
    `strip`."""
    verdicts: list[NewestVerdict] | None = None
    """Verdicts on the newest value, which has none against itself; null without `compare`, or if the time was over."""


class NamedStep(Document):
    """The checkpoint that a name such as RUN@best stands for."""

    run: RunName
    step: Step
    variant: Variant
    metric: MetricName | None = None
    """Metric that the checkpoint has the best value of; null if the name is not `best`."""
    title: MetricTitle = None
    """The metric in words; null if it has no title."""
    of: Annotated[Count, Field(examples=[6])] = 1
    """Number of values that the best one was chosen from."""
    within_noise: Annotated[list[Count], Field(examples=[[300, 3000]])] = []
    """Other steps whose values are not worse than the best one beyond noise, of the 40 best values."""

    def words(self, name: str) -> str:
        """Return the sentence that tells which step `name` is."""
        what = f"{name} is step {self.step:,} of {self.run}"
        if self.metric is None:
            return what
        steps = [f"{step:,}" for step in self.within_noise]
        near = f"{'step' if len(steps) == 1 else 'steps'} {', '.join(steps)}" if steps else "no other step"
        if len(steps) > MANY_STEPS:
            near = f"{len(steps)} of the {BEST_STEPS} best steps, from {steps[0]} to {steps[-1]}"
        metric = f"{self.title} ({self.metric})" if self.title else self.metric
        return f"{what}, the best of {self.of:,} by {metric}; within its noise: {near}"


class RunHeadlines(Document):
    """The headline metrics of one run of several."""

    run: RunName
    series: list[HeadlineSeries]
    """One series per metric, most important metric first."""


class Headlines(Document):
    """The headline metrics of several runs, in the order of the request."""

    runs: list[RunHeadlines]


class Summary(Document):
    """The newest and the best value of every series of a run."""

    run: RunName
    series: list[SummarySeries]
    imports: ImportSources
    gaps: list[Gap] = []
    """Missing values by step; if there are more than 500, those of the highest steps."""
    more_gaps: bool = False
    """Whether gaps of lower steps are left out."""


class ImportOutcome(Document):
    """Counts of values that an import added, replaced or left unchanged."""

    run: RunName
    import_: Annotated[Id | None, Field(examples=[1])]
    """Id of the import; null if every value existed already."""
    series: Annotated[Count, Field(examples=[1])]
    new: Annotated[Count, Field(examples=[3])]
    replaced: Annotated[Count, Field(examples=[0])]
    unchanged: Annotated[Count, Field(examples=[0])]


class TableColumns(Document):
    """Columns of equal length with one row per value, ordered by run, step, variant and metric."""

    run: list[RunName]
    step: list[Step]
    variant: list[Variant]
    tokens: Annotated[list[Count | None], Field(examples=[[2_621_440_000]])]
    """Tokens that the model had seen at the checkpoint; null if unknown."""
    task: Annotated[list[str | None], Field(examples=[["loss"]])]
    """Task that measured the value; null for imported values."""
    metric: list[MetricName]
    value: list[Number]
    stderr: Annotated[list[float | None], Field(examples=[[0.02]])]
    low: Annotated[list[float | None], Field(examples=[[6.27]])]
    """Lower end of the interval of 95 %; null where a value has no interval."""
    high: Annotated[list[float | None], Field(examples=[[6.35]])]
    n: Annotated[list[Count | None], Field(examples=[[400]])]
    """Number of items behind the value."""
    groups: Annotated[list[Count | None], Field(examples=[[80]])]
    """Independent groups of the items; null if every item is its own group."""
    unit: list[Unit]
    direction: list[Direction]
    baseline: Annotated[list[Number | None], Field(examples=[[9.704]])]
    """Value of a model that knows nothing; null if there is no such value."""
    protocol: list[ProtocolId]
    evaluation: Annotated[list[Id | None], Field(examples=[[40]])]
    """Id of the evaluation that measured the value; null for imported values."""
    source: Annotated[list[str | None], Field(examples=[[None]])]
    """Origin of an imported value; null for measured values."""


class Table(Document):
    """The history of several runs as one long table."""

    columns: TableColumns


class ListedProtocol(Document):
    """A protocol, with the metrics that were measured under it."""

    id: ProtocolId
    content: Annotated[Open, Field(examples=[{"task": "loss", "version": 1}])]
    """Content of the protocol: everything that affects the measured numbers."""
    metrics: Annotated[list[str], Field(examples=[["loss/image", "loss/text"]])]
    """Names of the first 100 metrics with values under the protocol, sorted."""
    runs: Annotated[Count, Field(examples=[2])]
    """Number of runs with values under the protocol."""
    used_by: Annotated[list[RunName], Field(examples=[["t2i-1b", "t2i-1b-warm"]])] = []
    """Names of the first 100 of these runs, sorted."""


class Protocols(Document):
    """A page of the protocols, sorted by id."""

    protocols: list[ListedProtocol]
    next_cursor: NextCursor = None
