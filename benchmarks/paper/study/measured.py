"""What the findings read: curves, values, differences and artifacts from the REST interface of the service, and the
losses of training batches from the trainings' logs. All of it is kept, so that a page can be written again without."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from statistics import fmean, stdev
from typing import Any

from pydantic import TypeAdapter

from evalsvc.client import Client
from evalsvc.errors import UnknownName
from evalsvc.metrics.intervals import LEVEL, critical_value
from evalsvc.spec.documents.comparisons import DifferenceCurve, MetricDifference
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import BucketSeries
from evalsvc.web.curves import Curve
from study.alignment import AlignmentRecord, read_record
from study.material import Material
from study.runs import training_folder

sys.path.append(str(Path(__file__).parents[2]))
from plain_curves import plain_curve

EVERY_STEP = 10_000
"""Number of buckets of a curve: at most one step in each, since no run has as many steps."""
RESULTS = "results.json"
SMOOTHING = 0.95
POINTS = 100
"""About the number of a training's steps that are kept, evenly apart."""


@dataclass(frozen=True)
class Measured:
    """Reader of what was measured, which keeps all that it reads as JSON; without a client, reader of what was kept."""

    client: Client | None = None
    work: Path = Path()
    """Work folder of the computation."""
    readings: dict[str, Any] = field(default_factory=dict)
    """What was read, by the question."""

    def _read(self, kind: Any, question: str, read: Callable[[Client], object]) -> Any:
        """Return the answer to a question, of the type `kind`. Raises LookupError if it was not kept."""
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        if self.client is not None:
            self.readings[question] = adapter.dump_python(adapter.validate_python(read(self.client)), mode="json")
        elif question not in self.readings:
            raise LookupError(f"{question} is not among the readings of {RESULTS}; compute again")
        return adapter.validate_python(self.readings[question])

    def curve(self, run: str, metric: str, variant: str = "raw", label: str | None = None) -> Curve:
        """Return a metric of a run along its steps; `label` replaces the name of the run in figures.

        Raises:
            LookupError: the run does not have exactly one series of the metric.
        """

        def read(client: Client) -> BucketSeries:
            try:
                buckets = client.buckets(run, [metric], points=EVERY_STEP, variant=variant)
            except UnknownName as error:
                raise LookupError(error.message) from None
            found = [series for series in buckets.series if series.metric == metric]
            if len(found) != 1:
                raise LookupError(f"{run}:{variant} has {len(found)} series of {metric}, and a figure needs 1")
            return found[0]

        series = self._read(BucketSeries, f"{metric} of {run}:{variant}", read)
        return Curve(label or (run if variant == "raw" else f"{run}:{variant}"), series)

    def last(self, run: str, metric: str, variant: str = "raw") -> CurveValue:
        """Return the value at the last step."""
        return values_of(self.curve(run, metric, variant))[-1]

    def first(self, run: str, metric: str) -> CurveValue:
        """Return the value at the first step."""
        return values_of(self.curve(run, metric))[0]

    def differences(self, a: str, b: str, metric: str) -> DifferenceCurve:
        """Return the differences b − a along the steps that both runs have.

        Raises:
            LookupError: the runs do not have exactly one curve of differences.
        """

        def read(client: Client) -> DifferenceCurve:
            curves = client.compare_runs(a, b, [metric]).curves
            if len(curves) != 1:
                raise LookupError(f"{a} and {b} have {len(curves)} curves of {metric}, and a figure needs 1")
            return curves[0]

        curve: DifferenceCurve = self._read(DifferenceCurve, f"{metric} of {b} less {a}", read)
        return curve

    def contrast(self, a: str, b: str, metric: str) -> MetricDifference:
        """Return the difference b − a of a metric between two checkpoints, each RUN@STEP."""

        def read(client: Client) -> MetricDifference:
            return next(row for row in client.compare(a, b, [metric]).contrasts if row.metric == metric)

        row: MetricDifference = self._read(MetricDifference, f"{metric} of {b} less {a}", read)
        return row

    def token_counts(self, run: str, step: int, suite: str, task: str) -> dict[str, int]:
        """Return the number of measured tokens of each type, summed over the items of a loss task."""
        columns = {kind: f"n_{kind}" for kind in ("text", "image", "special")}

        def read(client: Client) -> dict[str, int]:
            evaluations = client.evaluations(run, suite=suite, state="succeeded", first=step, last=step)
            evaluation = next(item.id for item in evaluations if item.variant == "raw")
            rows = client.items(evaluation, task=task, columns=["index", *columns.values()]).items[task]
            return {kind: sum(int(str(row.get(column, 0))) for row in rows) for kind, column in columns.items()}

        counts: dict[str, int] = self._read(dict[str, int], f"tokens of {task} of {run}@{step}", read)
        return counts

    def completions(self, run: str, task: str, prompts: Sequence[str]) -> dict[str, dict[int, str]]:
        """Return the greedy completions of some of a task's prompts by a run, by prompt and step."""

        def read(client: Client) -> dict[str, dict[int, str]]:
            texts: dict[str, dict[int, str]] = {prompt: {} for prompt in prompts}
            for step in client.completions(run, variant="raw"):
                for item in step.completions if step.task == task else ():
                    if item.way == "greedy" and item.prompt in texts:
                        texts[item.prompt][step.step] = item.text
            return texts

        texts: dict[str, dict[int, str]] = self._read(dict[str, dict[int, str]], f"{task} of {run}", read)
        return texts

    def text(self, run: str, step: int, kind: str, name: str, shorten: Callable[[str], str]) -> str:
        """Return an artifact that is text, shortened before it is kept."""
        return str(
            self._read(str, f"{name} of {run}@{step}", lambda _: shorten(self.artifact(run, step, kind, name).decode()))
        )

    def artifact(self, run: str, step: int, kind: str, name: str) -> bytes:
        """Return the content of an artifact. Raises LookupError if the checkpoint has no such artifact."""
        assert self.client is not None, "files are asked for while they are computed"
        for artifact in self.client.artifacts(run, kind, step):
            if PurePosixPath(artifact.name).name == name:
                return self.client.artifact_content(artifact.id).content
        raise LookupError(f"{run}@{step} has no artifact {name} of the kind {kind}")

    def trained(self, run: str, part: str | None = None) -> list[tuple[int, float]]:
        """Return the loss of a run's training batches by step, of all tokens or of a type, smoothed as in the paper.

        Its figures 3 and 6 show exponential moving averages of the curve. Here the weight of the past is `SMOOTHING`,
        divided by the sum of the weights, as the paper's figure 6 says.
        """

        def read(client: Client) -> list[tuple[int, float]]:
            lines = [json.loads(line) for line in (training_folder(self.work, run) / "log.jsonl").open()]
            mean, points = 0.0, []
            for count, line in enumerate(lines, 1):
                loss = line["loss"] if part is None else line["parts"][part]["loss"]
                mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
                points.append((line["step"], mean / (1 - SMOOTHING**count)))
            return points[:: max(1, len(points) // POINTS)]

        points: list[tuple[int, float]] = self._read(
            list[tuple[int, float]], f"training loss of {run}, {part or 'all tokens'}", read
        )
        return points

    def alignment(self, material: Material, seed: int) -> AlignmentRecord:
        """Return the record of the alignment of a seed, with about `POINTS` of its steps."""

        def read(client: Client) -> AlignmentRecord:
            record = read_record(material, seed)
            every = max(1, len(record.losses) // POINTS)
            return replace(record, losses=record.losses[::every], temperatures=record.temperatures[::every])

        record: AlignmentRecord = self._read(AlignmentRecord, f"alignment of seed {seed}", read)
        return record


@dataclass(frozen=True)
class Estimate:
    """A number with its interval of 95 %, and what the interval covers."""

    value: float
    low: float | None
    high: float | None
    deviation: float | None = None
    """Standard deviation between seeds; None for a single seed."""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return short(self.value)
        return f"{short(self.value)} ({short(self.low)} to {short(self.high)})"


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the mean of values of several seeds with Student's interval between seeds; no interval for one seed."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    deviation = stdev(values)
    reach = critical_value((1 - level) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return Estimate(mean, mean - reach, mean + reach, deviation)


@dataclass(frozen=True)
class CurveValue:
    """A value of a curve at a step."""

    x: int
    value: Number
    low: float | None
    high: float | None
    n: int | None
    error: float
    """Standard error; 0 where there is none."""

    @property
    def estimate(self) -> Estimate:
        """The value with the interval of its items."""
        return Estimate(finite(self.value), self.low, self.high)


def values_of(curve: Curve) -> list[CurveValue]:
    """Return the values of a curve by step."""
    series = curve.series
    errors = [error or 0.0 for error in series.stderr]
    return list(map(CurveValue, series.x, series.last, series.low, series.high, series.n, errors))


def finite(value: float | str) -> float:
    """Return a number of the history. Raises LookupError for NaN and infinities, which the history has as words."""
    if isinstance(value, str):
        raise LookupError(f"the history has {value} where a finding needs a number")
    return value


def short(number: float) -> str:
    """Return a number with three significant digits, and with a minus sign instead of a hyphen."""
    digits = f"{number:.3g}" if abs(number) < 100 else f"{number:,.0f}"
    return digits.replace("-", "−")


def mean_curve(curves: Sequence[Curve], label: str) -> Curve:
    """Return the mean of the curves of several seeds, with intervals between seeds; of one curve, the curve itself."""
    first = curves[0].series
    if len(curves) == 1:
        return Curve(label, first)
    assert all(curve.series.x == first.x for curve in curves), "runs of all seeds have the same checkpoints"
    columns = zip(*(curve.series.last for curve in curves), strict=True)
    estimates = [over_seeds(list(map(finite, column))) for column in columns]
    rows = [(x, item.value, item.low, item.high, len(curves)) for x, item in zip(first.x, estimates, strict=True)]
    return plain_curve(label, first.metric, first.unit, rows, first.protocol, first.baseline)


def estimated_curve(label: str, metric: str, unit: str, rows: Iterable[tuple[int, Estimate]]) -> Curve:
    """Return a curve of estimates that are no series of the history, such as differences."""
    plain = ((step, estimate.value, estimate.low, estimate.high, None) for step, estimate in rows)
    return plain_curve(label, metric, unit, plain, label)
