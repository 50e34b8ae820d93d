"""Benchmarks on a model, in parts that can be restarted. The tasks of a suite that ask benchmarks are made of this.

    plan_documents → asked_documents → answer_requests, shard by shard → merge_answers

Documents of all benchmarks are one list, in the order of the suite, and a shard is a range of it: small benchmarks
share shards, and large ones are cut. Only `answer_requests` needs a model.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from lm_eval.api.instance import Instance

from evalsvc.errors import DataChanged
from evalsvc.language.benchmarks import Benchmark, Loaded
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.lm import OpenLM, from_message, to_message
from evalsvc.language.results import Results, results
from evalsvc.language.scoring import IdCounts
from evalsvc.spec.protocol import canonical_json, digest


def plan_documents(loaded: Loaded, encoding: TextEncoding, shard_size: int) -> list[dict[str, Any]]:
    """One payload a shard of `shard_size` documents: its range `start`, `stop`, `units` (documents), the `digest` of
    the benchmarks, and what the numbers depend on beside them: `encoding` and `ids`.

    Every request is encoded, so that what cannot be asked is told before anything is scored.

    Raises:
        InvalidData: names benchmark and document: nothing of a continuation is left as tokens of its own, it is longer
            than the model's input, or the options of a generation are not understood.
    """
    for benchmark in loaded.benchmarks:
        _require_encodable(benchmark, encoding)
    count = sum(len(benchmark.documents) for benchmark in loaded.benchmarks)
    common = {
        "digest": _digest(loaded),
        "encoding": asdict(encoding.identity),
        "ids": IdCounts.of(encoding.layout).to_json(),
    }
    bounds = pairwise([*range(0, count, shard_size), count])
    return [{"start": start, "stop": stop, "units": stop - start, **common} for start, stop in bounds]


@dataclass(frozen=True)
class Asked:
    """The requests of a shard, document by document."""

    instances: Sequence[Instance]
    names: Sequence[str]
    """What messages call each."""
    digests: Sequence[str]
    """Of each request all that its answer depends on beside model and encoding: requests with the same get the same."""

    def some(self, places: Sequence[int]) -> Asked:
        return Asked(
            [self.instances[place] for place in places],
            [self.names[place] for place in places],
            [self.digests[place] for place in places],
        )


def asked_documents(loaded: Loaded, shard: Mapping[str, Any], encoding: TextEncoding) -> Asked:
    """What a shard of `plan_documents` asks.

    Raises:
        DataChanged: the benchmarks or the tokenizer are not what was planned.
    """
    require_planned(loaded, shard)
    if asdict(encoding.identity) != shard["encoding"]:
        raise DataChanged.since_planned(f"the tokenizer {encoding.tokenizer.path} or the layout")
    asked = list(_asked(loaded, shard["start"], shard["stop"]))
    instances = [benchmark.instances[position] for benchmark, position in asked]
    names = [benchmark.describe(position) for benchmark, position in asked]
    return Asked(instances, names, [_request_digest(instance) for instance in instances])


def answer_requests(lm: OpenLM, asked: Asked, report: Callable[[int], None]) -> dict[str, Any]:
    """The model's answers by the requests' digests, JSON-able; what is asked twice is answered once. `report` gets the
    requests done, of `len(asked.digests)`.

    Raises:
        NonFinite: names benchmark, document and the first part of the model that is at fault.
    """
    place = {each: index for index, each in reversed(list(enumerate(asked.digests)))}
    copies = [index for index in sorted(place.values()) for _ in range(_draws(asked.instances[index]))]
    lm.report = lambda done: report(done * len(asked.digests) // max(len(copies), 1))
    answers = iter(lm.answers([asked.instances[index] for index in copies], lambda index: asked.names[copies[index]]))
    return {
        asked.digests[index]: to_message([next(answers) for _ in range(_draws(asked.instances[index]))])
        for index in sorted(place.values())
    }


def merge_answers(
    loaded: Loaded,
    shards: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
) -> Results:
    """Metrics and items of all shards, in the order of the plan. `protocol` is what the task adds to it.

    Raises:
        DataChanged: the benchmarks are not what was planned.
        InvalidData: a benchmark's own code fails on an answer.
    """
    for shard in shards:
        require_planned(loaded, shard)
    answers = [from_message(message) for output in outputs for message in output["answers"]]
    common = {**protocol, **shards[0]["encoding"]}
    return results(loaded, answers, IdCounts(**shards[0]["ids"]), common)


def require_planned(loaded: Loaded, shard: Mapping[str, Any]) -> None:
    """Raise DataChanged unless the benchmarks are what was planned."""
    if _digest(loaded) != shard["digest"]:
        names = ", ".join(benchmark.name for benchmark in loaded.benchmarks)
        raise DataChanged.since_planned(f"what {names} ask", "YAML, data or lm-eval")


_encodable: set[str] = set()
"""What this process has encoded without a complaint: the next checkpoint is asked the same."""


def _require_encodable(benchmark: Benchmark, encoding: TextEncoding) -> None:
    key = digest([benchmark.digest, asdict(encoding.identity)])
    if key not in _encodable:
        deque(encoding.encode_all(benchmark.instances, benchmark.describe), maxlen=0)
        _encodable.add(key)


def _digest(loaded: Loaded) -> str:
    return digest([[benchmark.name, benchmark.digest] for benchmark in loaded.benchmarks])


def _asked(loaded: Loaded, start: int, stop: int) -> Iterator[tuple[Benchmark, int]]:
    """The requests of a range of documents: benchmark, and place among its instances."""
    documents = [(benchmark, document) for benchmark in loaded.benchmarks for document in benchmark.documents]
    for benchmark, document in documents[start:stop]:
        yield from ((benchmark, position) for position in range(document.requests.start, document.requests.stop))


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
