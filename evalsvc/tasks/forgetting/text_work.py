"""The texts of the forgetting task: the same text for a checkpoint and its base. Needs no lm-eval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from pydantic import JsonValue

from evalsvc.data.tokens import Record, TokenData, read_tokens
from evalsvc.errors import DataChanged, InvalidData, InvalidRequest
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.value_interval import with_intervals
from evalsvc.spec.documents.text_reports import (
    NATS,
    FlippedQuestions,
    ForgettingReport,
    ForgettingRow,
    LossParts,
    ReportMetric,
)
from evalsvc.spec.layout import IdCounts
from evalsvc.spec.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.forgetting.rows import Pairs, corrected, parts_of, row_of
from evalsvc.tasks.forgetting.spec import Forgetting
from evalsvc.tasks.forgetting.text_comparison import ComparedText, Comparison, Passage, Side, compare, passages
from evalsvc.tasks.result_warnings import AT_FIRST, cut_inputs, worse_than_guessing
from evalsvc.tasks.sequence_groups import groups_of_records
from evalsvc.tasks.task import Context, Plan, Shard, TaskResult
from evalsvc.tasks.text_work import TextWork, base_rotary

ESTIMATOR = "forgetting/1"
"""Version of the computation of differences, in the protocol. Another version is another series."""

TOKENS_PER_SHARD = 1 << 17
"""Number of tokens of text in a shard; two models read each."""

SHOWN_OF_TEXT = ("kl", "kl_within", "top1_agreement", "image_mass", "icl_loss", "icl_loss_change")
"""Metrics of the text that the page shows in addition to the losses."""

TEXT = "text"

GROUP = "text_group"
"""Key of an item that holds the group of a text: the index of the group's first text."""


@dataclass(frozen=True)
class Base:
    """The run's base when the evaluation was planned."""

    sha256: str
    layout: str
    rotary: Mapping[str, str]

    def protocol(self) -> dict[str, object]:
        return {"base": self.sha256, "base_layout": self.layout, **self.rotary}


@dataclass(frozen=True)
class TextShard(Shard):
    start: int
    stop: int
    digest: str
    max_length: int
    ids: IdCounts
    within: bool
    """Whether one of the models has other ids than text, so that losses within text are numbers of their own."""
    groups: Sequence[int] | None
    """Group of each text, by the index of its first member; None if every text is independent."""
    protocol: Mapping[str, JsonValue]
    base: Base
    is_base: bool
    """Whether the checkpoint is its own base, whose results are then reused."""
    part: Literal["text"] = "text"


class TextForgettingWork(TextWork[Forgetting, TextShard, Comparison]):
    def plan(self, context: Context) -> Plan[TextShard]:
        base = self.base(context)
        self.require_same_text(context, base, tokenized=False)
        return Plan([*self.plan_text(context, base, is_same(context, base))], "documents")

    def run(self, context: Context, shard: TextShard) -> Comparison:
        return self.compare_text(context, shard)

    def merge(self, context: Context, shards: Sequence[TextShard], outputs: Sequence[Comparison]) -> TaskResult:
        report = ReportParts()
        result = self.merge_text(context, shards, outputs, report)
        return combined(context, self.task.name, shards[0].base, report, [result])

    def base(self, context: Context) -> Context:
        if context.base is None:
            raise InvalidRequest(
                f"task {self.task.name!r} compares a checkpoint with the run's base, but the run has none; post the "
                "run's step 0, set a base with PUT /v1/runs/{run}/base, or with `evalsvc run --base`"
            )
        return context.base

    def planned_base(self, context: Context, planned: Base) -> Context:
        base = self.base(context)
        if base.digest() != planned.sha256:
            raise DataChanged.since_planned(f"the base, {base.checkpoint.label},")
        return base

    def merge_text(
        self, context: Context, shards: Sequence[TextShard], outputs: Sequence[Comparison], report: ReportParts
    ) -> TaskResult:
        """Return the text's metrics and items, and add its rows to `report`."""
        task, shard = self.task.name, shards[0]
        texts = [text for output in outputs for text in output.texts]
        groups = None if shard.groups is None else [group for each in shards for group in each.groups or ()]
        numbers = [_numbers(text, None if groups is None else groups[index]) for index, text in enumerate(texts)]
        items: list[dict[str, object]] = [{"benchmark": task, "index": n, **row} for n, row in enumerate(numbers)]
        lost, tokens = sum(output.cut for output in outputs), sum(text.tokens for text in texts)
        notes: dict[str, object] = {"texts": len(texts), "texts_cut": lost, "tokens": tokens}
        if all(text.late is None for text in texts):
            notes["icl_loss"] = "no text has predicted tokens at both places {} and {}".format(*self.task.icl_positions)
        measured = [index for index, text in enumerate(texts) if text.tokens]
        sums, weights = [texts[index].sums for index in measured], [texts[index].tokens for index in measured]
        common = weights, measured, None if groups is None else [groups[index] for index in measured]
        everything = Pairs([text.base_nll for text in sums], [text.nll for text in sums], *common)
        rows = [row_of(TEXT, "loss", "all", NATS, everything)]
        if shard.within:
            within = Pairs([text.base_within for text in sums], [text.within for text in sums], *common)
            rows.append(row_of(TEXT, "loss", "text", NATS, within))
            mass = sum(text.sums.image_mass for text in texts) / sum(weights)
            report.parts.append(parts_of(TEXT, NATS, everything, within, (None, mass)))
        report.rows += corrected(rows)
        own_metrics = list(_metrics(task, self.task.icl_positions, shard, numbers))
        metrics = with_intervals(own_metrics, self.task.kind, items)
        report.of_text += [metric for metric in metrics if metric.name.rpartition("/")[2] in SHOWN_OF_TEXT]
        remedy = "raise `max_length` if the model allows it, or use shorter texts"
        # If the table has text only, its loss within text is the loss.
        loss = f"{task}/loss_within" if shard.within else f"{task}/loss"
        warnings = [
            *worse_than_guessing(metrics, [loss] if context.is_first else [], AT_FIRST),
            *cut_inputs(f"{task}/loss", "texts", lost, len(items), remedy),
        ]
        return TaskResult(metrics, items, notes, warnings=warnings)

    def plan_text(self, context: Context, base: Context, is_base: bool) -> Iterator[TextShard]:
        if self.task.text is None:
            return
        layout, max_length = context.layout(), self.task.max_length or context.model_config().seq_len
        data, records = self._read(context)
        text_passages = self._passages(context, base, data, records, max_length)
        groups = groups_of_records(records)
        tokens = sum(len(passage.inputs[0]) for passage in text_passages)
        if not tokens:
            raise InvalidData(f"{data.path}: no text has two tokens, and the first is not predicted; use longer texts")
        count = min(self.task.text_shards or math.ceil(tokens / TOKENS_PER_SHARD), len(text_passages))
        bounds = [len(text_passages) * index // count for index in range(count + 1)]
        within = any(ids.all != ids.text for ids in map(IdCounts.of, (layout, base.layout())))
        protocol = self._text_protocol(context, base, data, max_length)
        # The standard error then depends on the number of groups, not of texts.
        protocol |= {} if groups is None else {"groups": len(set(groups))}
        for start, stop in pairwise(bounds):
            yield TextShard(
                units=stop - start,
                start=start,
                stop=stop,
                digest=data.digest,
                max_length=max_length,
                ids=IdCounts.of(layout, context.model_config().heads_apart),
                within=within,
                groups=None if groups is None else groups[start:stop],
                protocol=protocol,
                base=planned(base),
                is_base=is_base,
            )

    def _read(self, context: Context) -> tuple[TokenData, Sequence[Record]]:
        assert self.task.text is not None, "there is no part of text without it"
        text = context.layout().text
        tokenizer, bos = self.tokenizer_path(context, text), text.beginning(self.task.bos)
        data = read_tokens(context.dataset(self.task.text), tokenizer, bos, context.readable)
        return data, data.texts(self.task.text_limit, "text")

    def _passages(
        self, context: Context, base: Context, data: TokenData, records: Sequence[Record], max_length: int
    ) -> list[Passage]:
        names, texts = [f"{data.path}, {record.where}" for record in records], [r.text_ids or () for r in records]
        in_template = self.task.text_prefix == "layout"
        return passages(context.layout(), base.layout(), texts, names, max_length, in_template)

    def _text_protocol(self, context: Context, base: Context, data: TokenData, max_length: int) -> dict[str, JsonValue]:
        layout, other = context.layout().digest, base.layout().digest
        limit = self.task.text_limit
        tokenized: dict[str, JsonValue] = {"tokenizer": data.tokenizer_digest, "bos": data.bos}
        return {
            "task": self.task.kind,
            "estimator": ESTIMATOR,
            "data": data.digest,
            # A limit that excludes nothing is recorded as None.
            "limit": limit if limit and limit < len(data.records) else None,
            "max_length": max_length,
            "text_prefix": "layout" if self.task.text_prefix == "layout" else data.bos,
            "layout": layout,
            # The targets depend on both layouts.
            **({} if layout == other else {"base_layout": other}),
            **({} if data.tokenizer_digest is None else tokenized),
            **self.protocol(context.rotary()),
        }

    def compare_text(self, context: Context, shard: TextShard) -> Comparison:
        base = self.planned_base(context, shard.base)
        data, records = self._read(context)
        if data.digest != shard.digest:
            raise DataChanged.since_planned(data.path)
        text_passages = self._passages(context, base, data, records[shard.start : shard.stop], shard.max_length)
        models = (context,) if shard.is_base else (context, base)
        sides = [Side(each.checkpoint.label, self.model(each), each.layout(), each.device) for each in models]
        budget, report = context.batch_tokens, context.report
        return compare(sides[0], sides[-1], text_passages, self.task.icl_positions, budget, report)


def planned(base: Context) -> Base:
    return Base(base.digest(), base.layout().digest, base_rotary(base))


def is_same(context: Context, base: Context) -> bool:
    if context.layout().digest != base.layout().digest or context.model_config() != base.model_config():
        return False
    return context.digest() == base.digest()


@dataclass
class ReportParts:
    """The parts of a report that the task's benchmarks and its text fill in."""

    rows: list[ForgettingRow] = field(default_factory=list)
    parts: list[LossParts] = field(default_factory=list)
    recovered: Mapping[str, float] = field(default_factory=dict)
    over_benchmarks: list[MetricValue] = field(default_factory=list)
    of_text: list[MetricValue] = field(default_factory=list)
    flipped: list[FlippedQuestions] = field(default_factory=list)


def combined(context: Context, task: str, base: Base, parts: ReportParts, results: Sequence[TaskResult]) -> TaskResult:
    """Combine the results of a task's parts, with rows of the comparison merged by index, and the report."""
    answers = [item for result in results for item in result.items if item["benchmark"] != task]
    rows: dict[int, dict[str, Any]] = {}
    for item in (item for result in results for item in result.items if item["benchmark"] == task):
        rows.setdefault(item["index"], {}).update(item)
    label = context.base.checkpoint.label if context.base else None
    report = ForgettingReport(
        base=label,
        checkpoint=context.checkpoint.label,
        rows=parts.rows,
        parts=parts.parts,
        recovered=dict(parts.recovered),
        over_benchmarks=_report_metrics(parts.over_benchmarks),
        of_text=_report_metrics(parts.of_text),
        flipped=parts.flipped,
    )
    details = {"base": label, "checkpoint": report.checkpoint}
    content = report.model_dump_json(indent=1).encode()
    notes = {key: note for result in results for key, note in result.notes.items()}
    return TaskResult(
        [metric for result in results for metric in result.metrics],
        [*answers, *(rows[index] for index in sorted(rows))],
        {"base": label, "base_sha256": base.sha256, **notes},
        [Artifact("forgetting", "forgetting.json", "application/json", content, details)],
        [warning for result in results for warning in result.warnings],
    )


def _report_metrics(metrics: Iterable[MetricValue]) -> list[ReportMetric]:
    return [
        ReportMetric(name=metric.name, value=metric.value, stderr=metric.stderr, low=low, high=high)
        for metric in metrics
        for low, high in [metric.ends or (None, None)]
    ]


def _numbers(text: ComparedText, group: int | None) -> dict[str, float]:
    row: dict[str, float] = {}
    if text.tokens:
        sums = text.sums
        row = {name: number for name, number in vars(sums).items() if not name.startswith("base_")}
        row |= {"nll_change": sums.nll - sums.base_nll, "within_change": sums.within - sums.base_within}
        row["tokens"] = text.tokens
    if text.late is not None:
        checkpoint, base = text.late
        row |= {"icl_loss": checkpoint, "icl_loss_change": checkpoint - base}
    return row if group is None else row | {GROUP: group}


def _metrics(
    task: str, icl_positions: Sequence[int], shard: TextShard, rows: Sequence[Mapping[str, float]]
) -> Iterator[MetricValue]:
    checkpoint, ids, log = shard.protocol, shard.ids, math.log
    compared, positions = {**checkpoint, **shard.base.protocol()}, {"positions": list(icl_positions)}
    lower: tuple[str, Direction] = (NATS, "lower")
    wanted: list[tuple[str, str, Mapping[str, object], tuple[str, Direction], float | None]] = [
        ("loss", "nll", checkpoint, lower, log(ids.all)),
        ("loss_within", "within", checkpoint, lower, log(ids.text)),
        ("loss_change", "nll_change", compared, lower, None),
        ("loss_within_change", "within_change", compared, lower, None),
        ("kl", "kl", compared, lower, None),
        ("kl_within", "kl_within", compared, lower, None),
        ("top1_agreement", "top1", compared, ("fraction", "higher"), None),
        ("image_mass", "image_mass", checkpoint, ("probability", "none"), ids.image / ids.all),
        ("icl_loss", "icl_loss", {**checkpoint, **positions}, lower, None),
        ("icl_loss_change", "icl_loss_change", {**compared, **positions}, lower, None),
    ]
    for name, key, protocol, number, baseline in wanted:
        if ("within" in name and not shard.within) or (name == "image_mass" and not ids.image):
            continue
        keys = (key,) if key.startswith("icl") else (key, "tokens")
        present = [row for row in rows if key in row]
        weights = [row["tokens"] if len(keys) > 1 else 1 for row in present]
        grouped_by = GROUP if present and GROUP in present[0] else None
        groups = None if grouped_by is None else [row[GROUP] for row in present]
        ratio = ratio_of_sums([row[key] for row in present], weights, groups)
        if ratio is not None:
            if len(keys) == 1 and ratio.stderr is not None and len({row[key] for row in present}) == 1:
                ratio = replace(ratio, stderr=0.0)  # without any difference, the ratio has no share per item
            yield ratio.as_metric(f"{task}/{name}", *number, Protocol(protocol), baseline, keys, grouped_by)
