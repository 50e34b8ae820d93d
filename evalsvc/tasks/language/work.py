"""The language task: lm-eval's benchmarks, as a measure of the language that a text-to-image model has left.

Every score is computed over all ids and within the text ids: a model may have forgotten, or expect an image.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from lm_eval.api.instance import Instance
from pydantic import TypeAdapter

from evalsvc import __version__
from evalsvc.errors import DataDirectoryUnusable, NonFinite
from evalsvc.families.reading import computed_by
from evalsvc.files.atomic import FileLost
from evalsvc.files.kept import ANSWERS, KeptFolder
from evalsvc.language.benchmarks import Loaded, LoadOptions, load_benchmarks
from evalsvc.language.definitions import Rules
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.evaluation import (
    DocumentAnswers,
    DocumentRange,
    answer_requests,
    asked_documents,
    merge_answers,
    plan_documents,
)
from evalsvc.language.lm import AnswerRow
from evalsvc.language.results import Results, plain_mean, require_mean
from evalsvc.spec import catalog
from evalsvc.spec.engines import OWN, release_of
from evalsvc.spec.protocol import digest
from evalsvc.tasks.language.spec import BenchmarkTask, Language
from evalsvc.tasks.result_warnings import AT_FIRST, cut_inputs, worse_than_guessing
from evalsvc.tasks.task import Context, Output, Plan, Shard, ShardKind, TaskResult, TaskWarning
from evalsvc.tasks.text_work import TextWork

BITS = "bits/byte"

BenchmarkParameters = TypeVar("BenchmarkParameters", bound=BenchmarkTask)


@dataclass(frozen=True)
class QuestionShard(Shard):
    documents: DocumentRange
    rotary: Mapping[str, str]


class BenchmarkWork(TextWork[BenchmarkParameters, ShardKind, Output], Generic[BenchmarkParameters, ShardKind, Output]):
    """Common work of tasks that ask benchmarks."""

    def load(self, context: Context, num_fewshot: int | None = None, fewshot: str | None = None) -> Loaded:
        """Load the benchmarks, once per process; arguments override the suite."""
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
        """Return the encoding of text for the checkpoint, without loading weights."""
        max_length, tokenizer = self.task.max_length or context.model_config().seq_len, self.text_tokenizer(context)
        bos = self.bos(context, tokenizer)
        apart = context.model_config().heads_apart
        return TextEncoding(tokenizer, context.layout(), max_length, bos, self.task.end_of_text, apart)

    def answer(
        self,
        context: Context,
        loaded: Loaded,
        shard: QuestionShard,
        report: Callable[[int], None],
        encoding: TextEncoding | None = None,
    ) -> DocumentAnswers:
        """Return the checkpoint's answers to a shard, from earlier evaluations where there are some; `report` gets the
        number of finished documents. `encoding` is that of the plan [the checkpoint's own]."""
        encoding = encoding or self.encoding(context)
        asked = asked_documents(loaded, shard.documents, encoding)
        key = self._kept_under(context, encoding)
        answers_by_digest = find_answers(context.kept, key)
        new: dict[str, Instance] = {}
        for key_of_question, instance in asked:
            if key_of_question not in answers_by_digest:
                new.setdefault(key_of_question, instance)
        context.provenance["answers_reused"] = sum(digest in answers_by_digest for digest, _ in asked)
        if new:
            answers = self._ask(context, encoding, new, shard.units, report)
            keep_answers(context.kept, key, answers)
            answers_by_digest |= answers
        report(shard.units)
        return DocumentAnswers([answers_by_digest[digest] for digest, _ in asked])

    def merged(self, loaded: Loaded, shards: Sequence[QuestionShard], outputs: Sequence[DocumentAnswers]) -> Results:
        return merge_answers(loaded, [shard.documents for shard in shards], outputs, self.protocol(shards[0].rotary))

    def suspicions(self, context: Context, results: Results) -> Iterator[TaskWarning]:
        """Yield warnings about the checkpoint's own results: contexts that were cut, and losses worse than guessing."""
        if context.is_first:
            bits = [metric.name for metric in results.metrics if metric.unit == BITS]
            yield from worse_than_guessing(results.metrics, bits, AT_FIRST)
        sizes = Counter(item["benchmark"] for item in results.items)
        notes = results.notes
        for lost, what in ((notes.contexts_cut, "contexts"), (notes.continuations_cut, "continuations")):
            for name, cut in lost.items():
                remedy = "raise `max_length` if the model allows it, or lower `num_fewshot`"
                yield from cut_inputs(name, f"documents' {what}", cut, sizes[name], remedy)

    def _ask(
        self,
        context: Context,
        encoding: TextEncoding,
        asked: Mapping[str, Instance],
        units: int,
        report: Callable[[int], None],
    ) -> dict[str, list[AnswerRow]]:
        model = self.model(context)
        lm = catalog.load("scorings", self.task.engines.get("scoring", OWN))(
            model, encoding, batch_tokens=context.batch_tokens
        )
        try:
            return answer_requests(lm, asked, lambda done: report(done * units // len(asked)))
        except NonFinite as error:
            raise NonFinite(f"{context.checkpoint.label}: {error.message}") from None

    def _kept_under(self, context: Context, encoding: TextEncoding) -> dict[str, object]:
        config = context.model_config()
        return {
            "evalsvc": __version__,
            **computed_by(config),
            **{f"{stage}_engine": release_of(name) for stage, name in self.task.engines.items()},
            "checkpoint": context.digest(),
            "model": config.model_dump(mode="json"),
            "encoding": asdict(encoding.identity),
            **self.protocol(context.rotary()),
        }


class LanguageWork(BenchmarkWork[Language, QuestionShard, DocumentAnswers]):
    def plan(self, context: Context) -> Plan[QuestionShard]:
        encoding, loaded = self.encoding(context), self.load(context)
        if self.task.mean:
            require_mean(self.task.mean, loaded)
        planned, rotary = plan_documents(loaded, encoding, self.task.shard_size), context.rotary()
        return Plan([QuestionShard(part.units, part, rotary) for part in planned], "documents")

    def run(self, context: Context, shard: QuestionShard) -> DocumentAnswers:
        return self.answer(context, self.load(context), shard, context.report)

    def merge(
        self, context: Context, shards: Sequence[QuestionShard], outputs: Sequence[DocumentAnswers]
    ) -> TaskResult:
        """Return metrics and items. Needs the benchmarks' data, but neither checkpoint nor tokenizer."""
        loaded = self.load(context)
        results = self.merged(loaded, shards, outputs)
        means = plain_mean(self.task.name, self.task.mean, loaded, results) if self.task.mean else []
        warnings = list(self.suspicions(context, results))
        return TaskResult([*results.metrics, *means], results.items, results.notes.to_json(), warnings=warnings)


log = logging.getLogger(__name__)

Answers: TypeAlias = dict[str, list[AnswerRow]]
"""Answers by the digests of their questions; several answers if a random draw is repeated."""

KEPT: TypeAdapter[Answers] = TypeAdapter(Answers)


def find_answers(files: KeptFolder, key: Mapping[str, object]) -> Answers:
    """Return the answers kept under `key`, by the digests of the questions. Damaged files are ignored."""
    answers: Answers = {}
    for name in sorted(files.names(_folder(key))):
        with suppress(FileLost, OSError, ValueError, TypeError, KeyError):
            with files.open(name) as stream:
                checksum, _, content = stream.read().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() == checksum:
                kept = json.loads(content)
                answers |= KEPT.validate_python(kept["answers"]) if kept["key"] == key else {}
    return answers


def keep_answers(files: KeptFolder, key: Mapping[str, object], answers: Answers) -> None:
    """Keep answers, by digest of the question, under `key`, which holds everything else that they depend on."""
    name = f"{_folder(key)}/{digest(sorted(answers))}.json"
    content = json.dumps({"key": key, "answers": answers}).encode()
    try:
        files.keep_bytes(name, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except DataDirectoryUnusable as error:  # costs only time
        log.warning("answers are not kept: %s", error.message)


def _folder(key: Mapping[str, object]) -> str:
    return f"{ANSWERS}/{digest(key)}"
