"""Metrics that compare a checkpoint with its base on benchmarks: changes, answers lost and gained, and accuracy above
chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from evalsvc.language.results import Results
from evalsvc.metrics.centred import covariance_of_means, fieller_interval
from evalsvc.metrics.intervals import MIN_ITEMS, Interval, Spread, confidence_interval
from evalsvc.metrics.item_numbers import is_share
from evalsvc.metrics.item_shares import Linear, combined, keep_shares, linear_mean, linear_of
from evalsvc.metrics.ratio import Ratio
from evalsvc.metrics.shares import share_stderr
from evalsvc.metrics.value_interval import ends_of
from evalsvc.spec.documents.text_reports import ForgettingRow
from evalsvc.spec.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.forgetting.rows import (
    ABOVE_CHANCE,
    SCOPES,
    Baseline,
    Pairs,
    accuracy_of,
    accuracy_pairs,
    benchmarks_of,
    compared,
    pairs_of,
)

RATIO = "text_retained/2"
"""Version of `text_retained`, in its protocol: a ratio of sums over all benchmarks. Version 1 was a mean of ratios."""


@dataclass(frozen=True)
class Differences:
    """Metrics that are differences over documents, and the numbers behind them."""

    task: str
    """First half of the metrics' names."""
    metrics: list[MetricValue] = field(default_factory=list)
    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    """Numbers by index of the document. Names begin with the benchmark, so that a row can hold one document of each
    benchmark."""

    def add_changes(self, checkpoint: Results, base: Results, protocol: Mapping[str, object]) -> None:
        """Add `<task>/<benchmark>_<metric>_change`: checkpoint minus base, for every mean over a benchmark's documents.

        `protocol` is merged into that of the metric. Perplexities, which are not means, and groups of benchmarks are
        left out.
        """
        for metric in checkpoint.metrics:
            mean = bool(metric.items) and not is_share(metric.items) and metric.unit != "perplexity"
            if mean and metric.direction != "none":
                name = metric.name.replace("/", "_", 1) + "_change"
                self._add(name, "change", metric, base, checkpoint, protocol)

    def add_icl(self, zero: Results, few: Results, protocol: Mapping[str, object]) -> None:
        """Add `<task>/<benchmark>_icl`: accuracy with solved examples before each question, minus the accuracy
        without."""
        for benchmark in benchmarks_of(few):
            for scope in SCOPES:
                without, metric = (accuracy_of(results, benchmark, scope) for results in (zero, few))
                if without is not None and metric is not None and metric.items:
                    content = {**protocol, "less": without.protocol.id}
                    self._add(f"{benchmark}_icl{scope}", "icl", metric, zero, few, content)

    def add_numbers(self, key: str, numbers: Mapping[int, float]) -> None:
        """Store a number for each document, by index, under a key that begins with the benchmark's name."""
        for index, number in numbers.items():
            self.numbers.setdefault(index, {})[key] = number

    def _add(
        self,
        name: str,
        what: str,
        metric: MetricValue,
        before: Results,
        after: Results,
        protocol: Mapping[str, object],
    ) -> None:
        pairs = pairs_of(after, before, metric, metric.items)
        if pairs is None:
            return
        benchmark = metric.name.partition("/")[0]
        value, *weight = metric.items
        keys = f"{benchmark}_{value}_{what}", *(f"{benchmark}_{key}" for key in weight)
        changes = map(_less, pairs.checkpoint, pairs.base)
        self.add_numbers(keys[0], dict(zip(pairs.indices, changes, strict=True)))
        if weight:
            self.add_numbers(keys[1], dict(zip(pairs.indices, pairs.weights, strict=True)))
        distance = pairs.difference()
        number = (distance.value, distance.stderr, distance.n, metric.unit, metric.direction)
        content, ends = compared(metric, protocol), ends_of(distance.interval())
        self.metrics.append(
            MetricValue(f"{self.task}/{name}", *number, content, items=keys, drawn_from=metric.drawn_from, ends=ends)
        )


def _less(after: float, before: float) -> float:
    """Return after − before; 0 if both sides are the same infinity."""
    return 0.0 if after == before else after - before


@dataclass(frozen=True)
class Retained:
    """The share of the base's ability that is left, over all benchmarks."""

    metrics: list[MetricValue]
    counted: list[str]
    """Benchmarks with an accuracy."""
    at_chance: list[str]
    """Benchmarks in `counted` where the base is not above chance by `ABOVE_CHANCE` of its standard errors, over all
    ids."""


def add_retention(
    differences: Differences,
    rows: Sequence[ForgettingRow],
    checkpoint: Results,
    base: Results,
    protocol: Mapping[str, object],
) -> None:
    """Add metrics of each benchmark's accuracy, over all ids and within text, with the numbers behind them:

    `<task>/<benchmark>_lost`, `…_gained`: share of the questions that only the base gets right, or only the checkpoint;
    `<task>/<benchmark>_retained`: share of the base's accuracy above chance that is left, where it is above chance.

    `protocol` is merged into that of the accuracy.
    """
    task = differences.task
    for row, accuracy, pairs in _accuracies(rows, checkpoint, base):
        content = compared(accuracy, protocol)
        suffix = "" if row.scope == "all" else "_within"
        flips = [
            (checkpoint > base) - (checkpoint < base)
            for base, checkpoint in zip(pairs.base, pairs.checkpoint, strict=True)
        ]
        kinds: tuple[tuple[str, int, Direction], ...] = (("lost", -1, "lower"), ("gained", 1, "higher"))
        for name, flip, direction in kinds:
            hits = [int(each == flip) for each in flips]
            error = share_stderr(sum(hits), row.n)
            share = Ratio(sum(hits) / row.n, None if error is None else pairs.factor * error, row.n)
            metric = share.as_metric(f"{task}/{row.what}_{name}{suffix}", "fraction", direction, content)
            _add(differences, metric, pairs, hits)
        if row.retained is not None:
            above = Protocol({**content.content, "chance": asdict(_chance(row))})
            left = Ratio(row.retained, row.retained_stderr, row.n)
            metric = left.as_metric(f"{task}/{row.what}_retained{suffix}", "fraction", "higher", above, 0.0)
            metric = replace(metric, ends=(row.retained_low, row.retained_high))
            _add(differences, metric, pairs, _shares_of_retained(row, pairs))


def centred(
    task: str, rows: Sequence[ForgettingRow], checkpoint: Results, protocol: Mapping[str, object]
) -> Iterator[MetricValue]:
    """Yield `<task>/centred`: the mean over benchmarks of the checkpoint's (accuracy − chance) / (1 − chance).

    The base is not involved. The documents' shares of the mean are added to the items of `checkpoint`.

    Source: the centred accuracies of DCLM's CORE (Li et al., arXiv 2406.11794).
    """
    for scope in SCOPES:
        accuracies = [
            (row, accuracy)
            for row, accuracy in _rows_of_accuracies(rows, checkpoint)
            if row.scope == ("text" if scope else "all")
        ]
        if not accuracies:
            continue
        name, weight = f"{task}/centred{scope}", 1 / len(accuracies)
        scales = [weight / (1 - _chance(row).value) for row, _ in accuracies]
        value = math.fsum(
            scale * (accuracy.value - _chance(row).value)
            for scale, (row, accuracy) in zip(scales, accuracies, strict=True)
        )
        errors = [accuracy.stderr for _, accuracy in accuracies]
        known = [error * scale for scale, error in zip(scales, errors, strict=True) if error is not None]
        stderr = math.hypot(*known) if len(known) == len(errors) else None
        content = {**protocol, "members": {accuracy.name: accuracy.protocol.id for _, accuracy in accuracies}}
        content["chance"] = {row.what: asdict(_chance(row)) for row, _ in accuracies}
        members = [
            linear_of(accuracy, [item for item in checkpoint.items if item["benchmark"] == row.what])
            for row, accuracy in accuracies
        ]
        linear = _all_known(value, list(zip(scales, members, strict=True)))
        items = () if linear is None else keep_shares(name, linear, checkpoint.items)
        ratio = Ratio(value, stderr, sum(accuracy.n for _, accuracy in accuracies))
        yield ratio.as_metric(name, "fraction", "higher", Protocol(content), 0.0, items)


def text_retained(
    task: str, rows: Sequence[ForgettingRow], checkpoint: Results, base: Results, protocol: Mapping[str, object]
) -> Retained:
    """Return `<task>/text_retained`: Σ c / Σ c_base over all benchmarks, with c = (accuracy − chance) / (1 − chance).

    Every benchmark with an accuracy counts, even if the base is at chance: choosing benchmarks by the same answers
    would favour those on which the base was lucky. There is no metric if the sum of the base is not above zero by
    `ABOVE_CHANCE` of its standard errors. The documents' shares are added to the items of `checkpoint`.

    Source: the centred accuracies of DCLM's CORE (Li et al., arXiv 2406.11794), as a share of the base's.
    """
    every = list(_accuracies(rows, checkpoint, base))
    of_all = [row for row, _, _ in every if row.scope == "all"]
    retained = Retained([], [row.what for row in of_all], [row.what for row in of_all if row.retained is None])
    for scope in SCOPES:
        in_scope = [each for each in every if each[0].scope == SCOPES[scope]]
        ratio = _Retention.of([(row, pairs) for row, _, pairs in in_scope])
        if ratio is None:
            continue
        name = f"{task}/text_retained{scope}"
        content = {
            **protocol,
            "members": {accuracy.name: accuracy.protocol.id for _, accuracy, _ in in_scope},
            "estimator": RATIO,
            "above_chance": ABOVE_CHANCE,
            **_other_chances([(row, accuracy) for row, accuracy, _ in in_scope]),
        }
        items = keep_shares(name, ratio.linear, checkpoint.items)
        left = Ratio(ratio.linear.value, ratio.stderr, ratio.n)
        metric = left.as_metric(name, "fraction", "higher", Protocol(content), 0.0, items)
        retained.metrics.append(replace(metric, ends=ends_of(ratio.interval())))
    return retained


@dataclass(frozen=True)
class _Retention:
    """The ratio of the summed centred accuracies of checkpoint and base."""

    checkpoint: float
    base: float
    covariances: tuple[float, float, float]
    """Covariances of the two sums: checkpoint with itself, checkpoint with base, base with itself."""
    linear: Linear
    stderr: float
    dof: float
    """Degrees of freedom of `stderr`."""
    n: int

    @classmethod
    def of(cls, accuracies: Sequence[tuple[ForgettingRow, Pairs]]) -> _Retention | None:
        """Return the ratio over benchmarks; None if the base is at chance, or a benchmark has a single question."""
        if not accuracies or any(row.n < 2 for row, _ in accuracies):
            return None
        checkpoint, base = (
            math.fsum(getattr(row, side) for row, _ in accuracies) for side in ("centred", "centred_base")
        )
        scales = [1 / (1 - _chance(row).value) for row, _ in accuracies]
        parts = [
            [(scale * pairs.factor) ** 2 * covariance_of_means(*two) for two in _products(pairs)]
            for scale, (_, pairs) in zip(scales, accuracies, strict=True)
        ]
        v_own, v_both, v_base = (math.fsum(column) for column in zip(*parts, strict=True))
        if base <= ABOVE_CHANCE * math.sqrt(v_base):
            return None
        ratio = checkpoint / base
        members = [
            (scale / base, linear_mean(_names(row, pairs), _left(pairs, ratio), pairs.weights, pairs.drawn_from))
            for scale, (row, pairs) in zip(scales, accuracies, strict=True)
        ]
        linear = combined(ratio, [(weight, member) for weight, member in members if member is not None])
        errors = [v_own - 2 * ratio * v_both + ratio**2 * v_base for v_own, v_both, v_base in parts]
        alike = math.hypot(
            *(scale * (row.change_stderr or 0) for scale, (row, _) in zip(scales, accuracies, strict=True))
        )
        dofs = [row.n - 1 for row, _ in accuracies]
        stderr, dof = linear.stderr or alike / base, _satterthwaite(errors, dofs)
        return cls(checkpoint, base, (v_own, v_both, v_base), linear, stderr, dof, sum(row.n for row, _ in accuracies))

    def interval(self) -> Interval | None:
        """Return Fieller's interval; None if it is unbounded, or with fewer than `MIN_ITEMS` questions.

        If both give the same answers, the interval is that of the difference of the two sums.
        """
        if self.n < MIN_ITEMS:
            return None
        if not self.linear.stderr:
            return confidence_interval(self.linear.value, Spread(self.stderr, self.dof))
        return fieller_interval((self.checkpoint, self.base), self.covariances, self.dof)


def _satterthwaite(variances: Sequence[float], dofs: Sequence[int]) -> float:
    """Return the degrees of freedom of a sum of independent variances; the sum of all if the variances are zero.

    Source: F. E. Satterthwaite, Biometrics Bulletin 2 (1946) 110–114.
    """
    total = math.fsum(variances)
    if not total > 0:
        return float(sum(dofs))
    return 1 / math.fsum((variance / total) ** 2 / dof for variance, dof in zip(variances, dofs, strict=True))


def _products(pairs: Pairs) -> tuple[tuple[Sequence[float], Sequence[float]], ...]:
    return (pairs.checkpoint, pairs.checkpoint), (pairs.checkpoint, pairs.base), (pairs.base, pairs.base)


def _left(pairs: Pairs, ratio: float) -> list[float]:
    return [checkpoint - ratio * base for checkpoint, base in zip(pairs.checkpoint, pairs.base, strict=True)]


def _shares_of_retained(row: ForgettingRow, pairs: Pairs) -> list[float]:
    assert row.retained is not None, "the base is above chance"
    names = _names(row, pairs)
    linear = linear_mean(names, _left(pairs, row.retained), pairs.weights)
    if linear is None:
        return []
    above = row.base - _chance(row).value
    shares = combined(row.retained, [(1 / above, linear)]).shares()
    return [shares[name] for name in names]


def _add(differences: Differences, metric: MetricValue, pairs: Pairs, numbers: Sequence[float]) -> None:
    key = metric.name.partition("/")[2]
    if numbers:
        differences.add_numbers(key, dict(zip(pairs.indices, numbers, strict=True)))
        metric = replace(metric, items=(key,), drawn_from=pairs.drawn_from)
    differences.metrics.append(metric)


def _all_known(value: float, members: Sequence[tuple[float, Linear | None]]) -> Linear | None:
    known = [(weight, member) for weight, member in members if member is not None]
    return combined(value, known) if len(known) == len(members) else None


def _names(row: ForgettingRow, pairs: Pairs) -> list[tuple[object, object]]:
    return [(row.what, index) for index in pairs.indices]


def _rows_of_accuracies(
    rows: Sequence[ForgettingRow], checkpoint: Results
) -> Iterator[tuple[ForgettingRow, MetricValue]]:
    for row in rows:
        accuracy = accuracy_of(checkpoint, row.what, "_within" if row.scope == "text" else "")
        if row.chance is not None and accuracy is not None:
            yield row, accuracy


def _accuracies(
    rows: Sequence[ForgettingRow], checkpoint: Results, base: Results
) -> Iterator[tuple[ForgettingRow, MetricValue, Pairs]]:
    for row, accuracy in _rows_of_accuracies(rows, checkpoint):
        pairs = accuracy_pairs(checkpoint, base, row.what, "_within" if row.scope == "text" else "")
        if pairs is not None:
            yield row, accuracy, pairs


def _other_chances(accuracies: Sequence[tuple[ForgettingRow, MetricValue]]) -> dict[str, object]:
    """Return the protocol's content for chance accuracies from the table; the others follow from the members'
    digests."""
    other = {row.what: asdict(_chance(row)) for row, accuracy in accuracies if row.chance != accuracy.baseline}
    return {"chance": other} if other else {}


def _chance(row: ForgettingRow) -> Baseline:
    assert row.chance is not None, "a row of an accuracy has one"
    return Baseline(row.chance, row.chance_table)
