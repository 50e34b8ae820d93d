"""Answers of one benchmark, with metrics and items by lm-eval's filters, metrics and aggregation, and by evalsvc's."""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from lm_eval.api import metrics as lm_metrics
from lm_eval.api.instance import Instance

from evalsvc.language.benchmarks import Benchmark
from evalsvc.language.building import blamed, seeded
from evalsvc.language.hub import offline, quiet
from evalsvc.language.lm import Answer, Generation
from evalsvc.language.private import filter_responses
from evalsvc.language.questions import is_plain, right_options
from evalsvc.metrics.item_numbers import Linear, finite_factor, linear_of
from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.metrics.shares import share_stderr, standard_error
from evalsvc.spec.layout import IdCounts
from evalsvc.spec.protocol import Direction, MetricValue, Protocol

SCORE = "score"
"""Unit of metrics for which lm-eval names no unit."""

DIRECTIONS: Mapping[bool | None, Direction] = {None: "none", True: "higher", False: "lower"}
"""Directions by lm-eval's `higher_is_better`."""

Response = str | float | tuple[float, bool]
"""Generated text; log-probability of a text; or that of a continuation with whether greedy decoding gives it."""

Item = dict[str, object]
"""Record of one document: `benchmark`, `index`, the inputs of each metric, and `scores` or `text`."""

RESAMPLES = 200
"""Number of bootstrap samples for aggregations without a closed form; the error is then known to 5 %."""

LEAST = 20
"""Number of documents that a bootstrap needs. An F1 of 8 documents has an interval that covers .82 instead of .95."""

OTHER_ESTIMATOR = "lm-eval/2"
"""Version in the protocol of metrics of the kind `other`; see `results.ESTIMATOR` for the other kinds."""

LN2 = math.log(2)

Aggregation = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Scope:
    """Ids over which probabilities are taken."""

    suffix: str
    """Suffix of metrics' names and items' keys."""
    ids: int

    @property
    def within(self) -> bool:
        return bool(self.suffix)

    def logprob(self, answer: Answer) -> float:
        return answer.score.logprob_within if self.within else answer.score.logprob

    def response(self, answer: Answer | Generation, request_type: str) -> Response:
        if isinstance(answer, Generation):
            return answer.text_within if self.within else answer.text
        if request_type == "loglikelihood_rolling":
            return self.logprob(answer)
        return self.logprob(answer), self.greedy(answer)

    def greedy(self, answer: Answer) -> bool:
        return answer.score.greedy_within if self.within else answer.score.greedy


def scopes(ids: IdCounts) -> tuple[Scope, ...]:
    everything = Scope("", ids.all)
    return (everything,) if ids.all == ids.text else (everything, Scope("_within", ids.text))


@dataclass
class ScoredBenchmark:
    """Answers of one benchmark, with the metrics and items from them."""

    benchmark: Benchmark
    answers: Sequence[Sequence[Answer | Generation]]
    """Answers to each instance: one, or several where the benchmark repeats random draws."""
    ids: IdCounts
    protocol: Protocol
    left_out: list[str] = field(default_factory=list)
    _linear: dict[str, Linear | None] = field(default_factory=dict, init=False)

    @cached_property
    def _numbers(self) -> list[dict[str, float]]:
        return [{} for _ in self.benchmark.documents]

    @cached_property
    def metrics(self) -> list[MetricValue]:
        from_lm_eval = [metric for scope in scopes(self.ids) for metric in self.by_scope[scope].values()]
        names = {metric.name for metric in from_lm_eval}
        return from_lm_eval + [metric for metric in self._added() if metric.name not in names]

    @cached_property
    def by_scope(self) -> dict[Scope, dict[tuple[str, str], MetricValue]]:
        """lm-eval's metrics by scope, and by lm-eval's name and filter."""
        with quiet(), offline(), seeded(), blamed(self.benchmark.name, "an answer"):
            return {scope: dict(self._of_scope(scope)) for scope in scopes(self.ids)}

    @cached_property
    def items(self) -> list[Item]:
        _ = self.metrics  # fills the numbers
        return [
            {"benchmark": self.benchmark.name, "index": document.index, **self._shown(position), **numbers}
            for position, (document, numbers) in enumerate(zip(self.benchmark.documents, self._numbers, strict=True))
        ]

    def linear(self, metric: MetricValue) -> Linear | None:
        """Return a metric of the benchmark with each document's part; None for a metric without parts."""
        if metric.name not in self._linear:
            self._linear[metric.name] = linear_of(metric, self.items)
        return self._linear[metric.name]

    def documents_cut(self, part: str) -> int:
        """Return the number of documents with a cut part: `cut` is the context, `continuation_cut` the continuation."""
        positions = range(len(self._numbers))
        return sum(any(getattr(answer, part, False) for answer in self._of(position)) for position in positions)

    def _of(self, position: int) -> list[Answer | Generation]:
        return [answer for many in self.answers[self.benchmark.documents[position].requests] for answer in many]

    def _shown(self, position: int) -> Item:
        scores = [
            [number for scope in scopes(self.ids) for number in (scope.logprob(answer), int(scope.greedy(answer)))]
            for answer in self._of(position)
            if isinstance(answer, Answer)
        ]
        texts = [answer for answer in self._of(position) if isinstance(answer, Generation)]
        shown: Item = {"scores": scores} if scores else {}
        for scope in scopes(self.ids) if texts else ():
            shown[f"text{scope.suffix}"] = [scope.response(answer, "generate_until") for answer in texts]
        return shown

    def _of_scope(self, scope: Scope) -> Iterator[tuple[tuple[str, str], MetricValue]]:
        aggregations, higher = self.benchmark.task.aggregation(), self.benchmark.task.higher_is_better()
        for (metric, filtered), column in self._columns(scope).items():
            name = named(metric, filtered, scope.suffix)
            aggregated = estimate(aggregations.get(metric, lm_metrics.mean), list(column.values()))
            if aggregated is None:
                self.left_out.append(f"{self.benchmark.name}/{name}")
                continue
            keys = self._keep(name, aggregated, column, scope)
            accuracy = metric.startswith("acc") or (metric == "exact_match" and not self.benchmark.chance)
            baseline, direction = self.benchmark.chance if accuracy else None, DIRECTIONS[higher.get(metric)]
            yield (metric, filtered), self._value(name, aggregated.ratio, unit(metric), direction, baseline, keys)

    def _columns(self, scope: Scope) -> dict[tuple[str, str], dict[int, object]]:
        task = copy(self.benchmark.task)
        instances: list[Instance] = []
        for instance, many in zip(self.benchmark.instances, self.answers, strict=True):
            responses = [scope.response(answer, instance.request_type) for answer in many]
            responses *= (instance.repeats or 1) if len(many) == 1 else 1
            instances.append(replace(instance, resps=responses, filtered_resps={}))
        filter_responses(task, instances)
        columns: dict[tuple[str, str], dict[int, object]] = {}
        for name in instances[0].filtered_resps:
            for position, document in enumerate(self.benchmark.documents):
                asked = sorted(instances[document.requests], key=lambda instance: instance.idx)
                values = task.process_results(asked[0].doc, [each.filtered_resps[name] for each in asked])
                for metric, value in values.items():
                    columns.setdefault((metric, name), {})[position] = value
        return columns

    def _keep(self, name: str, aggregated: Averaged, column: Mapping[int, object], scope: Scope) -> tuple[str, ...]:
        name = name.replace("/", "_")  # a key with a slash is a share of a metric of several benchmarks
        keys: dict[str, tuple[str, ...]] = {
            "mean": (name,),
            "bits": (f"bits{scope.suffix}", "bytes"),
            "loss": (f"{name}_nll",),
            "weighted loss": (f"{name}_nll", f"{name}_weight"),
        }
        for position, numbers in zip(column, aggregated.numbers, strict=False):
            for key, value in zip(keys[aggregated.kind], numbers, strict=True):
                if is_number(value) and math.isfinite(value):
                    self._numbers[position][key] = value if type(value) is int else float(value)
        return keys.get(aggregated.kind, ())

    def _added(self) -> Iterator[MetricValue]:
        task, kind = self.benchmark.task, self.benchmark.output_type
        if kind in ("multiple_choice", "loglikelihood") and is_plain(task):
            positions = range(len(self._numbers))
            golds = [
                [0] if kind == "loglikelihood" else right_options(task, self._asked(position)[0].doc) or []
                for position in positions
            ]
            for scope in scopes(self.ids):
                if kind == "multiple_choice":
                    yield self._acc_token(scope, golds)
                yield self._bits_per_byte(scope, golds)
        yield from self._image_mass()

    def _asked(self, position: int) -> Sequence[Instance]:
        return self.benchmark.instances[self.benchmark.documents[position].requests]

    def _acc_token(self, scope: Scope, right: Sequence[list[int]]) -> MetricValue:
        name = f"acc_token{scope.suffix}"
        for position, golds in enumerate(right):
            means = [scope.logprob(answer) / answer.tokens for answer in self._options(position)]
            self._numbers[position][name] = float(max(range(len(means)), key=means.__getitem__) in golds)
        values = [numbers[name] for numbers in self._numbers]
        accuracy = Ratio(statistics.fmean(values), standard_error(values), len(values))
        return self._value(name, accuracy, "fraction", "higher", self.benchmark.chance, (name,))

    def _bits_per_byte(self, scope: Scope, right: Sequence[list[int]]) -> MetricValue:
        bits, bytes_, tokens = f"bits{scope.suffix}", "bytes", 0
        for position, golds in enumerate(right):
            answer = self._options(position)[golds[0]]
            continuation = self._asked(position)[golds[0]].args[1]
            self._numbers[position] |= {bits: -scope.logprob(answer) / LN2, bytes_: len(continuation.encode())}
            tokens += answer.tokens
        sums, counts = ([numbers[key] for numbers in self._numbers] for key in (bits, bytes_))
        ratio = ratio_of_sums(sums, counts)
        assert ratio is not None, "a continuation has a byte at least"
        baseline = tokens * math.log2(scope.ids) / sum(counts)
        return self._value(f"bits_per_byte{scope.suffix}", ratio, "bits/byte", "lower", baseline, (bits, bytes_))

    def _options(self, position: int) -> list[Answer]:
        """Return the answers to a document's options, without the requests that lm-eval adds for `acc_mutual_info`."""
        asked = self.benchmark.documents[position].requests
        answers = [answer for many in self.answers[asked] for answer in many[:1] if isinstance(answer, Answer)]
        if self.benchmark.output_type != "multiple_choice":
            return answers
        return answers[: len(self.benchmark.task.doc_to_choice(self._asked(position)[0].doc))]

    def _image_mass(self) -> Iterator[MetricValue]:
        if not self.ids.image:
            return
        for position, numbers in enumerate(self._numbers):
            answers = [answer for answer in self._of(position) if isinstance(answer, Answer)]
            mass = sum(answer.score.image_mass for answer in answers)
            if answers and math.isfinite(mass):  # NaN is the mass of an engine that does not compute it
                numbers["image_mass"] = mass
                numbers["tokens"] = sum(answer.tokens for answer in answers)
        scored = [numbers for numbers in self._numbers if "tokens" in numbers]
        keys = ("image_mass", "tokens")
        ratio = ratio_of_sums(*([numbers[key] for numbers in scored] for key in keys))
        if ratio is not None:
            yield self._value("image_mass", ratio, "probability", "none", self.ids.image / self.ids.all, keys)

    def _value(
        self, name: str, ratio: Ratio, unit: str, direction: Direction, baseline: float | None, keys: tuple[str, ...]
    ) -> MetricValue:
        drawn_from = self.benchmark.total if self.benchmark.sampled else None
        factor = finite_factor(len(self._numbers), drawn_from)
        stderr = None if ratio.stderr is None else factor * ratio.stderr
        protocol = self.protocol if keys else Protocol({**self.protocol.content, "estimator": OTHER_ESTIMATOR})
        fields = (ratio.value, stderr, ratio.n, unit, direction, protocol, baseline, keys, ratio.groups)
        return MetricValue(f"{self.benchmark.name}/{name}", *fields, drawn_from=drawn_from)


def named(metric: str, filtered: str, suffix: str) -> str:
    """Return lm-eval's name of a metric, without the filter `none`."""
    return f"{metric}{suffix}" + ("" if filtered == "none" else f",{filtered}")


def unit(metric: str) -> str:
    if metric.startswith("acc") or metric in ("exact_match", "em"):
        return "fraction"
    if metric.endswith("perplexity"):
        return "perplexity"
    return "bits/byte" if metric == "bits_per_byte" else SCORE


@dataclass(frozen=True)
class Averaged:
    ratio: Ratio
    kind: Literal["mean", "bits", "loss", "weighted loss", "other"]
    """`mean` of the documents' numbers; `bits`, a ratio of two sums in bits; e to a mean `loss`, or to a `weighted
    loss`, in nats; or none of these."""
    numbers: Sequence[tuple[float, ...]] = ()
    """Numbers of each document: its value, NaN without a value; or a sum and a weight. Empty for the kind `other`."""


def estimate(aggregation: Aggregation, values: Sequence[Any]) -> Averaged | None:
    """Return lm-eval's aggregation of the documents' values, with its error; None where the result is no number.
    Perplexities use evalsvc's formulas, equal to lm-eval's, since e to the loss of a very bad model overflows."""
    if aggregation is lm_metrics.bypass_agg or not values:
        return None
    if aggregation is lm_metrics.perplexity:
        return _of_losses([(-value,) for value in values], "loss")
    if aggregation is lm_metrics.weighted_perplexity:
        return _of_losses([(-total, count) for total, count in values], "weighted loss")
    if aggregation is lm_metrics.bits_per_byte:
        return _of_losses([(-total / LN2, count) for total, count in values], "bits")
    if aggregation is lm_metrics.brier_score:
        values, aggregation = [lm_metrics.brier_score([value]) for value in values], lm_metrics.mean
    numbers = [(value,) for value in values]
    if aggregation is lm_metrics.nanmean:
        values, aggregation = [value for value in values if not math.isnan(value)], lm_metrics.mean
        if not values:
            return None
    value = aggregation(values)
    if not is_number(value):
        return None
    if aggregation is lm_metrics.mean:
        error = standard_error([float(each) for each in values])
        return Averaged(Ratio(float(value), error, len(values)), "mean", numbers)
    if aggregation is lm_metrics.acc_all:  # of questions, each of which has several documents
        questions = len({tuple(document["idx"][key] for key in ("paragraph", "question")) for _, document in values})
        error = share_stderr(round(value * questions), questions)
        return Averaged(Ratio(float(value), error, len(values), questions), "other")
    return Averaged(Ratio(float(value), _bootstrap(aggregation, values), len(values)), "other")


def is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


def _of_losses(numbers: Sequence[tuple[float, ...]], kind: Literal["bits", "loss", "weighted loss"]) -> Averaged | None:
    weights = [1] * len(numbers) if kind == "loss" else [weight for _, weight in numbers]
    loss = ratio_of_sums([loss for loss, *_ in numbers], weights)
    if loss is None:
        return None
    return Averaged(loss if kind == "bits" else perplexity(loss), kind, numbers)


def _bootstrap(aggregation: Aggregation, values: Sequence[Any]) -> float | None:
    """Return the deviation of the value over seeded resamples; None below `LEAST`, or where none has or moves it."""
    if len(values) < LEAST:
        return None
    chance = random.Random(0)
    resampled = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may lack a class
        for _ in range(RESAMPLES):
            try:
                resampled.append(float(aggregation(chance.choices(values, k=len(values)))))
            except (ValueError, ArithmeticError):
                return None
    return (statistics.stdev(resampled) or None) if all(map(math.isfinite, resampled)) else None
