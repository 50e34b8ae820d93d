"""A store, its coordinators, and evaluations of the task `steps`, whose log says what was run."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from machines import wait_for
from migrated import migrated_store
from queue_steps import ask, cancel, retry, submission
from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.checkpoints.reference import identify
from evalsvc.cluster.cluster import Cluster
from evalsvc.config import Settings
from evalsvc.service.coordinator import ClusterFactory, Coordinator
from evalsvc.spec.documents.history import ValueSeries
from evalsvc.spec.suite import parse_suite
from evalsvc.store.history.reading import read_history
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.runs.posting import submit
from evalsvc.store.session import Store
from evalsvc.store.tables import OVER, Attempt, Evaluation, Shard

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm" / "01_rotary_default_ln_swiglu" / "checkpoints" / "epoch_1.pt"


class Laboratory:
    def __init__(self, folder: Path, cluster: ClusterFactory = Cluster, checkpoint: Path = GOLDEN) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        self.store: Store = migrated_store(folder / "evalsvc.db")
        self.checkpoint = checkpoint
        self._cluster = cluster
        self._coordinators: list[Coordinator] = []

    def start(self, **settings: Any) -> Coordinator:
        """Start a coordinator, with two workers of its own unless the settings say otherwise."""
        defaults: dict[str, Any] = {"data_dir": str(self.data), "grace": 1.0, "devices": "cpu,cpu"}
        coordinator = Coordinator(self.store, Settings(**(defaults | settings)), cluster=self._cluster)
        coordinator.start()
        self._coordinators.append(coordinator)
        return coordinator

    def wake(self) -> None:
        for coordinator in self._coordinators:
            coordinator.wake()

    def post(self, name: str = "steps", step: int = 1, run: str = "run-a", spool: str = "none", **fields: Any) -> int:
        task = {"kind": "steps", "log": str(self.folder / f"{name}.log"), "seconds": 0.01, **fields}
        suite = parse_suite({"tasks": [task]}, name)
        path, identity = str(self.checkpoint), identify(self.checkpoint)
        with self.store.transaction() as session:
            posted = submission(step, run=run, uri=path, path=path, identity=identity, spool=spool)
            evaluation: int = submit(session, posted, [suite]).evaluations[0].id
        self.wake()
        return evaluation

    def cancel(self, *evaluations: int) -> None:
        for evaluation in evaluations:
            cancel(self.store, evaluation)
        self.wake()

    def retry(self, evaluation: int) -> None:
        retry(self.store, evaluation)
        self.wake()

    def wait_until(self, condition: Callable[[Session], Any], seconds: float = 120) -> None:
        wait_for(lambda: ask(self.store, condition), "what the test waits for", seconds)

    def is_over(self, evaluation: int) -> bool:
        return ask(self.store, find_evaluation, evaluation).state in OVER

    def wait(self, evaluation: int, seconds: float = 120) -> Evaluation:
        self.wait_until(lambda _: self.is_over(evaluation), seconds)
        return ask(self.store, find_evaluation, evaluation)

    def succeeds(self, *evaluations: int) -> bool:
        return {self.wait(evaluation).state for evaluation in evaluations} == {"succeeded"}

    def failure(self, evaluation: int) -> tuple[str, str]:
        failed = self.wait(evaluation)
        assert failed.error is not None
        assert failed.state == "failed"
        return failed.error["code"], failed.error["message"]

    def log(self, name: str = "steps") -> list[tuple[int, int, str]]:
        """(shard, step, worker) of every step that was begun."""
        path = self.folder / f"{name}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(shard), int(step), worker) for shard, step, worker in map(str.split, lines)]

    def steps(self, name: str = "steps") -> Counter[tuple[int, int]]:
        return Counter((shard, step) for shard, step, _ in self.log(name))

    def wait_for_steps(self, *names: str) -> None:
        self.wait_until(lambda _: all(self.log(name) for name in names or ("steps",)))

    def attempts(self, name: str = "steps") -> list[tuple[int, str, datetime]]:
        """(shard, outcome, start) of the attempts of its run shards, in the order of their start."""
        query = select(Shard.index, Attempt.outcome, Attempt.started_at).join(Attempt.shard).join(Shard.task)
        query = query.join(Evaluation).where(Shard.stage == "run", Evaluation.suite == name)
        with self.store.reading() as session:
            rows = session.execute(query.order_by(Attempt.started_at, Attempt.number))
            return [(row.index, row.outcome, row.started_at) for row in rows]

    def outcomes(self, name: str = "steps") -> Counter[str]:
        return Counter(outcome for _, outcome, _ in self.attempts(name))

    def failed_attempts(self) -> int:
        return ask(self.store, lambda session: sum(session.scalars(select(Shard.failed_attempts))))

    def history(self) -> list[ValueSeries]:
        return ask(self.store, read_history, "run-a").series

    def close(self) -> None:
        for coordinator in self._coordinators:
            coordinator.stop()
        self.store.close()


def begun_on_two(laboratory: Laboratory, shards: int = 2) -> None:
    def both() -> bool:
        log = laboratory.log()
        return len({process for *_, process in log}) == 2 and len({shard for shard, *_ in log}) >= shards

    wait_for(both, "both workers work", 120)


def just_begun(laboratory: Laboratory, process: int) -> int:
    """Wait until a process begins a shard: its index, and all of its steps but the first lie before it."""

    def begun() -> list[int]:
        steps = [(shard, step) for shard, step, worker in laboratory.log() if worker == str(process)]
        return [shard for shard, step in steps[-1:] if step == 0]

    [shard] = wait_for(begun, f"process {process} begins a shard", 120)
    return int(shard)
