"""What is left of a base's abilities, as metrics: right answers lost and gained, and accuracy above chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from evalsvc.language.results import Results
from evalsvc.metrics.centred import covariance_of_means, fieller_interval
from evalsvc.metrics.intervals import MIN_ITEMS, Interval, Spread, confidence_interval
from evalsvc.metrics.item_shares import Linear, combined, keep_shares, linear_mean, linear_of
from evalsvc.metrics.ratio import Ratio
from evalsvc.metrics.shares import share_stderr
from evalsvc.spec.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.forgetting.base_comparison import Differences
from evalsvc.tasks.forgetting.pairs import SCOPES, Pairs, accuracy_of, accuracy_pairs
from evalsvc.tasks.forgetting.random_baselines import Baseline
from evalsvc.tasks.forgetting.rows import ABOVE_CHANCE, Row

RATIO = "text_retained/2"
"""In the protocol of `text_retained`: a ratio of sums over all benchmarks. Version 1 was a mean of ratios."""


@dataclass(frozen=True)
class Retained:
    """How much of the base's ability is left, over all benchmarks."""

    metrics: list[MetricValue]
    intervals: dict[str, Interval]
    """Of the metrics that have one, by name."""
    counted: list[str]
    """Benchmarks that have an accuracy."""
    at_chance: list[str]
    """Those of them where the base is not above chance by `ABOVE_CHANCE` of its standard errors, over all ids."""


def add_retention(
    differences: Differences, rows: Sequence[Row], own: Results, base: Results, protocol: Mapping[str, object]
) -> None:
    """Add metrics of each benchmark's accuracy, over all ids and within text, with what they are made of:

    `<task>/<benchmark>_lost`, `…_gained`: share of the questions that only the base gets right, or only the checkpoint;
    `<task>/<benchmark>_retained`: share of the base's accuracy above chance that is left, where it is above chance.

    `protocol` is put over that of the accuracy.
    """
    task = differences.task
    for row, accuracy, pairs in _accuracies(rows, own, base):
        content = {**accuracy.protocol.content, **protocol}
        suffix = "" if row.scope == "all" else "_within"
        flips = [(own > base) - (own < base) for base, own in zip(pairs.base, pairs.own, strict=True)]
        kinds: tuple[tuple[str, int, Direction], ...] = (("lost", -1, "lower"), ("gained", 1, "higher"))
        for name, flip, direction in kinds:
            hits = [int(each == flip) for each in flips]
            error = share_stderr(sum(hits), row.n)
            share = Ratio(sum(hits) / row.n, None if error is None else pairs.factor * error, row.n)
            metric = share.as_metric(f"{task}/{row.what}_{name}{suffix}", "fraction", direction, Protocol(content))
            _add(differences, metric, pairs, hits)
        if row.retained is not None:
            above = Protocol({**content, "chance": asdict(_chance(row))})
            left = Ratio(row.retained, row.retained_stderr, row.n)
            metric = left.as_metric(f"{task}/{row.what}_retained{suffix}", "fraction", "higher", above, 0.0)
            _add(differences, metric, pairs, _shares_of_retained(row, pairs))


def centred(task: str, rows: Sequence[Row], own: Results, protocol: Mapping[str, object]) -> Iterator[MetricValue]:
    """Yield `<task>/centred`: the mean over benchmarks of the checkpoint's (accuracy − chance) / (1 − chance).

    The base has no part in it. The documents' shares of the mean are put into the items of `own`.

    Source: the centred accuracies of DCLM's CORE (Li et al., arXiv 2406.11794).
    """
    for scope in SCOPES:
        some = [
            (row, accuracy)
            for row, accuracy in _rows_of_accuracies(rows, own)
            if row.scope == ("text" if scope else "all")
        ]
        if not some:
            continue
        name, weight = f"{task}/centred{scope}", 1 / len(some)
        scales = [weight / (1 - _chance(row).value) for row, _ in some]
        value = math.fsum(
            scale * (accuracy.value - _chance(row).value) for scale, (row, accuracy) in zip(scales, some, strict=True)
        )
        errors = [accuracy.stderr for _, accuracy in some]
        known = [error * scale for scale, error in zip(scales, errors, strict=True) if error is not None]
        stderr = math.hypot(*known) if len(known) == len(errors) else None
        content = {**protocol, "members": {accuracy.name: accuracy.protocol.id for _, accuracy in some}}
        content["chance"] = {row.what: asdict(_chance(row)) for row, _ in some}
        members = [
            linear_of(accuracy, [item for item in own.items if item["benchmark"] == row.what]) for row, accuracy in some
        ]
        linear = _all_known(value, list(zip(scales, members, strict=True)))
        items = () if linear is None else keep_shares(name, linear, own.items)
        found = Ratio(value, stderr, sum(accuracy.n for _, accuracy in some))
        yield found.as_metric(name, "fraction", "higher", Protocol(content), 0.0, items)


def text_retained(
    task: str, rows: Sequence[Row], own: Results, base: Results, protocol: Mapping[str, object]
) -> Retained:
    """Return `<task>/text_retained`: Σ c / Σ c_base over all benchmarks, with c = (accuracy − chance) / (1 − chance).

    Every benchmark with an accuracy counts, also where the base is at chance: a choice by the same answers would favour
    those where the base was lucky. There is no metric where the sum of the base is not above zero by `ABOVE_CHANCE` of
    its standard errors. The documents' shares are put into the items of `own`.

    Source: the centred accuracies of DCLM's CORE (Li et al., arXiv 2406.11794), as a share of the base's.
    """
    every = list(_accuracies(rows, own, base))
    of_all = [row for row, _, _ in every if row.scope == "all"]
    found = Retained([], {}, [row.what for row in of_all], [row.what for row in of_all if row.retained is None])
    for scope in SCOPES:
        some = [each for each in every if each[0].scope == SCOPES[scope]]
        ratio = _Retention.of([(row, pairs) for row, _, pairs in some])
        if ratio is None:
            continue
        name = f"{task}/text_retained{scope}"
        content = {
            **protocol,
            "members": {accuracy.name: accuracy.protocol.id for _, accuracy, _ in some},
            "estimator": RATIO,
            "above_chance": ABOVE_CHANCE,
            **_other_chances([(row, accuracy) for row, accuracy, _ in some]),
        }
        items = keep_shares(name, ratio.linear, own.items)
        left = Ratio(ratio.linear.value, ratio.stderr, ratio.n)
        found.metrics.append(left.as_metric(name, "fraction", "higher", Protocol(content), 0.0, items))
        if (interval := ratio.interval()) is not None:
            found.intervals[name] = interval
    return found


@dataclass(frozen=True)
class _Retention:
    """The ratio of the summed centred accuracies of checkpoint and base."""

    own: float
    base: float
    covariances: tuple[float, float, float]
    """Of the two sums: of the checkpoint's with itself, of both, of the base's with itself."""
    linear: Linear
    stderr: float
    dof: float
    """Degrees of freedom of `stderr`."""
    n: int

    @classmethod
    def of(cls, some: Sequence[tuple[Row, Pairs]]) -> _Retention | None:
        """Return the ratio over benchmarks; None where the base is at chance, or a benchmark has one question only."""
        if not some or any(row.n < 2 for row, _ in some):
            return None
        own, base = (math.fsum(getattr(row, side) for row, _ in some) for side in ("centred", "centred_base"))
        scales = [1 / (1 - _chance(row).value) for row, _ in some]
        parts = [
            [(scale * pairs.factor) ** 2 * covariance_of_means(*two) for two in _products(pairs)]
            for scale, (_, pairs) in zip(scales, some, strict=True)
        ]
        v_own, v_both, v_base = (math.fsum(column) for column in zip(*parts, strict=True))
        if base <= ABOVE_CHANCE * math.sqrt(v_base):
            return None
        ratio = own / base
        members = [
            (scale / base, linear_mean(_names(row, pairs), _left(pairs, ratio), pairs.weights, pairs.drawn_from))
            for scale, (row, pairs) in zip(scales, some, strict=True)
        ]
        linear = combined(ratio, [(weight, member) for weight, member in members if member is not None])
        errors = [v_own - 2 * ratio * v_both + ratio**2 * v_base for v_own, v_both, v_base in parts]
        alike = math.hypot(*(scale * (row.change_stderr or 0) for scale, (row, _) in zip(scales, some, strict=True)))
        dofs = [row.n - 1 for row, _ in some]
        stderr, dof = linear.stderr or alike / base, _satterthwaite(errors, dofs)
        return cls(own, base, (v_own, v_both, v_base), linear, stderr, dof, sum(row.n for row, _ in some))

    def interval(self) -> Interval | None:
        """Return Fieller's interval; None where it has no end, or below `MIN_ITEMS` questions.

        Where both give the same answers it is the interval of the difference of the two sums.
        """
        if self.n < MIN_ITEMS:
            return None
        if not self.linear.stderr:
            return confidence_interval(self.linear.value, Spread(self.stderr, self.dof))
        return fieller_interval((self.own, self.base), self.covariances, self.dof)


def _satterthwaite(variances: Sequence[float], dofs: Sequence[int]) -> float:
    """Return the degrees of freedom of a sum of independent variances; those of all where the sum is zero.

    Source: F. E. Satterthwaite, Biometrics Bulletin 2 (1946) 110–114.
    """
    total = math.fsum(variances)
    if not total > 0:
        return float(sum(dofs))
    return 1 / math.fsum((variance / total) ** 2 / dof for variance, dof in zip(variances, dofs, strict=True))


def _products(pairs: Pairs) -> tuple[tuple[Sequence[float], Sequence[float]], ...]:
    return (pairs.own, pairs.own), (pairs.own, pairs.base), (pairs.base, pairs.base)


def _left(pairs: Pairs, ratio: float) -> list[float]:
    """Return the checkpoint's number of each question less `ratio` times the base's."""
    return [own - ratio * base for own, base in zip(pairs.own, pairs.base, strict=True)]


def _shares_of_retained(row: Row, pairs: Pairs) -> list[float]:
    """Return the linearised share of each question in the ratio of accuracies above chance."""
    assert row.retained is not None, "the base is above chance"
    names = _names(row, pairs)
    linear = linear_mean(names, _left(pairs, row.retained), pairs.weights)
    if linear is None:
        return []
    above = row.base - _chance(row).value
    found = combined(row.retained, [(1 / above, linear)]).shares()
    return [found[name] for name in names]


def _add(differences: Differences, metric: MetricValue, pairs: Pairs, numbers: Sequence[float]) -> None:
    """Add a metric of one benchmark that is the mean of a number of each question; without numbers, as it is."""
    key = metric.name.partition("/")[2]
    if numbers:
        differences.add_numbers(key, dict(zip(pairs.indices, numbers, strict=True)))
        metric = replace(metric, items=(key,), drawn_from=pairs.drawn_from)
    differences.metrics.append(metric)


def _all_known(value: float, members: Sequence[tuple[float, Linear | None]]) -> Linear | None:
    known = [(weight, member) for weight, member in members if member is not None]
    return combined(value, known) if len(known) == len(members) else None


def _names(row: Row, pairs: Pairs) -> list[tuple[object, object]]:
    return [(row.what, index) for index in pairs.indices]


def _rows_of_accuracies(rows: Sequence[Row], own: Results) -> Iterator[tuple[Row, MetricValue]]:
    """Yield the rows that are about an accuracy, with the checkpoint's."""
    for row in rows:
        accuracy = accuracy_of(own, row.what, "_within" if row.scope == "text" else "")
        if row.chance is not None and accuracy is not None:
            yield row, accuracy


def _accuracies(rows: Sequence[Row], own: Results, base: Results) -> Iterator[tuple[Row, MetricValue, Pairs]]:
    """Yield the rows that are about an accuracy, with the checkpoint's, and both sides question by question."""
    for row, accuracy in _rows_of_accuracies(rows, own):
        pairs = accuracy_pairs(own, base, row.what, "_within" if row.scope == "text" else "")
        if pairs is not None:
            yield row, accuracy, pairs


def _other_chances(some: Sequence[tuple[Row, MetricValue]]) -> dict[str, object]:
    """Return what the protocol says of chance where it is not right options / options, as the members' digests say."""
    other = {row.what: asdict(_chance(row)) for row, accuracy in some if row.chance != accuracy.baseline}
    return {"chance": other} if other else {}


def _chance(row: Row) -> Baseline:
    assert row.chance is not None, "a row of an accuracy has one"
    return Baseline(row.chance, row.chance_table)
