"""Benchmarks on a model, in parts that can be restarted: the core of a suite's tasks with benchmarks.

    plan_documents → asked_documents → answer_requests, shard by shard → merge_answers

Documents of all benchmarks are one list, in the order of the suite, and a shard is a range of it: small benchmarks
share shards, and large benchmarks are cut. Only `answer_requests` needs a model.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise

from lm_eval.api.instance import Instance

from evalsvc.data.files import MEMORY, limited_memory
from evalsvc.errors import DataChanged
from evalsvc.language.benchmarks import Loaded
from evalsvc.language.encoding import EncodingIdentity, TextEncoding
from evalsvc.language.lm import AnswerRow, Scoring, from_row, to_row
from evalsvc.language.results import Results, results
from evalsvc.spec.layout import IdCounts
from evalsvc.spec.protocol import canonical_json, digest


@dataclass(frozen=True)
class DocumentRange:
    """Range of the documents of all benchmarks, with the inputs of the numbers."""

    start: int
    stop: int
    digest: str
    encoding: EncodingIdentity
    ids: IdCounts

    @property
    def units(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class DocumentAnswers:
    answers: Sequence[Sequence[AnswerRow]]
    """Answers to each request: one, or several where a random draw is repeated."""


_encodable: set[str] = set()
"""Keys that this process has encoded without an error: the next checkpoint gets the same requests."""


def plan_documents(loaded: Loaded, encoding: TextEncoding, shard_size: int) -> list[DocumentRange]:
    """Cut the documents into ranges of `shard_size`, and encode every request: impossible ones fail at once."""
    for benchmark in loaded.benchmarks:
        key = digest([benchmark.digest, asdict(encoding.identity)])
        if key not in _encodable:
            deque(encoding.encode_all(benchmark.instances), maxlen=0)
            _encodable.add(key)
    count = sum(len(benchmark.documents) for benchmark in loaded.benchmarks)
    bounds = pairwise([*range(0, count, shard_size), count])
    common = _digest(loaded), encoding.identity, IdCounts.of(encoding.layout, encoding.heads_apart)
    return [DocumentRange(start, stop, *common) for start, stop in bounds]


def asked_documents(loaded: Loaded, planned: DocumentRange, encoding: TextEncoding) -> list[tuple[str, Instance]]:
    """Return a range's requests with digests; equal digests get equal answers of one model and encoding."""
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
    lm: Scoring, asked: Mapping[str, Instance], report: Callable[[int], None]
) -> dict[str, list[AnswerRow]]:
    """Return the model's answers by the requests' digests. `report` gets the number of answered requests."""
    copies = [instance for instance in asked.values() for _ in range(_draws(instance))]
    lm.report = lambda done: report(done * len(asked) // max(len(copies), 1))
    answers = iter(lm.answers(copies))
    return {
        request: [to_row(answer) for answer in islice(answers, _draws(instance))] for request, instance in asked.items()
    }


def merge_answers(
    loaded: Loaded, planned: Sequence[DocumentRange], outputs: Sequence[DocumentAnswers], protocol: Mapping[str, object]
) -> Results:
    """Return metrics and items of all ranges, in the plan's order. `protocol` has the task's entries."""
    for part in planned:
        require_planned(loaded, part)
    answers = [[from_row(row) for row in rows] for output in outputs for rows in output.answers]
    # The right answers come from templates again, and a template may draw at random.
    with limited_memory(MEMORY, "scoring the benchmarks of a task"):
        return results(loaded, answers, planned[0].ids, {**protocol, **asdict(planned[0].encoding)})


def require_planned(loaded: Loaded, planned: DocumentRange) -> None:
    if _digest(loaded) != planned.digest:
        names = ", ".join(benchmark.name for benchmark in loaded.benchmarks)
        raise DataChanged.since_planned(f"what {names} ask", "YAML, data or lm-eval")


def _digest(loaded: Loaded) -> str:
    return digest([[benchmark.name, benchmark.digest] for benchmark in loaded.benchmarks])


def _request_digest(instance: Instance) -> str:
    asked = [instance.request_type, *instance.args]
    if _is_random(instance):  # its noise depends on document and request
        asked += [instance.task_name, instance.doc_id, instance.idx, instance.repeats]
    return hashlib.sha256(canonical_json(asked).encode("utf-8", "surrogatepass")).hexdigest()


def _draws(instance: Instance) -> int:
    """Return how often the model answers a request: repeating a deterministic request gives the same answer."""
    return int(instance.repeats or 1) if _is_random(instance) else 1


def _is_random(instance: Instance) -> bool:
    return instance.request_type == "generate_until" and bool(instance.args[1].get("do_sample"))
