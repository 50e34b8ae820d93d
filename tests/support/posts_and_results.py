"""What tests post and how, and what the stages of its tasks bring back: suites, metrics, plans and results."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgpack
from sqlalchemy.orm import Session

from evalsvc.checkpoints.expression import canonical
from evalsvc.checkpoints.reference import Identity
from evalsvc.files.artifacts import KeptArtifact
from evalsvc.files.items import pack_items
from evalsvc.messages import KeptResult, LookResult, PlanResult, ShardDocument, ShardResult
from evalsvc.spec.looks import Until
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.store.lookup import get_or_create_run
from evalsvc.store.runs.base import name_base
from evalsvc.store.runs.posting import Submission, Submitted, due_suites, evaluate, plan_of, submit
from evalsvc.store.runs.virtual import resolve_expression
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint

Returned = TypeVar("Returned")


def suite(name: str = "quick", limit: int = 1, tasks: int = 1, kind: str = "loss") -> Suite:
    """A suite whose identity depends on `limit`."""
    specs = (TaskSpec(kind, f"{kind}-{index}", {"data": "/data.jsonl", "limit": limit}) for index in range(tasks))
    return Suite(name, "", tuple(specs))


def submission(step: int = 25, **fields: Any) -> Submission:
    file = f"/checkpoints/epoch_{step}.pt"
    defaults = {"run": "run-a", "step": step, "uri": file, "path": file, "identity": Identity(size=100, mtime_ns=1)}
    return Submission(**(defaults | fields))


def metric(value: float, name: str = "loss/text", limit: int = 1, **fields: Any) -> MetricValue:
    given = {"stderr": 0.1, "n": 8, "unit": "nats/token", "direction": "lower", "protocol": Protocol({"limit": limit})}
    given |= fields
    has_interval = given["stderr"] is not None and math.isfinite(value)
    return MetricValue(name, value, **{"ends": (value - 0.25, value + 0.25) if has_interval else None} | given)


def ran(**output: Any) -> ShardResult:
    """What a run shard brings back: an output with these fields."""
    return ShardResult(msgpack.packb(output))


def looked(*metrics: MetricValue) -> LookResult:
    """What a look brings back."""
    protocols = {item.protocol.id: dict(item.protocol.content) for item in metrics}
    return LookResult([item.to_json() for item in metrics], protocols)


def result(*metrics: MetricValue, items: Sequence[Mapping[str, Any]] | bytes | str = (), **found: Any) -> ShardResult:
    """What is kept of a merge: metrics, and `items`, `notes`, `warnings` or `artifacts`."""
    packed = items if isinstance(items, (bytes, str)) else pack_items(items)
    return ShardResult(KeptResult(**vars(looked(*metrics)), items=packed, **found), provenance={"device": "cpu"})


def kept_artifact(sha256: str, name: str = "grid.png") -> KeptArtifact:
    """An artifact of a merge whose content is kept already."""
    return KeptArtifact("grid", name, "image/png", {}, sha256, 3)


def plan(shards: int, looks: Sequence[int] = (), until: Mapping[str, Any] | None = None) -> ShardResult:
    """What the planning of a task brings back: so many shards of 10 units, looked at after so many of them."""
    payloads: list[ShardDocument] = [{"index": index, "units": 10} for index in range(shards)]
    stop = None if until is None else Until(**until)
    return ShardResult(PlanResult(payloads, 10 * shards, "sequences", [(look, 10 * look) for look in looks], stop))


def ask(store: Store, question: Callable[..., Returned], *arguments: Any, **options: Any) -> Returned:
    """What a function answers that reads the store."""
    with store.reading() as session:
        return question(session, *arguments, **options)


def act(store: Store, change: Callable[..., Returned], *arguments: Any, **options: Any) -> Returned:
    """What a function returns that changes the store, in a transaction of its own."""
    with store.transaction() as session:
        return change(session, *arguments, **options)


def enter(store: Store, posted: Submission, *suites: Suite) -> list[int]:
    """Submit a checkpoint; the ids of its evaluations."""
    return [evaluation.id for evaluation in act(store, submit, posted, suites).evaluations]


def request(store: Store, checkpoint: int = 1, by: Suite | None = None) -> int:
    """Ask for an evaluation of a checkpoint that was posted; its id, which is new where the last one is over."""
    with store.transaction() as session:
        return evaluate(session, session.get_one(Checkpoint, checkpoint), by or suite(), priority=0)[0].id


def submit_due(session: Session, posted: Submission) -> Submitted:
    """Submit for the suites that are due by the run's plan."""
    plan = plan_of(session, posted.run)
    return submit(session, posted, [suite(name) for name in due_suites(plan, posted.step)], plan)


def resolve(store: Store, text: str) -> tuple[str, list[int]]:
    """The expression in its one spelling, and the ids of its checkpoints."""
    with store.reading() as session:
        found = resolve_expression(session, text)
        return canonical(found.expression), [parent.id for parent in found.parents]


def enter_virtual(store: Store, run: str, text: str, *suites: Suite, step: int = 30, **fields: Any) -> list[int]:
    """Submit an expression as a checkpoint of a run; the ids of its evaluations."""
    uri, parents = resolve(store, text)
    file = {"uri": uri, "path": uri, "identity": Identity(0, 0)}
    return enter(store, submission(step, run=run, parents=parents, **file, **fields), *suites)


def set_base(store: Store, run: str, of: str, step: int, variant: str = "raw") -> None:
    with store.transaction() as session:
        name_base(session, get_or_create_run(session, run), of, step, variant)


def set_spool_state(store: Store, checkpoint: int, state: str | None) -> None:
    with store.transaction() as session:
        session.get_one(Checkpoint, checkpoint).spool_state = state
