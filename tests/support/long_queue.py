"""A long queue, entered by a few statements: as many posts would take minutes."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from evalsvc.store.tables import Checkpoint, Evaluation, Run, Shard, Task

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
        Shard: [
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
