"""How far two checkpoints are apart: metric by metric, with an interval of the difference and what it says.

A pure function over two results, the same for files and in the service; which of them is the better one is not
presumed, as it is by the gate. Metrics that were measured by different protocols are refused, with the fields that
differ, unless they are forced side by side. Of a metric that is right or wrong on each item there are also the counts
of McNemar's test, and the items on which the two differ.

Each verdict holds at its own level. Of many verdicts some are wrong by chance alone: `Comparison` counts how many that
would be if nothing had changed, and the family `holm` judges all metrics together, so that with the probability `level`
none is wrong in that case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase

from evalsvc.compare.contrast import Contrast, contrast_results, paired_numbers
from evalsvc.compare.result import Measured, Result, task_of
from evalsvc.errors import NotComparable, UnknownName
from evalsvc.metrics.distance import Distance, judge
from evalsvc.metrics.intervals import LEVEL, Spread, require_level, value_interval
from evalsvc.metrics.item_numbers import aligned
from evalsvc.metrics.mcnemar import holm
from evalsvc.spec.documents.comparisons import (
    ComparedSide,
    Comparison,
    ComparisonWarnings,
    DifferenceInterval,
    Family,
    FlippedItems,
    MetricDifference,
    RightAnswers,
)
from evalsvc.spec.documents.results import TaskMetric, TaskWarning
from evalsvc.spec.protocol import (
    describe_differences,
    differences_from_json,
    differences_to_json,
    number_to_json,
    plain_json,
    tell_apart,
)


@dataclass(frozen=True)
class Options:
    """What is compared, and how."""

    metrics: tuple[str, ...] = ()
    """Names, or patterns such as `coco/*`; none: all."""
    tasks: tuple[str, ...] = ()
    """Only what these tasks measured; none: all."""
    level: float = LEVEL
    """How often the interval of a difference holds the truth, each by itself."""
    force: bool = False
    """Compare what was measured by different protocols, too; unpaired."""
    flipped: int = 0
    """How many of the items that only one of the two gets right are named, of each side."""
    family: Family = "none"
    """What verdicts hold for: `none`, each metric by itself; `holm`, all metrics of the comparison together."""

    def wants(self, name: str) -> bool:
        """Say whether the metric is compared."""
        return not self.metrics or any(name == metric or fnmatchcase(name, metric) for metric in self.metrics)


def compare_results(a: Result, b: Result, options: Options = Options()) -> Comparison:
    """Compare every metric of both that the options want.

    Raises:
        UnknownName: neither has a metric, or a task, of a name that is asked for.
        InvalidRequest: the level is not between 0 and 1.
        ItemsLost: results per item that the service once had are gone.
    """
    require_known([*a.document.metrics, *b.document.metrics], options, f"{a.name} or {b.name}")
    found = list(contrast_results(a, b, options.wants, options.tasks, force=options.force))
    rows = [_row(contrast, options) for contrast in found]
    rows = _told_apart(_judged_together(_corrected(rows), found, options), a, b)
    judged = sum(row.p is not None for row in rows)
    tasks = {row.task for row in rows}
    return Comparison(
        a=a.name,
        b=b.name,
        level=options.level,
        family=options.family,
        judged=judged,
        expected_by_chance=(1 - options.level) * judged if options.family == "none" else None,
        forced=options.force,
        contrasts=rows,
        warnings=ComparisonWarnings(a=_warnings(a, tasks), b=_warnings(b, tasks)),
    )


def require_comparable(comparison: Comparison, *, all_of_it: bool = True) -> None:
    """Raise NotComparable where metrics were measured by different protocols, with the fields.

    Without `all_of_it`, only where nothing else can be compared.
    """
    refused = [row for row in comparison.contrasts if row.verdict == "other_protocol"]
    compared = any(row.a and row.b and row.verdict != "other_protocol" for row in comparison.contrasts)
    if refused and (all_of_it or not compared):
        reasons = {row.metric: describe_differences(differences_from_json(row.differing)) for row in refused}
        raise other_protocols(comparison.a, comparison.b, reasons.items())


def other_protocols(a: str, b: str, reasons: Iterable[tuple[str, str]]) -> NotComparable:
    """Return the error of two sides that were measured by different protocols; `reasons` are by metric."""
    found = "; ".join(f"{metric}: {reason}" for metric, reason in reasons)
    return NotComparable(
        f"{a} and {b} were measured by different protocols: {found}; evaluate one of the two again, or compare them "
        "all the same: --force (force=true)"
    )


def require_known(metrics: Sequence[TaskMetric], options: Options, whose: str) -> None:
    """Raise unless each metric and task that is asked for is among the metrics, and the level is one."""
    require_level(options.level)
    names = dict.fromkeys(metric.name for metric in metrics)
    for wanted in options.metrics:
        if not any(Options((wanted,)).wants(name) for name in names):
            raise UnknownName.among(f"metric of {whose}", wanted, names)
    tasks = {task_of(metric) for metric in metrics}
    for task in options.tasks:
        if task not in tasks:
            raise UnknownName.among(f"task of {whose}", task, tasks)


def _warnings(result: Result, tasks: Collection[str]) -> list[TaskWarning]:
    return [one for task, warnings in result.document.warnings.items() if task in tasks for one in warnings]


def _row(contrast: Contrast, options: Options) -> MetricDifference:
    metric, found = contrast.metric, contrast.distance
    row = MetricDifference(
        metric=metric.name,
        task=task_of(metric),
        unit=metric.unit,
        direction=metric.direction,
        verdict=contrast.verdict(options.level),
        a=_side(contrast.a, options.level, compared=found is not None),
        b=_side(contrast.b, options.level, compared=found is not None),
        differing=plain_json(differences_to_json(contrast.differing)),
    )
    if found is None:
        return row
    interval = found.interval(options.level)
    return replace(
        row,
        difference=number_to_json(found.value),
        stderr=number_to_json(found.stderr),
        interval=None if interval is None else DifferenceInterval(**plain_json(asdict(interval))),
        p=found.p_value(),
        basis=found.basis,
        no_error=found.why_no_error("A", "B"),
        n=found.n,
        groups=found.groups,
        n_only_a=found.n_only_a,
        n_only_b=found.n_only_b,
        answers=_answers(contrast, found, options.flipped),
    )


def _side(measured: Measured | None, level: float, *, compared: bool) -> ComparedSide | None:
    if measured is None:
        return None
    metric = measured.metric
    # The items of a value that is not compared are not worth reading.
    items: Spread | None = measured.spread if compared else None
    interval = value_interval(measured.estimate, metric.unit, level, items)
    return ComparedSide(
        value=metric.value,
        stderr=metric.stderr,
        low=None if interval is None else number_to_json(interval.low),
        high=None if interval is None else number_to_json(interval.high),
        n=metric.n,
        groups=metric.groups,
        protocol=metric.protocol,
    )


def _answers(contrast: Contrast, found: Distance, flipped: int) -> RightAnswers | None:
    """Return the right answers of paired items; `_corrected` knows `holm` and `tests`."""
    if found.flips is None or contrast.a is None or contrast.b is None:
        return None
    pairs = paired_numbers(contrast.a, contrast.b)
    assert pairs is not None, "items that are right or wrong are paired"
    a, b = aligned(*pairs)
    rows = list(zip(a.items, a.columns[0], b.columns[0], strict=True))
    only_a = [index for (_, index), x, y in rows if x > y]
    only_b = [index for (_, index), x, y in rows if y > x]
    counts = found.flips.counts
    named = FlippedItems(only_a=only_a[:flipped], only_b=only_b[:flipped])
    return RightAnswers(**asdict(counts), p=counts.p, holm=counts.p, tests=1, flipped=named)


def _corrected(rows: Sequence[MetricDifference]) -> list[MetricDifference]:
    """Return the rows with the p-values of right answers corrected over the benchmarks of each metric (`acc`)."""
    families: dict[str, list[float]] = {}
    for row in rows:
        if row.answers is not None:
            families.setdefault(row.metric.partition("/")[2], []).append(row.answers.p)
    corrected = {name: iter(holm(p_values)) for name, p_values in families.items()}
    return [
        row
        if row.answers is None
        else replace(row, answers=replace(row.answers, holm=next(corrected[name]), tests=len(families[name])))
        for row in rows
        for name in [row.metric.partition("/")[2]]
    ]


def _judged_together(
    rows: Sequence[MetricDifference], contrasts: Sequence[Contrast], options: Options
) -> list[MetricDifference]:
    """Return the rows with p-values corrected over all that have one, and with verdicts by these for a family."""
    corrected = iter(holm([row.p for row in rows if row.p is not None]))
    judged = []
    for row, contrast in zip(rows, contrasts, strict=True):
        if row.p is None or contrast.distance is None:
            judged.append(row)
            continue
        p = next(corrected)
        family = options.family == "holm"
        verdict = judge(contrast.distance.value, p, options.level, row.direction) if family else row.verdict
        judged.append(replace(row, p_holm=p, verdict=verdict))
    return judged


def _told_apart(rows: Sequence[MetricDifference], a: Result, b: Result) -> list[MetricDifference]:
    """Return the rows with `differs`."""
    contents = {**b.document.protocols, **a.document.protocols}
    places = [(row.metric, side.protocol) for row in rows if (side := row.a or row.b)]
    differs = tell_apart(places, contents)
    return [replace(row, differs=plain_json(differs[place])) for row, place in zip(rows, places, strict=True)]
