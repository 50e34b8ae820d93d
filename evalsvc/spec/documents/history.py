"""Documents of the history: values along training, in buckets, the newest and the best, and imports."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import (
    Count,
    Direction,
    Id,
    NextCursor,
    Number,
    RunName,
    Step,
    SuiteName,
    Time,
    Variant,
)

MetricName = Annotated[str, Example("loss/image")]
Unit = Annotated[str, Example("nats/token")]
ProtocolId = Annotated[str, Example("9a3f0c1d2e4b5a69")]
Stderr = Annotated[float | None, Example(0.02)]
Items = Annotated[Count | None, Example(400)]
Groups = Annotated[Count | None, Example(80)]
Source = Annotated[str, Example("spreadsheet of 2025")]
Steps = Annotated[list[Count], Example([0, 2500])]
Bucketed = Annotated[list[float | None], Example([6.54, 6.31])]
Counts = Annotated[list[Count], Example([4, 4])]

Axis = Literal["step", "tokens"]


class SeriesHead(Document):
    """A series: one metric of one variant by one protocol, whose values are comparable."""

    metric: MetricName
    variant: Variant
    protocol: ProtocolId
    unit: Unit
    direction: Direction
    baseline: Annotated[Number | None, Example(9.704)]
    """The value of a model that knows nothing."""
    differs: Annotated[dict[str, object], Example({"sampling.guidance_scale": 3.0})]
    """The fields that tell this protocol of the metric from the others, where the metric has several."""


class ValueSeries(SeriesHead):
    """The values of a series, in columns ordered by x."""

    x: Steps
    value: Annotated[list[Number], Example(["NaN", 6.31])]
    stderr: Annotated[list[float | None], Example([None, 0.02])]
    n: Annotated[list[Count | None], Example([400, 400])]
    """Items that each value rests on."""
    groups: Annotated[list[Count | None] | None, Example([None, 80])] = None
    """Independent groups of the items; null where no value of the series has groups."""
    import_: Annotated[list[Id | None] | None, Example([1, None])]
    """Ids of the imports that values are from; null where all values were measured."""
    omitted: Annotated[Count, Example(0)]
    """Values without a place on the axis."""


class BucketSeries(SeriesHead):
    """A series in buckets, in columns ordered by x."""

    x: Annotated[list[Count], Example([1500, 3500])]
    """Place of the last value of the bucket."""
    last: Annotated[list[Number], Example([6.54, 6.31])]
    """The last value of the bucket."""
    min: Bucketed
    max: Annotated[list[float | None], Example([9.7, 6.48])]
    mean: Annotated[list[float | None], Example([7.21, 6.4])]
    """Mean of the finite values; null where the bucket has none."""
    count: Counts
    """All values of the bucket."""
    nan: Annotated[list[Count], Example([1, 0])]
    positive_infinity: Annotated[list[Count], Example([0, 0])]
    negative_infinity: Annotated[list[Count], Example([0, 0])]
    imported: Annotated[list[Count], Example([1, 0])]
    """Values that were not measured by this service."""
    omitted: Annotated[Count, Example(0)]
    """Values without a place on the axis."""


class KnownMetric(Document):
    """A metric of a run."""

    name: MetricName
    unit: Unit
    direction: Direction


class ImportSource(Document):
    """Where values that were not measured by this service are from, and when they were entered."""

    source: Source
    created_at: Time


ImportSources = Annotated[
    dict[str, ImportSource],
    Example({"1": {"source": "spreadsheet of 2025", "created_at": "2026-02-03T10:11:12.131+00:00"}}),
]
"""By the id of the import."""


Why = Literal["failed", "skipped", "cancelled", "pending"]
"""Why a value is missing. `skipped`: the plan dropped the evaluation, as `when_behind: newest` says. `pending`: the
evaluation waits or runs."""


class Gap(Document):
    """A checkpoint that lacks values which other steps of the run have, and the evaluation that would measure them."""

    step: Step
    variant: Variant
    suite: SuiteName
    evaluation: Id
    """Id of the evaluation."""
    why: Annotated[Why, Example("failed")]
    message: Annotated[str, Example("the file /checkpoints/epoch_25.pt was deleted after it was posted; …")]
    """The error of the evaluation, or what the evaluation waits for; at most 300 characters."""


class History(Document):
    """Every value of some series of a run, or a page of them."""

    run: RunName
    x: Axis
    series: list[ValueSeries]
    names: list[KnownMetric]
    """Every metric of the run."""
    imports: ImportSources
    next: Annotated[str | None, Example(None)]
    """The same as `next_cursor`; an older name, kept for one version."""
    next_cursor: NextCursor
    """The cursor of the next page; null on the last page, and for an answer without `limit`."""
    gaps: list[Gap] = field(default_factory=list)
    """Missing values by step, those of the highest steps where there are more than 500. Of several pages, the first has
    them."""
    more_gaps: bool = False
    """Whether gaps of lower steps are left out."""


class Buckets(Document):
    """Some series of a run in buckets of equal width, the same for all series."""

    run: RunName
    x: Axis
    sampled: Literal[True]
    start: Annotated[Count, Example(0)]
    """The beginning of the first bucket."""
    width: Annotated[int, Example(2000, minimum=1)]
    """The width of every bucket."""
    series: list[BucketSeries]
    names: list[KnownMetric]
    """Every metric of the run."""
    gaps: list[Gap] = field(default_factory=list)
    """Missing values by step, those of the highest steps where there are more than 500."""
    more_gaps: bool = False
    """Whether gaps of lower steps are left out."""


class LeftOutMetric(Document):
    """A metric that an evaluation was asked for and could not measure."""

    metric: Annotated[str, Example("coco/fid")]
    step: Step
    variant: Variant
    message: Annotated[str, Example("fid is left out: 256 images, and it needs 2,049; sample more images")]
    """Why there is no value, and what to do."""


class Headline(Document):
    """The metrics of a run to show first."""

    run: RunName
    metrics: Annotated[list[str], Example(["loss/image", "loss/text"])]
    """Metrics that have values, the most important one first."""
    chosen_by: Annotated[Literal["suites", "rule"], Example("suites")]
    """Source of the choice: the headlines of the suites that evaluated the run, or the rule for runs without any."""
    names: list[KnownMetric]
    """Every metric of the run."""
    left_out: list[LeftOutMetric]
    """Metrics that the newest evaluation of each suite was asked for and could not measure."""


class Point(Document):
    """A value of a series at a step."""

    step: Step
    value: Number
    stderr: Stderr
    n: Items
    groups: Groups
    import_: Annotated[Id | None, Example(None)]
    """Id of the import that the value is from; null where the value was measured."""


class SummarySeries(SeriesHead):
    """The newest and the best value of a series."""

    count: Count
    latest: Point | None
    best: Point | None


class Summary(Document):
    """The newest and the best value of every series of a run."""

    run: RunName
    series: list[SummarySeries]
    imports: ImportSources
    gaps: list[Gap] = field(default_factory=list)
    """Missing values by step, those of the highest steps where there are more than 500."""
    more_gaps: bool = False
    """Whether gaps of lower steps are left out."""


class ImportOutcome(Document):
    """What an import did."""

    run: RunName
    import_: Annotated[Id | None, Example(1)]
    """Id of the import; null where every value was there already."""
    series: Annotated[Count, Example(1)]
    new: Annotated[Count, Example(3)]
    replaced: Annotated[Count, Example(0)]
    unchanged: Annotated[Count, Example(0)]


class TableColumns(Document):
    """Columns of equal length, with a row for each value, by run, step, variant and metric."""

    run: list[RunName]
    step: list[Step]
    variant: list[Variant]
    tokens: Annotated[list[Count | None], Example([2_621_440_000])]
    """Tokens that the checkpoint had seen; null where it was posted without them."""
    task: Annotated[list[str | None], Example(["loss"])]
    """Task of the evaluation that measured the value; null for imported values."""
    metric: list[MetricName]
    value: list[Number]
    stderr: Annotated[list[float | None], Example([0.02])]
    n: Annotated[list[Count | None], Example([400])]
    """Items that the value rests on."""
    groups: Annotated[list[Count | None], Example([80])]
    """Independent groups of the items, where they are fewer than the items or of another kind."""
    unit: list[Unit]
    direction: list[Direction]
    baseline: Annotated[list[Number | None], Example([9.704])]
    """The value of a model that knows nothing."""
    protocol: list[ProtocolId]
    evaluation: Annotated[list[Id | None], Example([40])]
    """Id of the evaluation that measured the value; null for imported values."""
    source: Annotated[list[str | None], Example([None])]
    """Where an imported value is from; null for measured values."""


class Table(Document):
    """The history of any runs as one long table."""

    columns: TableColumns
