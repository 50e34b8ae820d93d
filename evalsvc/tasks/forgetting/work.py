"""The forgetting task: the same questions and the same text for a checkpoint and its base.

Every number is computed over all ids and within the text ids: a model that expects an image may still know its text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from evalsvc.errors import InvalidSuite
from evalsvc.language.benchmarks import Loaded
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.evaluation import DocumentAnswers, plan_documents
from evalsvc.language.results import Results, flips
from evalsvc.metrics.value_interval import with_intervals
from evalsvc.spec.documents.text_reports import FlippedQuestion, FlippedQuestions, ForgettingRow
from evalsvc.tasks.forgetting.retention import Differences, add_retention, centred, text_retained
from evalsvc.tasks.forgetting.rows import benchmark_parts, benchmark_rows, recovered
from evalsvc.tasks.forgetting.spec import Forgetting
from evalsvc.tasks.forgetting.text_comparison import Comparison
from evalsvc.tasks.forgetting.text_work import (
    ESTIMATOR,
    Base,
    ReportParts,
    TextForgettingWork,
    TextShard,
    combined,
    is_same,
    planned,
)
from evalsvc.tasks.language.work import BenchmarkWork, QuestionShard
from evalsvc.tasks.result_warnings import cut_inputs
from evalsvc.tasks.task import Context, Plan, TaskResult

FEW_SHOTS = 5

MAX_FLIPPED_TEXT = 8 << 20
"""Maximum number of characters of flipped questions in a report; questions without room are left out."""

Part = Literal["checkpoint", "base", "few", "zero"]
"""The respondent: the checkpoint as in the suite, or its base; or the checkpoint with or without solved examples."""


@dataclass(frozen=True)
class PartShard(QuestionShard):
    part: Part
    base: Base


ForgettingShard: TypeAlias = PartShard | TextShard
ForgettingOutput: TypeAlias = DocumentAnswers | Comparison


class ForgettingWork(BenchmarkWork[Forgetting, ForgettingShard, ForgettingOutput]):
    def __init__(self, task: Forgetting) -> None:
        super().__init__(task)
        self._text = TextForgettingWork(task)

    def plan(self, context: Context) -> Plan[ForgettingShard]:
        base = self._text.base(context)
        self.require_same_text(context, base)
        is_base = is_same(context, base)
        texts = self._text.plan_text(context, base, is_base)
        return Plan([*texts, *self._plan_benchmarks(context, base, is_base)], "documents")

    def run(self, context: Context, shard: ForgettingShard) -> ForgettingOutput:
        if isinstance(shard, TextShard):
            return self._text.compare_text(context, shard)
        loaded = self._loaded(context, shard.part)
        if shard.part != "base":
            return self.answer(context, loaded, shard, context.report)
        base = self._text.planned_base(context, shard.base)
        answers = self.answer(base, loaded, shard, context.report, _for_base(self.encoding(context), base))
        context.provenance.update(base.provenance)
        return answers

    def merge(
        self, context: Context, shards: Sequence[ForgettingShard], outputs: Sequence[ForgettingOutput]
    ) -> TaskResult:
        """Return the results. Needs the benchmarks' data, but neither checkpoint, base nor text.

        An item is a document of a benchmark as in the task `language`, or a row of the comparison: the row with index i
        has the i-th text and the i-th document of each benchmark.
        """
        report = ReportParts()
        pairs = zip(shards, outputs, strict=True)
        answered = [(s, o) for s, o in pairs if isinstance(s, PartShard) and isinstance(o, DocumentAnswers)]
        results = [self._merge_benchmarks(context, answered, report)]
        if self.task.text is not None:
            texts = [shard for shard in shards if isinstance(shard, TextShard)]
            compared = [output for output in outputs if isinstance(output, Comparison)]
            results.append(self._text.merge_text(context, texts, compared, report))
        return combined(context, self.task.name, shards[0].base, report, results)

    def _plan_benchmarks(self, context: Context, base: Context, is_base: bool) -> Iterator[PartShard]:
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
                yield PartShard(documents.units, documents, rotary, part, planned(base))

    def _loaded(self, context: Context, part: Part) -> Loaded:
        if part in ("checkpoint", "base"):
            return self.load(context)
        wanted = [spec for spec in self.task.benchmarks if self.task.icl is True or spec.name in (self.task.icl or ())]
        icl_work = ForgettingWork(self.task.model_copy(update={"benchmarks": tuple(wanted)}))
        return icl_work.load(context, FEW_SHOTS if part == "few" else 0, "first")

    def _merge_benchmarks(
        self, context: Context, answered: Sequence[tuple[PartShard, DocumentAnswers]], report: ReportParts
    ) -> TaskResult:
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
        counted = {"counted": retained.counted, "at_chance": retained.at_chance}
        notes = {**results.notes.to_json(), "text_retained": counted}
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
        warnings = [*self.suspicions(context, results)]
        few = by_part.get("few")
        for name, cut in few.notes.contexts_cut.items() if few else ():
            remedy = "raise `max_length` if the model allows it, or remove the benchmark from `icl`"
            warnings += cut_inputs(name, f"contexts with {FEW_SHOTS} solved examples", cut, None, remedy)
        return TaskResult(metrics, [*results.items, *items], notes, warnings=warnings)

    def _flipped(
        self, loaded: Loaded, rows: Sequence[ForgettingRow], checkpoint: Results, base: Results
    ) -> Iterator[FlippedQuestions]:
        accuracies = {row.what: row.metric for row in rows if row.chance is not None}
        room = MAX_FLIPPED_TEXT
        for benchmark in loaded.benchmarks:
            if benchmark.name not in accuracies:
                continue
            flipped = list(flips(benchmark, accuracies[benchmark.name], base.items, checkpoint.items))
            counts = Counter(flip.flip or f"{flip.flip_within}_within" for flip in flipped)
            kept: list[FlippedQuestion] = []
            for flip in flipped[: self.task.flipped]:
                room -= len(flip.model_dump_json())
                if room < 0:
                    break
                kept.append(flip)
            if flipped:
                by_kind = {kind: counts[kind] for kind in ("lost", "lost_within", "gained", "gained_within")}
                yield FlippedQuestions(benchmark=benchmark.name, questions=kept, **by_kind)


def _for_base(encoding: TextEncoding, base: Context) -> TextEncoding:
    """Return the encoding of the base: the same questions, cut to the same length, in the base's rows."""
    return replace(encoding, layout=base.layout())
