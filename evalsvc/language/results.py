"""From answers to metrics, for all benchmarks of a task, their groups, and the mean over benchmarks.

Two results can be compared in words: `flips` yields the documents on which only one of two models is right.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from lm_eval.api import metrics as lm_metrics
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance

from evalsvc.errors import InvalidSuite
from evalsvc.language.benchmarks import Benchmark, Loaded
from evalsvc.language.lm import Answer, Generation
from evalsvc.language.private import filter_names
from evalsvc.language.questions import DESIGN, ERROR, is_plain, question_text, right_options
from evalsvc.language.rows import RowForm
from evalsvc.language.scoring import SCORE, Item, Scope, ScoredBenchmark, named, scopes, unit
from evalsvc.metrics.item_numbers import Item as ReadItem
from evalsvc.metrics.item_numbers import Linear, combined, keep_shares, linear_of
from evalsvc.metrics.ratio import Ratio, mean_of
from evalsvc.spec.documents.text_reports import Flip, FlippedQuestion
from evalsvc.spec.layout import IdCounts
from evalsvc.spec.protocol import Direction, MetricValue, Protocol

ESTIMATOR = "lm-eval/1"
"""Version in the protocol of how answers become numbers. Another version is another series."""

ROUNDING = 1e-6
"""Largest relative change of a value by the rounding of shares; a larger difference means another number."""


@dataclass(frozen=True)
class Notes:
    documents: int
    contexts_cut: Mapping[str, int]
    """Number of documents with a context that lost its beginning, by benchmark."""
    continuations_cut: Mapping[str, int]
    """Number of documents with a continuation that lost its beginning, by benchmark."""
    metrics_left_out: Sequence[str]
    """Metrics whose aggregation gives no number."""
    rows: Mapping[str, RowForm]
    """Form of the rows in the local file, by benchmark, where several forms are possible."""

    def to_json(self) -> dict[str, object]:
        """Return the notes for the provenance, without `rows` if empty."""
        return {name: value for name, value in vars(self).items() if value or name != "rows"}


@dataclass(frozen=True)
class Results:
    metrics: list[MetricValue]
    items: list[Item]
    """One item per document: `benchmark`, `index`, its value of each metric and other inputs of metrics; `scores` of
    its requests as [logprob, greedy, logprob_within, greedy_within], or `text` and `text_within` of its generations."""
    notes: Notes


def results(
    loaded: Loaded, answers: Sequence[Sequence[Answer | Generation]], ids: IdCounts, protocol: Mapping[str, object]
) -> Results:
    """Return metrics and items from all answers, benchmark by benchmark; every protocol gets `protocol`."""
    scored: dict[str, ScoredBenchmark] = {}
    place = 0
    for benchmark in loaded.benchmarks:
        part = answers[place : place + len(benchmark.instances)]
        place += len(part)
        scored[benchmark.name] = ScoredBenchmark(benchmark, part, ids, Protocol(_protocol(benchmark, protocol)))
    metrics = [metric for scores in scored.values() for metric in scores.metrics]
    for group in loaded.groups:
        members = [scored[task.task_name] for task in group.get_all_tasks()]
        metrics += [metric for scope in scopes(ids) for metric in _group_metrics(group, members, scope)]
    items = [item for scores in scored.values() for item in scores.items]
    contexts, continuations = (
        {name: cut for name, scores in scored.items() if (cut := scores.documents_cut(part))}
        for part in ("cut", "continuation_cut")
    )
    left_out = [metric for scores in scored.values() for metric in scores.left_out]
    forms = {name: form for name, scores in scored.items() if (form := scores.benchmark.form) is not None}
    return Results(metrics, items, Notes(len(items), contexts, continuations, left_out, forms))


def plain_mean(task: str, wanted: Sequence[str], loaded: Loaded, evaluated: Results) -> list[MetricValue]:
    """Return `<task>/mean` over the benchmarks, of each one's first of the `wanted` metrics; also within text. A group
    that aggregates counts once. The documents' shares of the mean are put into the items of `evaluated`."""
    by_name = {metric.name: metric for metric in evaluated.metrics}
    parsed = [(metric, filtered or "none") for metric, _, filtered in (name.partition(",") for name in wanted)]
    means = []
    for suffix in ("", "_within"):
        chosen: list[MetricValue] = []
        for member in _members(loaded):
            names = (f"{member.name}/{named(metric, filtered, suffix)}" for metric, filtered in parsed)
            chosen += [by_name[name] for name in names if name in by_name][:1]
        means += _mean(f"{task}/mean{suffix}", chosen, evaluated.items)
    return means


def require_mean(wanted: Sequence[str], loaded: Loaded) -> None:
    for member in _members(loaded):
        known = _metric_names(member)
        if not known & set(wanted):
            raise InvalidSuite(
                f"`mean` names {', '.join(wanted)}; {member.name!r} has none of these, but {', '.join(sorted(known))}; "
                "add one of them, or remove the benchmark"
            )


def _members(loaded: Loaded) -> list[Benchmark | Group]:
    groups: list[Group] = []
    covered: set[str] = set()
    for group in loaded.groups:  # outer ones come first
        names = {task.task_name for task in group.get_all_tasks()}
        if group.has_aggregation and not names & covered:
            groups.append(group)
            covered |= names
    return [*groups, *(benchmark for benchmark in loaded.benchmarks if benchmark.name not in covered)]


def _metric_names(member: Benchmark | Group) -> set[str]:
    if isinstance(member, Group):
        return {config.metric for config in member.aggregate_metric_list or []}
    task = member.task
    filters = filter_names(task)
    counted = [metric for metric, function in task.aggregation().items() if function is not lm_metrics.bypass_agg]
    names = {named(metric, filtered, "") for metric in counted for filtered in filters}
    has_options = member.output_type == "multiple_choice" and is_plain(task)
    return names | ({"acc_token"} if has_options else set())


def _mean(name: str, metrics: Sequence[MetricValue], items: Sequence[Item]) -> list[MetricValue]:
    mean = mean_of([Ratio(metric.value, metric.stderr, metric.n) for metric in metrics])
    if mean is None:
        return []
    content = {"task": "language", "estimator": ESTIMATOR, "mean": {each.name: each.protocol.id for each in metrics}}
    units, directions = {each.unit for each in metrics}, {each.direction for each in metrics}
    chances = [each.baseline for each in metrics if each.baseline is not None]
    direction: Direction = directions.pop() if len(directions) == 1 else "none"
    members = [(1 / len(metrics), linear_of(metric, items)) for metric in metrics]
    unit_of_all = units.pop() if len(units) == 1 else SCORE
    baseline = statistics.fmean(chances) if len(chances) == len(metrics) else None
    keys = () if direction == "none" else _shared(name, mean.value, members, items)
    return [mean.as_metric(name, unit_of_all, direction, Protocol(content), baseline, keys)]


def _shared(
    name: str, value: float, members: Sequence[tuple[float, Linear | None]], items: Iterable[Item]
) -> tuple[str, ...]:
    """Put each document's share of a weighted sum into the items; none if `value`, maybe lm-eval's, is not the sum."""
    known = [(weight, member) for weight, member in members if member is not None]
    total = math.fsum(weight * member.value for weight, member in known)
    if len(known) < len(members) or not math.isclose(total, value, rel_tol=ROUNDING, abs_tol=ROUNDING):
        return ()
    return keep_shares(name, combined(value, known), items)


def _protocol(benchmark: Benchmark, common: Mapping[str, object]) -> dict[str, object]:
    indices = [document.index for document in benchmark.documents]
    first, sampled = indices == list(range(len(indices))), benchmark.sampled
    drawn = {"documents": len(indices), "of": benchmark.total, "design": DESIGN, "error": ERROR}
    return {
        **common,
        "task": "language",
        "estimator": ESTIMATOR,
        "lm_eval": version("lm_eval"),
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "digest": benchmark.digest,
        "num_fewshot": benchmark.num_fewshot,
        # A limit that excludes no document is no limit.
        "limit": len(indices) if first and len(indices) < benchmark.total and not sampled else None,
        "samples": None if first or sampled else indices,
        **({"sample": drawn} if sampled else {}),
    }


def _group_metrics(group: Group, members: Sequence[ScoredBenchmark], scope: Scope) -> Iterator[MetricValue]:
    if not group.has_aggregation:
        return
    scored = {member.benchmark.name: member for member in members}
    items = [item for member in members for item in member.items]
    by_member = {name: member.by_scope[scope] for name, member in scored.items()}
    sizes = {member.benchmark.name: member.benchmark.total for member in members if member.benchmark.sampled}
    by_size = {each.metric: each.weight_by_size for each in group.aggregate_metric_list or []}
    values, chances = (_lm_eval_table(by_member, sizes, attribute) for attribute in ("value", "baseline"))
    aggregated, chance = group.aggregate(values), group.aggregate(chances)
    ids = {member.benchmark.name: member.protocol.id for member in members}
    for key, n in aggregated.get("sample_count", {}).items():
        metric, _, filtered = key.partition(",")
        asked = metric, filtered
        members_have = {name: values_of[asked] for name, values_of in by_member.items() if asked in values_of}
        of = list(members_have.values())
        stderr, directions = aggregated[f"{metric}_stderr,{filtered}"], {each.direction for each in of}
        if sizes:
            n = sum(each.n for each in of)
            if by_size[metric]:
                weighed = {each: sizes.get(each, value.n) for each, value in members_have.items()}
                errors = [
                    value.stderr * weighed[each] for each, value in members_have.items() if value.stderr is not None
                ]
                stderr = math.hypot(*errors) / sum(weighed.values()) if len(errors) == len(of) else "N/A"
        known = all(each.baseline is not None for each in of)
        own = ids | {name: value.protocol.id for name, value in members_have.items()}
        how = [[each.metric, each.weight_by_size, each.filter_list] for each in group.aggregate_metric_list or []]
        protocol = Protocol(
            {"task": "language", "estimator": ESTIMATOR, "group": group.name, "aggregate": how, "members": own}
        )
        name, value = f"{group.name}/{named(metric, filtered, scope.suffix)}", float(aggregated[key])
        direction = directions.pop() if len(directions) == 1 else "none"
        lengths = {each: float(values[each]["sample_len"]) if by_size[metric] else 1.0 for each in members_have}
        total = math.fsum(lengths.values())
        parts = [
            (length / total if total else 0.0, scored[each].linear(members_have[each]))
            for each, length in lengths.items()
        ]
        keys = () if direction == "none" else _shared(name, value, parts, items)
        aggregate = Ratio(value, None if stderr == "N/A" else float(stderr), int(n))
        baseline = float(chance[key]) if known else None
        yield aggregate.as_metric(name, unit(metric), direction, protocol, baseline, keys)


def _lm_eval_table(
    by_member: Mapping[str, Mapping[tuple[str, str], MetricValue]], sizes: Mapping[str, int], attribute: str
) -> dict[str, dict[str, float | str]]:
    """Return the metrics as lm-eval gives them to its groups; a sampled member has the weight of its whole data."""
    table: dict[str, dict[str, float | str]] = {}
    for name, metrics in by_member.items():
        row = table[name] = {"sample_len": sizes.get(name, max((metric.n for metric in metrics.values()), default=0))}
        for (metric, filtered), value in metrics.items():
            if (number := getattr(value, attribute)) is not None:
                row[f"{metric},{filtered}"] = number
                row[f"{metric}_stderr,{filtered}"] = "N/A" if value.stderr is None else value.stderr
    return table


def flips(
    benchmark: Benchmark, key: str, base: Sequence[ReadItem], checkpoint: Sequence[ReadItem]
) -> Iterator[FlippedQuestion]:
    """Yield the documents whose value under `key` or `key_within` differs between two results, in the data's order."""
    before, after = (
        {item["index"]: item for item in items if item["benchmark"] == benchmark.name} for items in (base, checkpoint)
    )
    for document in benchmark.documents:
        old, new = before.get(document.index), after.get(document.index)
        if old is None or new is None:
            continue
        kinds = _flip(old, new, key), _flip(old, new, f"{key}_within")
        if any(kinds):
            asked = benchmark.instances[document.requests]
            options = None
            if benchmark.output_type == "multiple_choice":
                choices = getattr(benchmark.task, "doc_to_choice", None)
                texts = choices(asked[0].doc) if choices else [each.args[1].strip() for each in asked]
                options = [str(text) for text in texts]
            answers = [_answer(asked, options, item, within) for within in (False, True) for item in (old, new)]
            sides = ("base", "checkpoint", "base_within", "checkpoint_within")
            yield FlippedQuestion(
                index=document.index,
                flip=kinds[0],
                flip_within=kinds[1],
                question=_readable(question_text(benchmark.task, asked[0].doc)),
                options=None if options is None else [_readable(option) for option in options],
                right=[_readable(answer) for answer in _right(benchmark, asked, options)],
                **{side: _readable(answer) for side, answer in zip(sides, answers, strict=True)},
            )


def _readable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # a few datasets contain half characters


def _flip(old: ReadItem, new: ReadItem, key: str) -> Flip | None:
    # A model with only text rows has no separate numbers within text.
    before, after = (item.get(key, item.get(key.replace("_within", ""))) for item in (old, new))
    if before is None or after is None or before == after:
        return None
    return "lost" if after < before else "gained"


def _right(benchmark: Benchmark, asked: Sequence[Instance], options: Sequence[str] | None) -> list[str]:
    task, row = benchmark.task, asked[0].doc
    if options is not None:
        return [options[gold] for gold in right_options(task, row) or []]
    if benchmark.output_type == "loglikelihood":
        return [asked[0].args[1].strip()]
    target = task.doc_to_target(row)
    return [str(each) for each in (target if isinstance(target, list) else [target])]


def _answer(asked: Sequence[Instance], options: Sequence[str] | None, item: ReadItem, within: bool) -> str:
    if "scores" not in item:
        texts = item.get("text_within", item["text"]) if within else item["text"]
        return str(texts[0]).strip()
    # A row of scores has logprob and greedy over all ids, followed by both within text for tables with other rows.
    scores = [row[-2:] if within else row[:2] for row in item["scores"]]
    if options is not None:
        chosen = [logprob for logprob, _ in scores[: len(options)]]
        return options[chosen.index(max(chosen))]
    logprob, greedy = scores[0]
    return (
        asked[0].args[1].strip() if greedy else f"other words (the right ones have probability {math.exp(logprob):.2g})"
    )
