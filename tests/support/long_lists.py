"""Ten thousand rows in each list of the service and in its queue, entered by a few statements."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from evalsvc.spec.suite import parse_suite
from evalsvc.store import tables
from evalsvc.store.tables import Artifact, Base, Checkpoint, Evaluation, MetricValue, Protocol, Run, Series, Suite, Task

ERROR = {"code": "non_finite", "message": "a loss is NaN at step 25, layer 3; " * 20}

CONTENT = {"task": "loss", "version": 1, "data": "d" * 64, "template": "a text of some length, " * 40}


def fill_lists(session: Session, rows: int) -> None:
    """Enter `rows` runs, and of the first one as many checkpoints, evaluations, artifacts and protocols; and suites.

    The first evaluation has as many artifacts again.
    """
    ids = range(1, rows + 1)
    file = {"variant": "raw", "uri": f"/checkpoints/{'r' * 80}.pt", "path": "/a", "size": 1, "mtime_ns": 1}
    artifact: dict[str, Any] = {"kind": "grid", "media_type": "image/png", "sha256": "a" * 64, "size": 10}
    artifact["details"] = {"prompts": ["a seven"] * 8}
    suite = parse_suite({"tasks": [{"kind": "loss", "data": "datasets:heldout_text.jsonl"}]}, "any")
    content: dict[type[Base], list[dict[str, Any]]] = {
        Run: [{"id": number, "name": f"run-{number:05}"} for number in ids],
        Checkpoint: [{"id": number, "run_id": 1, "step": number, "tags": {}, **file} for number in ids],
        Evaluation: [
            {"id": number, "checkpoint_id": number, "suite": "loss", "suite_digest": "0" * 64, "state": "failed"}
            | {"error": ERROR}
            for number in ids
        ],
        Task: [
            {"id": number, "evaluation_id": number, "index": 0, "kind": "loss", "name": "loss", "parameters": {}}
            for number in ids
        ],
        Artifact: [{"task_id": task, "name": f"{number}.png", **artifact} for number in ids for task in {1, number}],
        Protocol: [{"id": f"{number:016x}", "content": CONTENT} for number in ids],
        Series: [
            {"id": number, "run_id": 1, "metric": f"loss/{number}", "variant": "raw", "unit": "nats/token"}
            | {"protocol_id": f"{number:016x}", "direction": "lower"}
            for number in ids
        ],
        tables.Import: [{"id": 1, "run_id": 1, "source": "a sheet", "values": rows}],
        MetricValue: [{"series_id": number, "step": 1, "value": 0.5, "import_id": 1} for number in ids],
        Suite: [{"name": f"suite-{number:05}", "content": suite.to_json(), "digest": suite.digest} for number in ids],
    }
    for table, records in content.items():
        session.execute(sa.insert(table), records)
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.text("ANALYZE"))  # as its autovacuum does within a minute


RUNS = 10


def fill_queue(session: Session, evaluations: int, succeeded: int = 0) -> None:
    """Enter evaluations of a checkpoint each, into an empty database; the first ones have succeeded."""
    ids = range(1, evaluations + 1)
    state = {number: "succeeded" if number <= succeeded else "queued" for number in ids}
    file = {"variant": "raw", "uri": "/a", "path": "/a", "size": 1, "mtime_ns": 1}
    suite = {"suite": "loss", "suite_digest": "0"}
    task = {"index": 0, "kind": "loss", "name": "loss", "parameters": {}}
    rows = {
        Run: [{"id": run, "name": f"run-{run}"} for run in range(1, RUNS + 1)],
        Checkpoint: [{"id": number, "run_id": number % RUNS + 1, "step": number, **file} for number in ids],
        Evaluation: [{"id": number, "checkpoint_id": number, "state": state[number], **suite} for number in ids],
        Task: [{"id": number, "evaluation_id": number, "state": state[number], **task} for number in ids],
        tables.Shard: [
            {"task_id": number, "stage": stage, "index": 0, "state": state[number]}
            for number in ids
            for stage in (("plan", "run", "merge") if number <= succeeded else ("plan",))
        ],
    }
    for table, content in rows.items():
        session.execute(sa.insert(table), content)
    if session.get_bind().dialect.name == "postgresql":
        for name in ("runs", "checkpoints", "evaluations", "tasks"):
            session.execute(sa.text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), {evaluations})"))
