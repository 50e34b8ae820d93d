"""A store, a coordinator in this process, and the machines that it works on."""

from datetime import datetime
from pathlib import Path
from typing import Any

from machines import Machines, wait_for
from migrated import migrated_store
from queue_steps import submission
from sqlalchemy import select

from evalsvc.checkpoints.reference import identify
from evalsvc.config import Settings
from evalsvc.service.coordinator import Coordinator
from evalsvc.spec.suite import parse_suite
from evalsvc.store.history.reading import read_history
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.runs.posting import submit
from evalsvc.store.session import Store
from evalsvc.store.tables import OVER, Attempt, Evaluation, Shard

TTL = 5
"""EVALSVC_WORKER_TTL in these tests, in seconds."""

GIVEN_UP_WITHIN = 2 * TTL + 10
"""Seconds after which a silent worker is given up at the latest."""

BUSY = 20
"""Seconds more for a busy machine."""


class Laboratory:
    """A store, its coordinator, and the machines that it works on."""

    def __init__(self, folder: Path, machines: Machines, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.machines = machines
        self.store: Store = migrated_store(folder / "evalsvc.db")
        defaults: dict[str, Any] = {"data_dir": str(folder), "grace": 1.0, "worker_ttl": TTL, **machines.settings()}
        self.coordinator = Coordinator(self.store, Settings(**(defaults | settings)))
        self.coordinator.start()
        source = Path(__file__).parents[1] / "golden" / "open_lm" / "01_rotary_default_ln_swiglu"
        self.checkpoint = source / "checkpoints" / "epoch_1.pt"

    def post(self, name: str, step: int = 1, **parameters: Any) -> int:
        """The id of an evaluation by a suite that writes `NAME.log`."""
        suite = parse_suite({"tasks": [{"kind": "steps", "log": str(self.folder / f"{name}.log"), **parameters}]}, name)
        path = str(self.checkpoint)
        posted = submission(step, run=name, uri=path, path=path, identity=identify(self.checkpoint))
        with self.store.transaction() as session:
            evaluation: int = submit(session, posted, [suite], find=lambda _: suite).evaluations[0].id
        self.coordinator.wake()
        return evaluation

    def log(self, name: str) -> list[tuple[int, int, int]]:
        """(shard, step, process) of every step that was begun."""
        path = self.folder / f"{name}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(shard), int(step), int(process)) for shard, step, process in map(str.split, lines)]

    def wait(self, evaluation: int, seconds: float = 120) -> Evaluation:
        def over() -> Evaluation | None:
            with self.store.reading() as session:
                found = find_evaluation(session, evaluation)
                return found if found.state in OVER else None

        found: Evaluation = wait_for(over, f"the end of evaluation {evaluation}", seconds)
        return found

    def attempts(self, name: str) -> list[tuple[int, str, datetime]]:
        """(shard, outcome, start) of the attempts of its run shards, in the order of their start."""
        with self.store.reading() as session:
            rows = session.execute(
                select(Shard.index, Attempt.outcome, Attempt.started_at)
                .join(Attempt.shard)
                .join(Shard.task)
                .join(Evaluation)
                .where(Shard.stage == "run", Evaluation.suite == name)
                .order_by(Attempt.started_at)
            )
            return [(row.index, row.outcome, row.started_at) for row in rows]

    def failed_attempts(self) -> int:
        with self.store.reading() as session:
            return sum(session.scalars(select(Shard.failed_attempts)))

    def value(self, name: str) -> list[float]:
        with self.store.reading() as session:
            values: list[float] = read_history(session, name)["series"][0]["value"]
            return values

    def close(self) -> None:
        self.coordinator.stop()
        self.store.close()


def begun_on_two(laboratory: Laboratory, name: str, shards: int = 2) -> None:
    """Until two processes work, and at least `shards` shards were begun."""

    def both() -> bool:
        log = laboratory.log(name)
        return len({process for _, _, process in log}) == 2 and len({shard for shard, _, _ in log}) >= shards

    wait_for(both, "both workers work", 120)


def just_begun(laboratory: Laboratory, name: str, process: int) -> int:
    """Until a process begins a shard: its index, and all of its steps but the first lie before it."""

    def begun() -> list[int]:
        steps = [(shard, step) for shard, step, worker in laboratory.log(name) if worker == process]
        return [shard for shard, step in steps[-1:] if step == 0]

    [shard] = wait_for(begun, f"process {process} begins a shard", 120)
    return int(shard)
