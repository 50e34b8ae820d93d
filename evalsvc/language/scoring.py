"""One benchmark's answers, and its metrics and items: by lm-eval's own filters, metrics and aggregation, and ours.

Everything twice, over all ids and within the text ids, where the table has other ids too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

from lm_eval.api import metrics as lm_metrics
from lm_eval.api.instance import Instance

from evalsvc.language.benchmarks import Benchmark
from evalsvc.language.building import blamed, seeded
from evalsvc.language.estimates import LN2, Estimate, estimate, is_number
from evalsvc.language.hub import offline, quiet
from evalsvc.language.lm import Answer, Generation
from evalsvc.language.private import filter_responses
from evalsvc.language.questions import is_plain, right_options
from evalsvc.metrics.item_shares import Linear, finite_factor, linear_of
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.protocol import Direction, MetricValue, Protocol

SCORE = "score"
"""The unit of what lm-eval does not say the unit of."""

Response = str | float | tuple[float, bool]
"""A generated text; the log-probability of a text; that of a continuation, and whether greedy decoding gives it."""

Item = dict[str, object]
"""What is found for one document: `benchmark`, `index`, what each metric is made of, and `scores` or `text`."""


@dataclass(frozen=True)
class IdCounts:
    """How many ids a model that knows nothing chooses from."""

    all: int
    text: int
    image: int

    @classmethod
    def of(cls, layout: VocabularyLayout) -> IdCounts:
        return cls(layout.rows or 0, layout.text.size, layout.image.size if layout.image else 0)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        everything = Scope("", self.all)
        return (everything,) if self.all == self.text else (everything, Scope("_within", self.text))


@dataclass(frozen=True)
class Scope:
    """Over which ids probabilities are taken."""

    suffix: str
    """Of metrics' names and items' keys."""
    ids: int
    """How many there are."""

    @property
    def within(self) -> bool:
        return bool(self.suffix)

    def logprob(self, answer: Answer) -> float:
        return answer.score.logprob_within if self.within else answer.score.logprob

    def response(self, answer: Answer | Generation, request_type: str) -> Response:
        """As lm-eval's models give it."""
        if isinstance(answer, Generation):
            return answer.text_within if self.within else answer.text
        if request_type == "loglikelihood_rolling":
            return self.logprob(answer)
        return self.logprob(answer), self.greedy(answer)

    def greedy(self, answer: Answer) -> bool:
        return answer.score.greedy_within if self.within else answer.score.greedy


@dataclass
class ScoredBenchmark:
    """One benchmark's answers, and what becomes of them."""

    benchmark: Benchmark
    answers: Sequence[Sequence[Answer | Generation]]
    """To each instance: one, or several where its benchmark has random draws repeated."""
    ids: IdCounts
    protocol: Protocol
    left_out: list[str] = field(default_factory=list)
    _linear: dict[str, Linear | None] = field(default_factory=dict, init=False)

    @cached_property
    def _numbers(self) -> list[dict[str, float]]:
        """What metrics are made of, by key; one mapping for each document, which `metrics` fills."""
        return [{} for _ in self.benchmark.documents]

    @cached_property
    def metrics(self) -> list[MetricValue]:
        """All metrics."""
        found = [metric for scope in self.ids.scopes for metric in self.own[scope].values()]
        names = {metric.name for metric in found}
        return found + [metric for metric in self._added() if metric.name not in names]

    @cached_property
    def own(self) -> dict[Scope, dict[tuple[str, str], MetricValue]]:
        """lm-eval's metrics, by its name and filter."""
        with quiet(), offline(), seeded(), blamed(self.benchmark.name, "an answer"):
            return {scope: dict(self._of_scope(scope)) for scope in self.ids.scopes}

    @cached_property
    def items(self) -> list[Item]:
        """A row for each document."""
        _ = self.metrics  # whose computation fills the numbers
        return [
            {"benchmark": self.benchmark.name, "index": document.index, **self._shown(position), **numbers}
            for position, (document, numbers) in enumerate(zip(self.benchmark.documents, self._numbers, strict=True))
        ]

    def linear(self, metric: MetricValue) -> Linear | None:
        """Return one of the benchmark's metrics with what each document adds to it; None where it is made of none."""
        if metric.name not in self._linear:
            self._linear[metric.name] = linear_of(metric, self.items)
        return self._linear[metric.name]

    def documents_cut(self, part: str) -> int:
        """How many have a request that lost a part: `cut` of its context, `continuation_cut` of its continuation."""
        documents = ([one for many in self._of(position) for one in many] for position in range(len(self._numbers)))
        return sum(any(getattr(one, part, False) for one in answers) for answers in documents)

    def _of(self, position: int) -> Sequence[Sequence[Answer | Generation]]:
        """The answers to the requests of a document."""
        return self.answers[self.benchmark.documents[position].requests]

    def _shown(self, position: int) -> Item:
        several = len(self.ids.scopes) > 1
        found = [one for many in self._of(position) for one in many]
        scores = [one for one in found if isinstance(one, Answer)]
        texts = [one for one in found if isinstance(one, Generation)]
        shown: Item = {}
        if scores:
            shown["scores"] = [
                [number for scope in self.ids.scopes for number in (scope.logprob(one), int(scope.greedy(one)))]
                for one in scores
            ]
        if texts:
            shown["text"] = [one.text for one in texts]
            shown |= {"text_within": [one.text_within for one in texts]} if several else {}
        return shown

    # lm-eval's metrics

    def _of_scope(self, scope: Scope) -> Iterator[tuple[tuple[str, str], MetricValue]]:
        columns = self._columns(scope)
        aggregations, higher = self.benchmark.task.aggregation(), self.benchmark.task.higher_is_better()
        for (metric, filtered), column in columns.items():
            name = named(metric, filtered, scope.suffix)
            found = estimate(aggregations.get(metric, lm_metrics.mean), list(column.values()))
            if found is None:
                self.left_out.append(f"{self.benchmark.name}/{name}")
                continue
            keys = self._keep(name, found, column, scope)
            direction = _direction(higher.get(metric))
            value = self._value(name, found.ratio, unit(metric), direction, self._baseline(metric), keys)
            yield (metric, filtered), value

    def _columns(self, scope: Scope) -> dict[tuple[str, str], dict[int, object]]:
        """What lm-eval makes of each document, by metric and filter and by the document's position."""
        task = copy(self.benchmark.task)
        instances = [
            replace(instance, resps=self._responses(scope, instance, many), filtered_resps={})
            for instance, many in zip(self.benchmark.instances, self.answers, strict=True)
        ]
        filter_responses(task, instances)
        columns: dict[tuple[str, str], dict[int, object]] = {}
        for name in instances[0].filtered_resps:
            for position, document in enumerate(self.benchmark.documents):
                asked = sorted(instances[document.requests], key=lambda instance: instance.idx)
                found = task.process_results(asked[0].doc, [each.filtered_resps[name] for each in asked])
                for metric, value in found.items():
                    columns.setdefault((metric, name), {})[position] = value
        return columns

    def _responses(self, scope: Scope, instance: Instance, many: Sequence[Answer | Generation]) -> list[Response]:
        responses = [scope.response(one, instance.request_type) for one in many]
        return responses * (instance.repeats or 1) if len(many) == 1 else responses

    def _keep(self, name: str, found: Estimate, column: Mapping[int, object], scope: Scope) -> tuple[str, ...]:
        """Put what the metric is made of into the items, and return the keys that paired comparisons need."""
        name = name.replace("/", "_")  # a key with a slash is a share of a metric of several benchmarks
        keys: dict[str, tuple[str, ...]] = {
            "mean": (name,),
            "bits": (f"bits{scope.suffix}", "bytes"),
            "loss": (f"{name}_nll",),
            "weighted loss": (f"{name}_nll", f"{name}_weight"),
        }
        for position, numbers in zip(column, found.numbers, strict=False):
            pairs = zip(keys[found.kind], numbers, strict=True)
            self._numbers[position].update({key: _plain(each) for key, each in pairs if _is_finite(each)})
        return keys.get(found.kind, ())

    def _baseline(self, metric: str) -> float | None:
        accuracy = metric.startswith("acc") or (metric == "exact_match" and not self.benchmark.chance)
        return self.benchmark.chance if accuracy else None

    # what is added to them

    def _added(self) -> Iterator[MetricValue]:
        if self.benchmark.output_type in ("multiple_choice", "loglikelihood"):
            yield from self._of_right_answers()
        yield from self._image_mass()

    def _of_right_answers(self) -> Iterator[MetricValue]:
        found = [self._right(position) for position in range(len(self._numbers))]
        right = [golds for golds in found if golds is not None]
        if len(right) < len(found):
            return
        for scope in self.ids.scopes:
            if self.benchmark.output_type == "multiple_choice":
                yield self._acc_token(scope, right)
            yield self._bits_per_byte(scope, right)

    def _right(self, position: int) -> list[int] | None:
        """Which requests of a document are right answers; None where only the benchmark's own code knows."""
        if self.benchmark.output_type == "loglikelihood":
            return [0] if is_plain(self.benchmark.task) else None
        return right_options(self.benchmark.task, self._asked(position)[0].doc)

    def _asked(self, position: int) -> Sequence[Instance]:
        return self.benchmark.instances[self.benchmark.documents[position].requests]

    def _acc_token(self, scope: Scope, right: Sequence[list[int]]) -> MetricValue:
        """llm-foundry's accuracy: the option with the highest mean log-probability per token; of equals, the first."""
        name = f"acc_token{scope.suffix}"
        for position, golds in enumerate(right):
            options = self._options(position)
            means = [scope.logprob(one) / one.tokens for one in options]
            self._numbers[position][name] = float(max(range(len(means)), key=means.__getitem__) in golds)
        values = [numbers[name] for numbers in self._numbers]
        accuracy = Ratio(statistics.fmean(values), standard_error(values), len(values))
        return self._value(name, accuracy, "fraction", "higher", self.benchmark.chance, (name,))

    def _bits_per_byte(self, scope: Scope, right: Sequence[list[int]]) -> MetricValue:
        """Σ bits / Σ bytes of the right answers, of each with the delimiter before it, as the model is asked for it."""
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
        """The answers to a document's own requests, without those that lm-eval adds for `acc_mutual_info`."""
        found = [one for many in self._of(position) for one in many[:1] if isinstance(one, Answer)]
        if self.benchmark.output_type != "multiple_choice":
            return found
        return found[: len(self.benchmark.task.doc_to_choice(self._asked(position)[0].doc))]

    def _image_mass(self) -> Iterator[MetricValue]:
        """Probability of image ids where a token of a continuation is due; of right and wrong options alike."""
        if not self.ids.image:
            return
        for position, numbers in enumerate(self._numbers):
            found = [one for many in self._of(position) for one in many if isinstance(one, Answer)]
            if found:
                numbers["image_mass"] = sum(one.score.image_mass for one in found)
                numbers["tokens"] = sum(one.tokens for one in found)
        there = [numbers for numbers in self._numbers if "tokens" in numbers]
        keys = ("image_mass", "tokens")
        mass = ratio_of_sums(*([numbers[key] for numbers in there] for key in keys))
        if mass is not None:
            yield self._value("image_mass", mass, "probability", "none", self.ids.image / self.ids.all, keys)

    def _value(
        self,
        name: str,
        ratio: Ratio,
        unit: str,
        direction: Direction,
        baseline: float | None,
        keys: tuple[str, ...],
    ) -> MetricValue:
        """Return the metric with the error that a sample of the benchmark has."""
        name, factor = f"{self.benchmark.name}/{name}", finite_factor(len(self._numbers), self._drawn_from)
        stderr = None if ratio.stderr is None else factor * ratio.stderr
        found = (ratio.value, stderr, ratio.n, unit, direction, self.protocol, baseline, keys)
        return MetricValue(name, *found, drawn_from=self._drawn_from)

    @property
    def _drawn_from(self) -> int | None:
        return self.benchmark.total if self.benchmark.sampled else None


def named(metric: str, filtered: str, suffix: str) -> str:
    """As lm-eval writes it, but that the filter `none` is not worth a word."""
    return f"{metric}{suffix}" + ("" if filtered == "none" else f",{filtered}")


def _direction(higher_is_better: bool | None) -> Direction:
    return "none" if higher_is_better is None else "higher" if higher_is_better else "lower"


def unit(metric: str) -> str:
    if metric.startswith("acc") or metric in ("exact_match", "em"):
        return "fraction"
    if metric.endswith("perplexity"):
        return "perplexity"
    return "bits/byte" if metric == "bits_per_byte" else SCORE


def is_choice(benchmark: Benchmark) -> bool:
    """Whether an answer is one of several options, and which is right is known without the benchmark's own code."""
    return benchmark.output_type == "multiple_choice" and is_plain(benchmark.task)


def _plain(value: float) -> float:
    return value if type(value) is int else float(value)


def _is_finite(value: float) -> bool:
    return is_number(value) and math.isfinite(value)
