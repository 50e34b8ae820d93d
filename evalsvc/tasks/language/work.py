"""Ask a checkpoint lm-eval's benchmarks: how much of its language a text-to-image model has left.

Every score comes twice, over all ids and within the text ids: a model may have forgotten, or expect an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from evalsvc import __version__
from evalsvc.errors import NonFinite
from evalsvc.language.benchmarks import Loaded, LoadOptions, load_benchmarks
from evalsvc.language.definitions import Rules
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.evaluation import Asked, answer_requests, asked_documents, merge_answers, plan_documents
from evalsvc.language.lm import OpenLM
from evalsvc.language.results import Results, plain_mean, require_mean
from evalsvc.tasks.language.kept_answers import find_answers, keep_answers
from evalsvc.tasks.language.spec import BenchmarkTask, Language
from evalsvc.tasks.suspicions import AT_FIRST, cut_inputs, worse_than_guessing
from evalsvc.tasks.task import Context, Output, Plan, ShardKind, TaskResult, TaskWarning
from evalsvc.tasks.text_work import TextWork

BITS = "bits/byte"

BenchmarkParameters = TypeVar("BenchmarkParameters", bound=BenchmarkTask)


class BenchmarkWork(TextWork[BenchmarkParameters, ShardKind, Output], Generic[BenchmarkParameters, ShardKind, Output]):
    """What the tasks that ask benchmarks do alike."""

    def load(self, context: Context, num_fewshot: int | None = None, fewshot: str | None = None) -> Loaded:
        """Load the benchmarks, once per process; arguments win over the suite. Raises what `load_benchmarks` raises."""
        options = LoadOptions(
            tuple(Path(context.dataset(path)) for path in self.task.include_path),
            self.task.num_fewshot,
            "first" if "first" in (fewshot, self.task.fewshot) else "configured",
            self.task.limit,
            Rules(context.allow_benchmark_code, context.dataset, context.readable),
            self.task.sample,
        )
        given = {} if num_fewshot is None else {"num_fewshot": num_fewshot}
        return load_benchmarks([spec.model_copy(update=given) for spec in self.task.benchmarks], options)

    def encoding(self, context: Context) -> TextEncoding:
        """Return how text is put to the checkpoint, without weights.

        Raises InvalidData where there is no tokenizer, it is not the model's, or it has no such id as `bos`.
        """
        max_length = self.task.max_length or context.model_config().seq_len
        return TextEncoding(
            self.text_tokenizer(context), context.layout(), max_length, self.task.bos, self.task.end_of_text
        )

    def answer(
        self,
        context: Context,
        loaded: Loaded,
        shard: Mapping[str, Any],
        report: Callable[[int], None],
        encoding: TextEncoding | None = None,
    ) -> dict[str, Any]:
        """What the checkpoint of `context` answers to a shard of `plan_documents`; `report` gets the documents done.

        `encoding` is what the shard was planned with [the checkpoint's own]. What the checkpoint has answered on this
        machine before is not asked again; the provenance says how much that was.

        Raises:
            DataChanged: the benchmarks or the tokenizer are not what was planned.
            NonFinite: names the checkpoint, the benchmark and the document.
        """
        encoding = encoding or self.encoding(context)
        asked = asked_documents(loaded, shard, encoding)
        folder, key = context.statistics_folder(), self._kept_under(context, encoding)
        found = find_answers(folder, key)
        new = [place for place, digest in enumerate(asked.digests) if digest not in found]
        context.provenance["answers_reused"] = len(asked.digests) - len(new)
        if new:
            answers = self._ask(context, encoding, asked.some(new), shard["units"], report)
            keep_answers(folder, key, answers)
            found |= answers
        report(shard["units"])
        return {"answers": [found[digest] for digest in asked.digests]}

    def suspicions(self, context: Context, found: Results) -> Iterator[TaskWarning]:
        """Warnings of the checkpoint's own results: contexts that were cut, and text that no base has forgotten."""
        if context.is_first:
            bits = [metric.name for metric in found.metrics if metric.unit == BITS]
            yield from worse_than_guessing(found.metrics, bits, AT_FIRST)
        sizes = Counter(item["benchmark"] for item in found.items)
        notes = found.notes
        for lost, what in ((notes.contexts_cut, "contexts"), (notes.continuations_cut, "continuations")):
            for name, cut in lost.items():
                remedy = "raise `max_length` if the model bears it, or lower `num_fewshot`"
                yield from cut_inputs(name, f"documents' {what}", cut, sizes[name], remedy)

    def _ask(
        self, context: Context, encoding: TextEncoding, asked: Asked, units: int, report: Callable[[int], None]
    ) -> dict[str, Any]:
        model = self.model(context)
        lm = OpenLM(model, encoding, batch_tokens=context.batch_tokens)
        try:
            return answer_requests(lm, asked, lambda done: report(done * units // len(asked.digests)))
        except NonFinite as error:
            raise NonFinite(f"{context.checkpoint.label}: {error.message}") from None

    def _kept_under(self, context: Context, encoding: TextEncoding) -> dict[str, Any]:
        """All that an answer depends on beside what is asked."""
        return {
            "evalsvc": __version__,
            "checkpoint": context.digest(),
            "model": context.model_config().model_dump(mode="json"),
            "encoding": asdict(encoding.identity),
            **self.protocol(context.rotary()),
        }


class LanguageWork(BenchmarkWork[Language, Mapping[str, Any], Mapping[str, Any]]):
    """Plan, ask and score benchmarks."""

    def plan(self, context: Context) -> Plan[Mapping[str, Any]]:
        """Load the benchmarks, encode all that they ask, and cut their documents into shards."""
        encoding, loaded = self.encoding(context), self.load(context)
        if self.task.mean:
            require_mean(self.task.mean, loaded)
        shards = plan_documents(loaded, encoding, self.task.shard_size)
        rotary = dict(context.rotary())
        return Plan([{**shard, "rotary": rotary} for shard in shards], "documents")

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.answer(context, self.load(context), shard, context.report)

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        """Metrics and items. Needs the benchmarks' data, but neither checkpoint nor tokenizer."""
        loaded = self.load(context)
        found = merge_answers(loaded, shards, outputs, self.protocol(shards[0]["rotary"]))
        means = plain_mean(self.task.name, self.task.mean, loaded, found) if self.task.mean else []
        warnings = list(self.suspicions(context, found))
        return TaskResult([*found.metrics, *means], found.items, found.notes.to_json(), warnings=warnings)
