"""Comparison of two checkpoints: the difference in every metric, its interval, and a verdict.

`compare_results` is a pure function of two results, from files or from the service. Unlike the gate, it treats both
sides alike. Metrics that were measured by different protocols are refused, with the fields that differ, unless `force`
is set. A metric that is right or wrong on each item also gets the counts of McNemar's test, and the items on which the
two sides differ.

Each verdict holds at its own level, so some of many verdicts are wrong by chance. `Comparison` says how many to expect
if nothing had changed. The family `holm` judges all metrics together. Companions, such as a perplexity next to its
loss, are not counted as verdicts and do not enlarge the family, unless the user names them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import translate
from functools import cache, cached_property

from evalsvc.compare.contrast import EXTERNAL_AGAINST_SAMPLED, Contrast, allowed_by, contrast_results, paired_numbers
from evalsvc.compare.result import Measured, Result, task_of
from evalsvc.errors import NotComparable, UnknownName, first_few
from evalsvc.metrics.distance import Distance, judge
from evalsvc.metrics.intervals import LEVEL, require_level
from evalsvc.metrics.item_numbers import aligned
from evalsvc.metrics.mcnemar import holm
from evalsvc.metrics.shown_metrics import Place, divide_rows
from evalsvc.spec.documents.comparisons import (
    Across,
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
    """Choice of metrics, and the statistics of a comparison."""

    metrics: tuple[str, ...] = ()
    """Names of metrics, or patterns such as `coco/*`; empty for all metrics."""
    tasks: tuple[str, ...] = ()
    """Names of tasks; empty for the metrics of all tasks."""
    level: float = LEVEL
    """Probability that the interval of one difference holds the true difference."""
    force: bool = False
    """Whether values of different protocols are compared too, without pairs."""
    across: tuple[Across, ...] = ()
    """Differences between protocols across which values are compared, with pairs."""
    flipped: int = 0
    """Largest number of items to name, per side, that only this side gets right."""
    family: Family = "none"
    """Scope of the rate of false differences: `none` for each metric alone, `holm` for all judged metrics together."""

    @cached_property
    def wants(self) -> Callable[[str], bool]:
        """Whether a metric is chosen. Each name is matched once, and not at every step again."""
        known, patterns = set(self.metrics), re.compile("|".join(map(translate, self.metrics)))
        return cache(lambda name: not known or name in known or patterns.fullmatch(name) is not None)


def compare_results(a: Result, b: Result, options: Options = Options()) -> Comparison:
    require_known([*a.document.metrics, *b.document.metrics], options, f"{a.name} or {b.name}")
    contrasts = list(contrast_results(a, b, options.wants, options.tasks, force=options.force, across=options.across))
    differs = tell_apart(
        [(contrast.metric.name, contrast.metric.protocol) for contrast in contrasts],
        {**b.document.protocols, **a.document.protocols},
    )
    rows = _corrected([_row(contrast, options, differs) for contrast in contrasts])
    mains: list[list[int]] = [[] for _ in rows]
    places = [Place(contrast.metric.name, "", contrast.metric.protocol) for contrast in contrasts]
    for main, companions in divide_rows(places, options.metrics).companions.items():
        for position in companions:
            mains[position].append(main)
    judged = sum(row.p is not None and not main for row, main in zip(rows, mains, strict=True))
    rows = _judged_together(rows, contrasts, mains, options)
    tasks = {row.task for row in rows}
    return Comparison(
        a=a.name,
        b=b.name,
        level=options.level,
        family=options.family,
        judged=judged,
        expected_by_chance=(1 - options.level) * judged if options.family == "none" else None,
        forced=options.force,
        across=list(options.across),
        contrasts=rows,
        warnings=ComparisonWarnings(a=_warnings(a, tasks), b=_warnings(b, tasks)),
    )


NAMED = 3


def require_comparable(comparison: Comparison, *, all_of_it: bool = True) -> None:
    """Raise NotComparable where metrics were measured by different protocols; without `all_of_it`, where all were."""
    refused = [row for row in comparison.contrasts if row.verdict == "other_protocol"]
    compared = any(row.a and row.b and row.verdict != "other_protocol" for row in comparison.contrasts)
    if refused and (all_of_it or not compared):
        reasons = {row.metric: describe_differences(differences_from_json(row.differing)) for row in refused}
        across = {allowed_by(differences_from_json(row.differing)) for row in refused}
        raise other_protocols(comparison.a, comparison.b, reasons.items(), across)


def other_protocols(
    a: str, b: str, reasons: Iterable[tuple[str, str]], across: Collection[str | None] = ()
) -> NotComparable:
    """Return the error for two sides that were measured by different protocols; `reasons` are pairs with a metric.
    `across` are the differences across which some of these metrics can be compared."""
    metrics_of: dict[str, list[str]] = {}
    for metric, reason in reasons:
        metrics_of.setdefault(reason, []).append(metric)
    fields = "; ".join(f"{first_few(metrics, NAMED)}: {reason}" for reason, metrics in metrics_of.items())
    do = "compare them all the same: --force (force=true)"
    if "sampling" in across:
        do = f"compare {EXTERNAL_AGAINST_SAMPLED}: --across-sampling (across=sampling)"
    return NotComparable(
        f"{a} and {b} were measured by different protocols: {fields}; evaluate one of the two again, or {do}"
    )


def require_known(metrics: Sequence[TaskMetric], options: Options, whose: str) -> None:
    """Check the options against the metrics of both sides."""
    require_level(options.level)
    names = dict.fromkeys(metric.name for metric in metrics)
    for wanted in options.metrics:
        if not any(map(Options((wanted,)).wants, names)):
            raise UnknownName.among(f"metric of {whose}", wanted, names)
    tasks = {task_of(metric) for metric in metrics}
    for task in options.tasks:
        if task not in tasks:
            raise UnknownName.among(f"task of {whose}", task, tasks)


def _warnings(result: Result, tasks: Collection[str]) -> list[TaskWarning]:
    return [warning for task, warnings in result.document.warnings.items() if task in tasks for warning in warnings]


def _row(
    contrast: Contrast, options: Options, differs: Mapping[tuple[str, str], Mapping[str, object]]
) -> MetricDifference:
    metric, distance = contrast.metric, contrast.distance
    row = MetricDifference(
        metric=metric.name,
        task=task_of(metric),
        unit=metric.unit,
        direction=metric.direction,
        verdict=contrast.verdict(options.level),
        a=_side(contrast.a),
        b=_side(contrast.b),
        differing=plain_json(differences_to_json(contrast.differing)),
        differs=plain_json(differs[metric.name, metric.protocol]),
    )
    if distance is None:
        return row
    interval = distance.interval(options.level)
    known = {name: getattr(distance, name) for name in ("basis", "n", "groups", "n_only_a", "n_only_b")}
    known |= {"difference": number_to_json(distance.value), "stderr": number_to_json(distance.stderr)}
    known |= {"p": distance.p_value(), "no_error": distance.why_no_error("A", "B")}
    known["interval"] = interval and DifferenceInterval(**plain_json(asdict(interval)))
    known["answers"] = _answers(contrast, distance, options.flipped)
    return row.model_copy(update=known)


def _side(measured: Measured | None) -> ComparedSide | None:
    if measured is None:
        return None
    return ComparedSide(**{name: getattr(measured.metric, name) for name in ComparedSide.model_fields})


def _answers(contrast: Contrast, distance: Distance, flipped: int) -> RightAnswers | None:
    if distance.flips is None or contrast.a is None or contrast.b is None:
        return None
    pairs = paired_numbers(contrast.a, contrast.b, contrast.differing)
    assert pairs is not None, "items that are right or wrong are paired"
    a, b = aligned(*pairs)
    rows = list(zip(a.items, a.columns[0], b.columns[0], strict=True))
    only_a = [index for (_, index), x, y in rows if x > y]
    only_b = [index for (_, index), x, y in rows if y > x]
    p, named = distance.flips.p, FlippedItems(only_a=only_a[:flipped], only_b=only_b[:flipped])
    return RightAnswers(**asdict(distance.flips), p=p, holm=p, tests=1, flipped=named)


def _corrected(rows: Sequence[MetricDifference]) -> list[MetricDifference]:
    families: dict[str, list[float]] = {}
    for row in rows:
        if row.answers is not None:
            families.setdefault(row.metric.partition("/")[2], []).append(row.answers.p)
    corrected = {name: iter(holm(p_values)) for name, p_values in families.items()}
    changed = []
    for row in rows:
        name = row.metric.partition("/")[2]
        if row.answers is not None:
            known = {"holm": next(corrected[name]), "tests": len(families[name])}
            row = row.model_copy(update={"answers": row.answers.model_copy(update=known)})
        changed.append(row)
    return changed


def _judged_together(
    rows: Sequence[MetricDifference], contrasts: Sequence[Contrast], mains: Sequence[Sequence[int]], options: Options
) -> list[MetricDifference]:
    # The correction is over the rows that are no companions. A companion has the `p_holm` of its main row, or its own p
    # where that is larger.
    p_values = [math.nan if row.p is None or main else row.p for row, main in zip(rows, mains, strict=True)]
    corrected = holm(p_values)
    judged = []
    for position, (row, contrast) in enumerate(zip(rows, contrasts, strict=True)):
        if row.p is None or contrast.distance is None:
            judged.append(row)
            continue
        of_mains = [corrected[main] for main in mains[position] if not math.isnan(corrected[main])]
        p = max([row.p, *of_mains]) if mains[position] else corrected[position]
        verdict = row.verdict
        if options.family == "holm":
            verdict = judge(contrast.distance.value, p, options.level, row.direction)
        judged.append(row.model_copy(update={"p_holm": p, "verdict": verdict}))
    return judged
