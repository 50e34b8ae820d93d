"""The texts of the forgetting task: the same text for a checkpoint and its base. Needs no lm-eval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from pydantic import JsonValue

from evalsvc.data.tokens import Record, TokenData, read_tokens
from evalsvc.errors import DataChanged, InvalidData, InvalidRequest
from evalsvc.metrics.value_interval import with_intervals
from evalsvc.spec.layout import IdCounts
from evalsvc.tasks.forgetting.page import Report
from evalsvc.tasks.forgetting.shards import Base, TextShard
from evalsvc.tasks.forgetting.spec import Forgetting
from evalsvc.tasks.forgetting.text_comparison import Comparison, Passage, Side, compare, passages
from evalsvc.tasks.forgetting.text_measures import measure_text
from evalsvc.tasks.sequence_groups import groups_of_records
from evalsvc.tasks.suspicions import AT_FIRST, cut_inputs, worse_than_guessing
from evalsvc.tasks.task import Context, Plan, TaskResult
from evalsvc.tasks.text_work import TextWork, base_rotary

ESTIMATOR = "forgetting/1"
"""Version of the computation of differences, in the protocol. Another version is another series."""

TOKENS_PER_SHARD = 1 << 17
"""Number of tokens of text in a shard; two models read each."""

SHOWN_OF_TEXT = ("kl", "kl_within", "top1_agreement", "image_mass", "icl_loss", "icl_loss_change")
"""Metrics of the text that the page shows in addition to the losses."""


class TextForgettingWork(TextWork[Forgetting, TextShard, Comparison]):
    """Puts the same texts to a checkpoint and to its base, and compares their losses."""

    def plan(self, context: Context) -> Plan[TextShard]:
        """Plan shards of text. Raises InvalidRequest if the run has no base, and InvalidData as `plan_text`."""
        base = self.base(context)
        self.require_same_text(context, base, tokenized=False)
        return Plan([*self.plan_text(context, base, is_same(context, base))], "documents")

    def run(self, context: Context, shard: TextShard) -> Comparison:
        return self.compare_text(context, shard)

    def merge(self, context: Context, shards: Sequence[TextShard], outputs: Sequence[Comparison]) -> TaskResult:
        """Return metrics, items and artifacts. Needs neither checkpoint, base nor text."""
        report = empty_report(context)
        result = self.merge_text(context, shards, outputs, report)
        return combined(self.task.name, shards[0].base, report, [result])

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
            raise DataChanged(
                f"the base, {base.checkpoint.label}, has changed since this evaluation was planned; evaluate again"
            )
        return base

    def merge_text(
        self, context: Context, shards: Sequence[TextShard], outputs: Sequence[Comparison], report: Report
    ) -> TaskResult:
        measures = measure_text(self.task.name, self.task.icl_positions, shards, outputs)
        report.rows += measures.rows
        report.parts += measures.parts
        metrics = with_intervals(measures.metrics, self.task.kind, measures.items)
        report.of_text += [metric for metric in metrics if metric.name.rpartition("/")[2] in SHOWN_OF_TEXT]
        remedy = "raise `max_length` if the model allows it, or use shorter texts"
        lost = sum(output.cut for output in outputs)
        cut = cut_inputs(f"{self.task.name}/loss", "texts", lost, len(measures.items), remedy)
        # If the table has text only, its loss within text is the loss.
        loss = f"{self.task.name}/loss_within" if shards[0].within else f"{self.task.name}/loss"
        warnings = [*worse_than_guessing(measures.metrics, [loss] if context.is_first else [], AT_FIRST), *cut]
        return TaskResult(metrics, measures.items, measures.notes, warnings=warnings)

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
        within = any(each.rows != each.text.size for each in (layout, base.layout()))
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
                ids=IdCounts.of(layout),
                within=within,
                groups=None if groups is None else groups[start:stop],
                protocol=protocol,
                base=planned(base),
                is_base=is_base,
            )

    def _read(self, context: Context) -> tuple[TokenData, Sequence[Record]]:
        """Return the text, and the records of it that are used."""
        assert self.task.text is not None, "there is no part of text without it"
        text = context.layout().text
        tokenizer, bos = self.tokenizer_path(context, text), text.beginning(self.task.bos)
        data = read_tokens(context.dataset(self.task.text), tokenizer, bos, context.readable)
        return data, data.texts(self.task.text_limit, "text")

    def _passages(
        self, context: Context, base: Context, data: TokenData, records: Sequence[Record], max_length: int
    ) -> list[Passage]:
        names = [f"{data.path}, {record.where}" for record in records]
        texts = [record.text_ids or () for record in records]
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
        return compare(
            sides[0], sides[-1], text_passages, self.task.icl_positions, context.batch_tokens, context.report
        )


def planned(base: Context) -> Base:
    return Base(base.digest(), base.layout().digest, base_rotary(base))


def is_same(context: Context, base: Context) -> bool:
    """Return whether the checkpoint is its own base, whose results are then reused."""
    if context.layout().digest != base.layout().digest or context.model_config() != base.model_config():
        return False
    return context.digest() == base.digest()


def empty_report(context: Context) -> Report:
    return Report(context.base.checkpoint.label if context.base else None, context.checkpoint.label)


def combined(task: str, base: Base, report: Report, results: Sequence[TaskResult]) -> TaskResult:
    """Combine the results of a task's parts to one, with rows of the comparison merged by index, and the report."""
    answers = [item for result in results for item in result.items if item["benchmark"] != task]
    rows: dict[int, dict[str, Any]] = {}
    for item in (item for result in results for item in result.items if item["benchmark"] == task):
        rows.setdefault(item["index"], {}).update(item)
    notes = {key: note for result in results for key, note in result.notes.items()}
    notes = {"base": report.base, "base_sha256": base.sha256, **notes}
    metrics = [metric for result in results for metric in result.metrics]
    warnings = [warning for result in results for warning in result.warnings]
    items = [*answers, *(rows[index] for index in sorted(rows))]
    return TaskResult(metrics, items, notes, report.artifacts(), warnings)
