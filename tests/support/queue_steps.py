"""The steps of an evaluation done by hand, for tests of the store without workers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalsvc.checkpoints.reference import Identity
from evalsvc.messages import ShardResult
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue.shards import Assignment, finish, take
from evalsvc.store.runs.posting import Submission, submit
from evalsvc.store.runs.virtual import resolve_expression
from evalsvc.store.session import Store


def suite(name: str = "quick", limit: int = 1, tasks: int = 1, kind: str = "loss") -> Suite:
    """A suite whose identity depends on `limit`."""
    specs = (TaskSpec(kind, f"{kind}-{index}", {"data": "/data.jsonl", "limit": limit}) for index in range(tasks))
    return Suite(name, "", tuple(specs))


def submission(step: int = 25, **fields: Any) -> Submission:
    defaults: dict[str, Any] = {
        "run": "run-a",
        "step": step,
        "uri": f"/checkpoints/epoch_{step}.pt",
        "path": f"/checkpoints/epoch_{step}.pt",
        "identity": Identity(size=100, mtime_ns=1),
    }
    return Submission(**(defaults | fields))


def enter(store: Store, posted: Submission, *suites: Suite) -> list[int]:
    """Submit; the ids of the evaluations."""
    with store.transaction() as session:
        submitted = submit(session, posted, suites, find=lambda name: suite(name))
        return [evaluation.id for evaluation in submitted.evaluations]


def enter_virtual(store: Store, run: str, text: str, **fields: Any) -> list[int]:
    """Submit an expression as step 9 of a run, to be evaluated; the ids of the evaluations."""
    with store.reading() as session:
        parents = [parent.id for parent in resolve_expression(session, text).parents]
    return enter(
        store, submission(9, run=run, uri=text, path=text, identity=Identity(0, 0), parents=parents, **fields), suite()
    )


def metric(value: float, name: str = "loss/text", limit: int = 1, **fields: Any) -> MetricValue:
    defaults: dict[str, Any] = {
        "stderr": 0.1,
        "n": 8,
        "unit": "nats/token",
        "direction": "lower",
        "protocol": Protocol({"limit": limit}),
    }
    return MetricValue(name, value, **(defaults | fields))


def result(
    *metrics: MetricValue, items: Sequence[Mapping[str, Any]] = (), warnings: Sequence[Mapping[str, str]] = ()
) -> ShardResult:
    """What a merge brings back."""
    return ShardResult(
        output={
            "metrics": [item.to_json() for item in metrics],
            "protocols": {item.protocol.id: dict(item.protocol.content) for item in metrics},
            "items": list(items),
            "warnings": list(warnings),
        },
        provenance={"device": "cpu"},
    )


def plan(shards: int, looks: Sequence[int] = (), until: Mapping[str, Any] | None = None) -> ShardResult:
    """What the planning of a task brings back: so many shards of 10 units, looked at after so many of them."""
    payloads = [{"index": index, "units": 10} for index in range(shards)]
    return ShardResult(
        output={
            "shards": payloads,
            "total": 10 * shards,
            "unit": "sequences",
            "looks": [[look, 10 * look] for look in looks],
            "until": until,
        }
    )


def next_shard(store: Store) -> Assignment | None:
    with store.transaction() as session:
        return take(session, spooled=lambda checkpoint: Path("/spool") / str(checkpoint.id))


def store_result(store: Store, assignment: Assignment, outcome: ShardResult) -> bool:
    with store.transaction() as session:
        return finish(session, assignment, outcome)


def evaluate_whole(store: Store, *metrics: MetricValue, shards: int = 1, **found: Any) -> None:
    """Run everything that waits, each merge bringing back `metrics`, and the `items` and `warnings` of `found`."""
    while assignment := next_shard(store):
        stages = {"plan": plan(shards), "run": ShardResult(output={"sum": 1}), "merge": result(*metrics, **found)}
        assert store_result(store, assignment, stages[assignment.request.stage])


def state(store: Store, evaluation_id: int) -> str:
    with store.reading() as session:
        return find_evaluation(session, evaluation_id).state


def begin(store: Store, shards: int = 2, tasks: int = 1) -> tuple[int, list[Assignment]]:
    """An evaluation whose first task is planned and whose run shards are dispatched."""
    [evaluation] = enter(store, submission(), suite(tasks=tasks))
    first = next_shard(store)
    assert first is not None
    store_result(store, first, plan(shards))
    return evaluation, [assignment for _ in range(shards) if (assignment := next_shard(store))]
