"""Benchmarks on a model, in parts that can be restarted. The tasks of a suite that ask benchmarks are made of this.

    plan_documents → asked_documents → answer_requests, shard by shard → merge_answers

Documents of all benchmarks are one list, in the order of the suite, and a shard is a range of it: small benchmarks
share shards, and large ones are cut. Only `answer_requests` needs a model.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise

from lm_eval.api.instance import Instance

from evalsvc.errors import DataChanged
from evalsvc.language.benchmarks import Benchmark, Loaded
from evalsvc.language.encoding import EncodingIdentity, TextEncoding
from evalsvc.language.lm import AnswerRow, OpenLM, from_row, to_row
from evalsvc.language.results import Results, results
from evalsvc.language.scoring import IdCounts
from evalsvc.spec.protocol import canonical_json, digest


@dataclass(frozen=True)
class DocumentRange:
    """A range of the documents of all benchmarks, and what the numbers depend on."""

    start: int
    stop: int
    digest: str
    """Digest of what the benchmarks ask."""
    encoding: EncodingIdentity
    ids: IdCounts

    @property
    def units(self) -> int:
        """Number of documents."""
        return self.stop - self.start


@dataclass(frozen=True)
class DocumentAnswers:
    """What a model answers to a range of documents."""

    answers: Sequence[Sequence[AnswerRow]]
    """The answers to each request: one, or several where a random draw is repeated."""


def plan_documents(loaded: Loaded, encoding: TextEncoding, shard_size: int) -> list[DocumentRange]:
    """Cut the documents of all benchmarks into ranges of `shard_size`.

    Every request is encoded, so that what cannot be asked is told before anything is scored.

    Raises:
        InvalidData: names benchmark and document: nothing of a continuation is left as tokens of its own, it is longer
            than the model's input, or the options of a generation are not understood.
    """
    for benchmark in loaded.benchmarks:
        _require_encodable(benchmark, encoding)
    count = sum(len(benchmark.documents) for benchmark in loaded.benchmarks)
    bounds = pairwise([*range(0, count, shard_size), count])
    common = _digest(loaded), encoding.identity, IdCounts.of(encoding.layout)
    return [DocumentRange(start, stop, *common) for start, stop in bounds]


def asked_documents(loaded: Loaded, planned: DocumentRange, encoding: TextEncoding) -> list[tuple[str, Instance]]:
    """Return the requests of a range of `plan_documents`, document by document, each after its digest.

    The digest is of all that an answer depends on beside model and encoding: requests with the same get the same.

    Raises:
        DataChanged: the benchmarks or the tokenizer are not what was planned.
    """
    require_planned(loaded, planned)
    if encoding.identity != planned.encoding:
        raise DataChanged.since_planned(f"the tokenizer {encoding.tokenizer.path} or the layout")
    documents = [(benchmark, document) for benchmark in loaded.benchmarks for document in benchmark.documents]
    return [
        (_request_digest(instance), instance)
        for benchmark, document in documents[planned.start : planned.stop]
        for instance in benchmark.instances[document.requests]
    ]


def answer_requests(
    lm: OpenLM, asked: Mapping[str, Instance], report: Callable[[int], None]
) -> dict[str, list[AnswerRow]]:
    """Return the model's answers by the requests' digests. `report` gets the requests done, of `len(asked)`.

    Raises:
        NonFinite: names benchmark, document and the first part of the model that is at fault.
    """
    copies = [instance for instance in asked.values() for _ in range(_draws(instance))]
    lm.report = lambda done: report(done * len(asked) // max(len(copies), 1))
    answers = iter(lm.answers(copies))
    return {
        request: [to_row(answer) for answer in islice(answers, _draws(instance))] for request, instance in asked.items()
    }


def merge_answers(
    loaded: Loaded,
    planned: Sequence[DocumentRange],
    outputs: Sequence[DocumentAnswers],
    protocol: Mapping[str, object],
) -> Results:
    """Metrics and items of all ranges, in the order of the plan. `protocol` is what the task adds to it.

    Raises:
        DataChanged: the benchmarks are not what was planned.
        InvalidData: a benchmark's own code fails on an answer.
    """
    for part in planned:
        require_planned(loaded, part)
    answers = [[from_row(row) for row in rows] for output in outputs for rows in output.answers]
    return results(loaded, answers, planned[0].ids, {**protocol, **asdict(planned[0].encoding)})


def require_planned(loaded: Loaded, planned: DocumentRange) -> None:
    """Raise DataChanged unless the benchmarks are what was planned."""
    if _digest(loaded) != planned.digest:
        names = ", ".join(benchmark.name for benchmark in loaded.benchmarks)
        raise DataChanged.since_planned(f"what {names} ask", "YAML, data or lm-eval")


_encodable: set[str] = set()
"""What this process has encoded without a complaint: the next checkpoint is asked the same."""


def _require_encodable(benchmark: Benchmark, encoding: TextEncoding) -> None:
    key = digest([benchmark.digest, asdict(encoding.identity)])
    if key not in _encodable:
        deque(encoding.encode_all(benchmark.instances), maxlen=0)
        _encodable.add(key)


def _digest(loaded: Loaded) -> str:
    return digest([[benchmark.name, benchmark.digest] for benchmark in loaded.benchmarks])


def _request_digest(instance: Instance) -> str:
    """A generation at random depends on which request of which document it is, too: its noise does."""
    asked = [instance.request_type, *instance.args]
    if _is_random(instance):
        asked += [instance.task_name, instance.doc_id, instance.idx, instance.repeats]
    return hashlib.sha256(canonical_json(asked).encode("utf-8", "surrogatepass")).hexdigest()


def _draws(instance: Instance) -> int:
    """How often a request is put to the model: repeating what is not random gives the same again."""
    return int(instance.repeats or 1) if _is_random(instance) else 1


def _is_random(instance: Instance) -> bool:
    return instance.request_type == "generate_until" and bool(instance.args[1].get("do_sample"))
