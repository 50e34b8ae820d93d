"""The coordinator with real worker processes; what needs none of them is in `test_coordinator`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from steps_evaluations import begun, enter, steps_done, steps_suite, wait, wait_until, workers_used

from evalsvc.config import Settings
from evalsvc.service.coordinator import Coordinator
from evalsvc.store.history.reading import read_history
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue.evaluations import cancel_evaluation, retry_evaluation
from evalsvc.store.results import read_results
from evalsvc.store.session import Store
from evalsvc.store.tables import OVER, Shard

pytestmark = pytest.mark.usefixtures("child_process")


@pytest.fixture
def coordinate(store: Store, tmp_path: Path) -> Iterator[Callable[..., Coordinator]]:
    """Starts a coordinator with two workers of its own; the test's end stops it."""
    started: list[Coordinator] = []

    def start(**settings: Any) -> Coordinator:
        options = {"data_dir": str(tmp_path / "data"), "grace": 1.0, "devices": "cpu,cpu", **settings}
        started.append(Coordinator(store, Settings(**options)))
        started[-1].start()
        return started[-1]

    yield start
    for coordinator in started:
        coordinator.stop()


@pytest.fixture
def checkpoint_file(open_lm_case: Path) -> Path:
    return open_lm_case / "checkpoints" / "epoch_1.pt"


def test_an_evaluation_runs_on_all_workers_with_progress(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    coordinator = coordinate()
    first = enter(store, checkpoint_file, steps_suite(tmp_path, "first", shards=1, steps=1), step=0)
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=4, steps=8, seconds=0.1))
    coordinator.wake()
    seen: list[int] = []

    def watch(session: Any) -> bool:
        seen.extend(live.done for live in coordinator.live().values() if live.per_second)
        return find_evaluation(session, evaluation).state in OVER

    wait_until(store, watch)
    assert wait(store, evaluation).state == wait(store, first).state == "succeeded"
    assert coordinator.workers() == len(workers_used(tmp_path)) == 2
    assert max(seen) > 0
    assert set(steps_done(tmp_path).values()) == {1}
    with store.reading() as session:
        assert read_history(session, "run-a")["series"][0]["value"] == [1, 32]
        found = read_results(session, tmp_path / "data" / "items", "run-a", 1, "raw")
        assert found["provenance"]["steps"]["notes"]["base"] == {"label": "run 'run-a' step 0", "layout": None}


def test_a_poison_shard_fails_its_own_evaluation_after_three_attempts_and_no_other(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    poisoned = enter(store, checkpoint_file, steps_suite(tmp_path, "poisoned", shards=3, poison=1))
    innocent = enter(store, checkpoint_file, steps_suite(tmp_path, "innocent", shards=8, seconds=0.1))
    coordinate()
    assert wait(store, innocent).state == "succeeded"
    failed = wait(store, poisoned)
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "worker_died"
    assert "died while it ran this shard, 3 times" in failed.error["message"]
    assert set(steps_done(tmp_path, "innocent").values()) == {1}
    assert steps_done(tmp_path, "poisoned")["1", "0"] == 3
    assert steps_done(tmp_path, "poisoned")["0", "3"] == 1


def test_what_is_cancelled_makes_room_whether_it_listens_or_not_and_can_be_retried(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    coordinator = coordinate(grace=0.5)
    polite = enter(store, checkpoint_file, steps_suite(tmp_path, "polite", shards=1, steps=30, seconds=0.1))
    deaf = enter(store, checkpoint_file, steps_suite(tmp_path, "deaf", shards=1, seconds=60, deaf=True))
    other = enter(store, checkpoint_file, steps_suite(tmp_path, "other", shards=2, steps=1))
    wait_until(store, lambda session: begun(tmp_path, "polite") and begun(tmp_path, "deaf"))
    with store.transaction() as session:
        cancel_evaluation(session, polite)
        cancel_evaluation(session, deaf)
    coordinator.wake()
    assert wait(store, other).state == "succeeded"
    wait_until(store, lambda session: "running" not in session.scalars(select(Shard.state)).all())
    assert len(steps_done(tmp_path, "polite")) < 30
    with store.transaction() as session:
        retry_evaluation(session, polite)
    coordinator.wake()
    assert wait(store, polite).state == "succeeded"
    with store.reading() as session:
        assert find_evaluation(session, deaf).state == "cancelled"
