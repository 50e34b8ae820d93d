"""The forgetting task: the same questions and the same text for a checkpoint and its base.

Every number is computed over all ids and within the text ids: a model that expects an image may still know its text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

from pydantic import JsonValue

from evalsvc.data.tokens import Record, TokenData, read_tokens
from evalsvc.errors import DataChanged, InvalidData, InvalidRequest, InvalidSuite
from evalsvc.language.benchmarks import Loaded
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.evaluation import DocumentAnswers, plan_documents
from evalsvc.language.flips import flips
from evalsvc.language.results import Results
from evalsvc.language.scoring import IdCounts
from evalsvc.metrics.value_interval import with_intervals
from evalsvc.tasks.forgetting.base_comparison import Differences
from evalsvc.tasks.forgetting.page import Flipped, Report
from evalsvc.tasks.forgetting.retention import add_retention, centred, text_retained
from evalsvc.tasks.forgetting.rows import Row, benchmark_parts, benchmark_rows, recovered
from evalsvc.tasks.forgetting.shards import Base, ForgettingShard, Part, PartShard, TextShard
from evalsvc.tasks.forgetting.spec import Forgetting
from evalsvc.tasks.forgetting.text_comparison import Comparison, Passage, Side, compare, passages
from evalsvc.tasks.forgetting.text_measures import measure_text
from evalsvc.tasks.language.work import BenchmarkWork
from evalsvc.tasks.sequence_groups import groups_of_records
from evalsvc.tasks.suspicions import AT_FIRST, cut_inputs, worse_than_guessing
from evalsvc.tasks.task import Context, Plan, TaskResult, TaskWarning
from evalsvc.tasks.text_work import base_rotary

ESTIMATOR = "forgetting/1"
"""Version of the computation of differences, in the protocol. Another version is another series."""

FEW_SHOTS = 5

TOKENS_PER_SHARD = 1 << 17
"""Number of tokens of text in a shard; two models read each."""

SHOWN_OF_TEXT = ("kl", "kl_within", "top1_agreement", "image_mass", "icl_loss", "icl_loss_change")
"""Metrics of the text that the page shows in addition to the losses."""


ForgettingOutput: TypeAlias = DocumentAnswers | Comparison


class ForgettingWork(BenchmarkWork[Forgetting, ForgettingShard, ForgettingOutput]):
    """Puts the same questions and texts to a checkpoint and to its base, and compares the results."""

    def plan(self, context: Context) -> Plan[ForgettingShard]:
        """Plan shards of text, and of documents for the checkpoint, for its base, and for both variants of `icl`.

        Raises InvalidRequest if the run has no base, and InvalidData if the base has another tokenizer.
        """
        base = self._base(context)
        self.require_same_text(context, base, tokenized=bool(self.task.benchmarks))
        is_base = _is_same(context, base)
        shards: list[ForgettingShard] = [
            *self._plan_text(context, base, is_base),
            *self._plan_benchmarks(context, base, is_base),
        ]
        return Plan(shards, "documents")

    def run(self, context: Context, shard: ForgettingShard) -> ForgettingOutput:
        """Return answers to documents, or sums per text; see `language.evaluation` and `text_comparison`.

        Raises DataChanged if base, text or benchmarks differ from the plan, and NonFinite.
        """
        if isinstance(shard, TextShard):
            return self._compare_text(context, shard)
        loaded = self._loaded(context, shard.part)
        if shard.part != "base":
            return self.answer(context, loaded, shard, context.report)
        base = self._planned_base(context, shard.base)
        answers = self.answer(base, loaded, shard, context.report, _for_base(self.encoding(context), base))
        context.provenance.update(base.provenance)
        return answers

    def merge(
        self, context: Context, shards: Sequence[ForgettingShard], outputs: Sequence[ForgettingOutput]
    ) -> TaskResult:
        """Return metrics, items and artifacts. Needs the benchmarks' data, but neither checkpoint, base nor text.

        An item is a document of a benchmark as in the task `language`, or a row of the comparison: the row with index i
        has the i-th text and the i-th document of each benchmark.
        """
        label = context.base.checkpoint.label if context.base else None
        report = Report(label, context.checkpoint.label)
        results = [TaskResult([], notes={"base": label, "base_sha256": shards[0].base.sha256})]
        if self.task.benchmarks:
            answered = [
                (shard, output)
                for shard, output in zip(shards, outputs, strict=True)
                if isinstance(shard, PartShard) and isinstance(output, DocumentAnswers)
            ]
            results.append(self._merge_benchmarks(context, answered, report))
        if self.task.text is not None:
            texts = [shard for shard in shards if isinstance(shard, TextShard)]
            compared = [output for output in outputs if isinstance(output, Comparison)]
            results.append(self._merge_text(context, texts, compared, report))
        return replace(_joined(self.task.name, results), artifacts=report.artifacts())

    # the base

    def _base(self, context: Context) -> Context:
        if context.base is None:
            raise InvalidRequest(
                f"task {self.task.name!r} compares a checkpoint with the run's base, but the run has none; post the "
                "run's step 0, set a base with PUT /v1/runs/{run}/base, or with `evalsvc run --base`"
            )
        return context.base

    def _planned_base(self, context: Context, planned: Base) -> Context:
        base = self._base(context)
        if base.digest() != planned.sha256:
            raise DataChanged(
                f"the base, {base.checkpoint.label}, has changed since this evaluation was planned; evaluate again"
            )
        return base

    # benchmarks

    def _plan_benchmarks(self, context: Context, base: Context, is_base: bool) -> Iterator[PartShard]:
        if not self.task.benchmarks:
            return
        encoding, loaded = self.encoding(context), self.load(context)
        names = [benchmark.name for benchmark in loaded.benchmarks] + [group.name for group in loaded.groups]
        if self.task.name in names:
            raise InvalidSuite(f"task {self.task.name!r} has the name of a benchmark; set another `name`")
        wanted: dict[Part, tuple[Loaded, TextEncoding]] = {"checkpoint": (loaded, encoding)}
        if not is_base:
            wanted["base"] = (loaded, _for_base(encoding, base))
        if self.task.icl:
            wanted["few"] = (self._loaded(context, "few"), encoding)
            zero = self._loaded(context, "zero")
            known = {benchmark.name: benchmark.digest for benchmark in loaded.benchmarks}
            if any(known[benchmark.name] != benchmark.digest for benchmark in zero.benchmarks):
                wanted["zero"] = (zero, encoding)
        for part, (what, how) in wanted.items():
            rotary = (base if part == "base" else context).rotary()
            for documents in plan_documents(what, how, self.task.shard_size):
                yield PartShard(documents.units, documents, rotary, part, _planned(base))

    def _loaded(self, context: Context, part: Part) -> Loaded:
        """Return the benchmarks of a part, built once per process."""
        if part in ("checkpoint", "base"):
            return self.load(context)
        wanted = [spec for spec in self.task.benchmarks if self.task.icl is True or spec.name in (self.task.icl or ())]
        icl_work = ForgettingWork(self.task.model_copy(update={"benchmarks": tuple(wanted)}))
        return icl_work.load(context, FEW_SHOTS if part == "few" else 0, "first")

    def _merge_benchmarks(
        self, context: Context, answered: Sequence[tuple[PartShard, DocumentAnswers]], report: Report
    ) -> TaskResult:
        """Return the checkpoint's results, the comparison with the base, and the headline metrics; add all to
        `report`."""
        by_part: dict[Part, Results] = {}
        for part in dict.fromkeys(shard.part for shard, _ in answered):
            shards, outputs = zip(*(pair for pair in answered if pair[0].part == part), strict=True)
            by_part[part] = self.merged(self._loaded(context, part), shards, outputs)
        results = by_part["checkpoint"]
        base = by_part.get("base", results)
        content = {"task": self.task.kind, "comparison": ESTIMATOR}
        compared = {**content, **answered[0][0].base.protocol()}
        differences = Differences(self.task.name)
        differences.add_changes(results, base, compared)
        rows = benchmark_rows(results, base)
        retained = text_retained(self.task.name, rows, results, base, compared)
        add_retention(differences, rows, results, base, compared)
        notes = {
            **results.notes.to_json(),
            "text_retained": {"counted": retained.counted, "at_chance": retained.at_chance},
        }
        if "few" in by_part:
            differences.add_icl(by_part.get("zero", results), by_part["few"], content)
            notes["icl_contexts_cut"] = by_part["few"].notes.contexts_cut
        above = [*centred(self.task.name, rows, results, content), *retained.metrics]
        report.rows += rows
        report.parts += benchmark_parts(results, base)
        report.recovered = recovered(results, base)
        above = with_intervals(above, self.task.kind, results.items)
        report.over_benchmarks += above
        report.flipped += self._flipped(self.load(context), rows, results, base)
        items = [{"benchmark": self.task.name, "index": index, **row} for index, row in differences.numbers.items()]
        metrics = [*results.metrics, *differences.metrics, *above]
        warnings = [*self.suspicions(context, results), *self._cut_shots(by_part.get("few"))]
        return TaskResult(metrics, [*results.items, *items], notes, warnings=warnings)

    def _cut_shots(self, few: Results | None) -> Iterator[TaskWarning]:
        for name, cut in few.notes.contexts_cut.items() if few else ():
            remedy = "raise `max_length` if the model allows it, or remove the benchmark from `icl`"
            yield from cut_inputs(name, f"contexts with {FEW_SHOTS} solved examples", cut, None, remedy)

    def _flipped(self, loaded: Loaded, rows: Sequence[Row], checkpoint: Results, base: Results) -> Iterator[Flipped]:
        accuracies = {row.what: row.metric for row in rows if row.chance is not None}
        for benchmark in loaded.benchmarks:
            if benchmark.name in accuracies:
                flipped = list(flips(benchmark, accuracies[benchmark.name], base.items, checkpoint.items))
                if flipped:
                    yield Flipped(benchmark.name, flipped, self.task.flipped)

    # text

    def _merge_text(
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

    def _plan_text(self, context: Context, base: Context, is_base: bool) -> Iterator[TextShard]:
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
                base=_planned(base),
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

    def _compare_text(self, context: Context, shard: TextShard) -> Comparison:
        base = self._planned_base(context, shard.base)
        data, records = self._read(context)
        if data.digest != shard.digest:
            raise DataChanged.since_planned(data.path)
        text_passages = self._passages(context, base, data, records[shard.start : shard.stop], shard.max_length)
        models = (context,) if shard.is_base else (context, base)
        sides = [Side(each.checkpoint.label, self.model(each), each.layout(), each.device) for each in models]
        return compare(
            sides[0], sides[-1], text_passages, self.task.icl_positions, context.batch_tokens, context.report
        )


def _planned(base: Context) -> Base:
    return Base(base.digest(), base.layout().digest, base_rotary(base))


def _is_same(context: Context, base: Context) -> bool:
    """Return whether the checkpoint is its own base, whose results are then reused."""
    if context.layout().digest != base.layout().digest or context.model_config() != base.model_config():
        return False
    return context.digest() == base.digest()


def _for_base(encoding: TextEncoding, base: Context) -> TextEncoding:
    """Return the encoding of the base: the same questions, cut to the same length, in the base's rows."""
    return replace(encoding, layout=base.layout())


def _joined(task: str, results: Sequence[TaskResult]) -> TaskResult:
    """Combine several results to one, with rows of the comparison merged by index."""
    answers = [item for result in results for item in result.items if item["benchmark"] != task]
    rows: dict[int, dict[str, Any]] = {}
    for item in (item for result in results for item in result.items if item["benchmark"] == task):
        rows.setdefault(item["index"], {}).update(item)
    notes = {key: note for result in results for key, note in result.notes.items()}
    metrics = [metric for result in results for metric in result.metrics]
    warnings = [warning for result in results for warning in result.warnings]
    return TaskResult(metrics, [*answers, *(rows[index] for index in sorted(rows))], notes, warnings=warnings)
