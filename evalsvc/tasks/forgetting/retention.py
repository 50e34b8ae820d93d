"""Metrics that compare a checkpoint with its base on benchmarks: changes, answers lost and gained, and above chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from evalsvc.language.results import Results
from evalsvc.metrics.intervals import MIN_ITEMS, Interval, Spread, confidence_interval
from evalsvc.metrics.item_numbers import Linear, combined, is_share, keep_shares, linear_mean, linear_of
from evalsvc.metrics.ratio import Ratio, covariance_of_means, fieller_interval
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
    metrics: list[MetricValue] = field(default_factory=list)
    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    """Numbers by index of the document. Names begin with the benchmark: a row can hold a document of each."""

    def add_changes(self, checkpoint: Results, base: Results, protocol: Mapping[str, object]) -> None:
        """Add `<task>/<benchmark>_<metric>_change`, checkpoint minus base, for every mean over a benchmark's documents:
        neither for perplexities, which are not means, nor for groups. `protocol` is merged into that of the metric."""
        for metric in checkpoint.metrics:
            mean = bool(metric.items) and not is_share(metric.items) and metric.unit != "perplexity"
            if mean and metric.direction != "none":
                name = metric.name.replace("/", "_", 1) + "_change"
                self._add(name, "change", metric, base, checkpoint, protocol)

    def add_icl(self, zero: Results, few: Results, protocol: Mapping[str, object]) -> None:
        """Add `<task>/<benchmark>_icl`: accuracy with solved examples before each question, minus that without."""
        for benchmark in benchmarks_of(few):
            for scope in SCOPES:
                without, metric = (accuracy_of(results, benchmark, scope) for results in (zero, few))
                if without is not None and metric is not None and metric.items:
                    content = {**protocol, "less": without.protocol.id}
                    self._add(f"{benchmark}_icl{scope}", "icl", metric, zero, few, content)

    def add(self, metric: MetricValue, pairs: Pairs, numbers: Sequence[float]) -> None:
        """Add a metric of one benchmark, with the numbers that it is the mean of, if any."""
        if numbers:
            key = metric.name.partition("/")[2]
            self.add_numbers(key, dict(zip(pairs.indices, numbers, strict=True)))
            metric = replace(metric, items=(key,), drawn_from=pairs.drawn_from)
        self.metrics.append(metric)

    def add_numbers(self, key: str, numbers: Mapping[int, float]) -> None:
        for index, number in numbers.items():
            self.numbers.setdefault(index, {})[key] = number

    def _add(
        self, name: str, what: str, metric: MetricValue, before: Results, after: Results, protocol: Mapping[str, object]
    ) -> None:
        pairs = pairs_of(after, before, metric, metric.items)
        if pairs is None:
            return
        benchmark = metric.name.partition("/")[0]
        value, *weight = metric.items
        keys = f"{benchmark}_{value}_{what}", *(f"{benchmark}_{key}" for key in weight)
        # The same infinity on both sides has not changed.
        sides = zip(pairs.checkpoint, pairs.base, strict=True)
        changes = [0.0 if after == before else after - before for after, before in sides]
        self.add_numbers(keys[0], dict(zip(pairs.indices, changes, strict=True)))
        if weight:
            self.add_numbers(keys[1], dict(zip(pairs.indices, pairs.weights, strict=True)))
        distance = pairs.difference()
        number = (distance.value, distance.stderr, distance.n, metric.unit, metric.direction)
        content, ends = compared(metric, protocol), ends_of(distance.interval())
        self.metrics.append(
            MetricValue(f"{self.task}/{name}", *number, content, items=keys, drawn_from=metric.drawn_from, ends=ends)
        )


@dataclass(frozen=True)
class Retained:
    """The share of the base's ability that is left, over all benchmarks."""

    metrics: list[MetricValue]
    counted: list[str]
    at_chance: list[str]
    """Benchmarks in `counted` where the base is not `ABOVE_CHANCE` standard errors above chance, over all ids."""


@dataclass(frozen=True)
class _Accuracy:
    """An accuracy of a benchmark in one scope, by its row, the checkpoint's metric, and question by question."""

    row: ForgettingRow
    metric: MetricValue
    pairs: Pairs | None
    chance: Baseline

    @property
    def suffix(self) -> str:
        return "" if self.row.scope == "all" else "_within"

    def left(self, ratio: float, drawn_from: int | None = None) -> Linear | None:
        assert self.pairs is not None, "only paired accuracies are compared"
        numbers = [new - ratio * old for new, old in zip(self.pairs.checkpoint, self.pairs.base, strict=True)]
        names = [(self.row.what, index) for index in self.pairs.indices]
        return linear_mean(names, numbers, self.pairs.weights, drawn_from)


def _accuracies(rows: Sequence[ForgettingRow], checkpoint: Results, base: Results | None = None) -> list[_Accuracy]:
    accuracies = []
    for row in rows:
        suffix = "_within" if row.scope == "text" else ""
        metric = accuracy_of(checkpoint, row.what, suffix)
        pairs = None if base is None else accuracy_pairs(checkpoint, base, row.what, suffix)
        if row.chance is not None and metric is not None and (base is None or pairs is not None):
            accuracies.append(_Accuracy(row, metric, pairs, Baseline(row.chance, row.chance_table)))
    return accuracies


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
    for accuracy in _accuracies(rows, checkpoint, base):
        row, pairs = accuracy.row, accuracy.pairs
        assert pairs is not None, "the accuracies are paired"
        content = compared(accuracy.metric, protocol)
        flips = [(new > old) - (new < old) for old, new in zip(pairs.base, pairs.checkpoint, strict=True)]
        kinds: tuple[tuple[str, int, Direction], ...] = (("lost", -1, "lower"), ("gained", 1, "higher"))
        for name, flip, direction in kinds:
            hits = [int(each == flip) for each in flips]
            error = share_stderr(sum(hits), row.n)
            share = Ratio(sum(hits) / row.n, None if error is None else pairs.factor * error, row.n)
            full_name = f"{differences.task}/{row.what}_{name}{accuracy.suffix}"
            differences.add(share.as_metric(full_name, "fraction", direction, content), pairs, hits)
        if row.retained is not None:
            above = Protocol({**content.content, "chance": asdict(accuracy.chance)})
            linear, shares = accuracy.left(row.retained), []
            if linear is not None:
                by_name = combined(row.retained, [(1 / (row.base - accuracy.chance.value), linear)]).shares()
                shares = [by_name[row.what, index] for index in pairs.indices]
            left = Ratio(row.retained, row.retained_stderr, row.n)
            full_name = f"{differences.task}/{row.what}_retained{accuracy.suffix}"
            metric = left.as_metric(full_name, "fraction", "higher", above, 0.0)
            differences.add(replace(metric, ends=(row.retained_low, row.retained_high)), pairs, shares)


def centred(
    task: str, rows: Sequence[ForgettingRow], checkpoint: Results, protocol: Mapping[str, object]
) -> Iterator[MetricValue]:
    """Yield `<task>/centred`: the mean over benchmarks of the checkpoint's (accuracy − chance) / (1 − chance).

    The base is not involved. The documents' shares of the mean are added to the items of `checkpoint`.

    Source: the centred accuracies of DCLM's CORE (Li et al., arXiv 2406.11794).
    """
    for scope in SCOPES:
        accuracies = [each for each in _accuracies(rows, checkpoint) if each.suffix == scope]
        if not accuracies:
            continue
        name, weight = f"{task}/centred{scope}", 1 / len(accuracies)
        scaled = [(weight / (1 - each.chance.value), each) for each in accuracies]
        value = math.fsum(scale * (each.metric.value - each.chance.value) for scale, each in scaled)
        known = [each.metric.stderr * scale for scale, each in scaled if each.metric.stderr is not None]
        stderr = math.hypot(*known) if len(known) == len(scaled) else None
        content = {
            **protocol,
            "members": {each.metric.name: each.metric.protocol.id for each in accuracies},
            "chance": {each.row.what: asdict(each.chance) for each in accuracies},
        }
        members = []
        for scale, each in scaled:
            own = [item for item in checkpoint.items if item["benchmark"] == each.row.what]
            if (linear := linear_of(each.metric, own)) is not None:
                members.append((scale, linear))
        items: tuple[str, ...] = ()
        if len(members) == len(scaled):
            items = keep_shares(name, combined(value, members), checkpoint.items)
        ratio = Ratio(value, stderr, sum(each.metric.n for each in accuracies))
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
    every = _accuracies(rows, checkpoint, base)
    of_all = [each.row for each in every if each.row.scope == "all"]
    retained = Retained([], [row.what for row in of_all], [row.what for row in of_all if row.retained is None])
    for scope in SCOPES:
        accuracies = [each for each in every if each.suffix == scope]
        ratio = _summed_retention(accuracies)
        if ratio is None:
            continue
        linear, stderr, interval = ratio
        name = f"{task}/text_retained{scope}"
        # Chance accuracies that are not from the table follow from the members' digests.
        others = {acc.row.what: asdict(acc.chance) for acc in accuracies if acc.chance.value != acc.metric.baseline}
        content = {
            **protocol,
            "members": {each.metric.name: each.metric.protocol.id for each in accuracies},
            "estimator": RATIO,
            "above_chance": ABOVE_CHANCE,
            **({"chance": others} if others else {}),
        }
        items = keep_shares(name, linear, checkpoint.items)
        left = Ratio(linear.value, stderr, sum(each.row.n for each in accuracies))
        metric = left.as_metric(name, "fraction", "higher", Protocol(content), 0.0, items)
        retained.metrics.append(replace(metric, ends=ends_of(interval)))
    return retained


def _summed_retention(accuracies: Sequence[_Accuracy]) -> tuple[Linear, float, Interval | None] | None:
    """Return the ratio of the summed centred accuracies with its standard error and Fieller's interval, or for equal
    answers that of the difference; None if the base is at chance, or a benchmark has one question."""
    rows = [each.row for each in accuracies]
    if not rows or any(row.n < 2 for row in rows):
        return None
    checkpoint, base = (math.fsum(getattr(row, side) for row in rows) for side in ("centred", "centred_base"))
    scaled = [(1 / (1 - each.chance.value), each) for each in accuracies]
    parts = []
    for scale, each in scaled:
        assert each.pairs is not None, "the accuracies are paired"
        new, old, factor = each.pairs.checkpoint, each.pairs.base, (scale * each.pairs.factor) ** 2
        parts.append([factor * covariance_of_means(*sides) for sides in ((new, new), (new, old), (old, old))])
    v_own, v_both, v_base = (math.fsum(column) for column in zip(*parts, strict=True))
    if base <= ABOVE_CHANCE * math.sqrt(v_base):
        return None
    ratio = checkpoint / base
    members = [(scale / base, each.left(ratio, each.metric.drawn_from)) for scale, each in scaled]
    linear = combined(ratio, [(weight, member) for weight, member in members if member is not None])
    alike = math.hypot(*(scale * (each.row.change_stderr or 0) for scale, each in scaled))
    stderr = linear.stderr or alike / base
    errors = [own - 2 * ratio * both + ratio**2 * of_base for own, both, of_base in parts]
    dof = _satterthwaite(errors, [row.n - 1 for row in rows])
    if sum(row.n for row in rows) < MIN_ITEMS:
        return linear, stderr, None
    if not linear.stderr:
        return linear, stderr, confidence_interval(linear.value, Spread(stderr, dof))
    return linear, stderr, fieller_interval((checkpoint, base), (v_own, v_both, v_base), dof)


def _satterthwaite(variances: Sequence[float], dofs: Sequence[int]) -> float:
    """Degrees of freedom of a sum of variances: F. E. Satterthwaite, Biometrics Bulletin 2 (1946) 110–114."""
    total = math.fsum(variances)
    if not total > 0:
        return float(sum(dofs))
    return 1 / math.fsum((variance / total) ** 2 / dof for variance, dof in zip(variances, dofs, strict=True))
