"""The coordinator on workers in this process: what runs, how often, and what is kept when something dies."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from in_process_cluster import InProcessCluster, with_run
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from steps_evaluations import begun, enter, steps_done, steps_suite, wait, wait_until, workers_used
from steps_in_process import run_steps

from evalsvc.cluster.cluster import Cluster
from evalsvc.config import Settings
from evalsvc.files.artifacts import artifact_path
from evalsvc.service import coordinator as coordinator_module
from evalsvc.service import shard_files
from evalsvc.service.coordinator import Coordinator
from evalsvc.service.spooler import Spooler
from evalsvc.store.history.reading import read_history
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue import back_off, shards
from evalsvc.store.queue.evaluations import cancel_evaluation, retry_evaluation
from evalsvc.store.results import read_results, read_task_items
from evalsvc.store.runs import posting
from evalsvc.store.session import Store
from evalsvc.store.tables import OVER, Artifact, Attempt, Checkpoint, Shard, Task
from evalsvc.store.views import evaluation_view

TICK = 0.02


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside of this process has to be waited for."""
    monkeypatch.setattr(coordinator_module, "TICK", TICK)
    monkeypatch.setattr(coordinator_module, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(coordinator_module, "KILL_AGAIN", 0.1)
    monkeypatch.setattr(coordinator_module, "LOST_AFTER", 0.1)
    monkeypatch.setattr(back_off, "FIRST", 0.05)


@pytest.fixture
def coordinate(store: Store, tmp_path: Path) -> Iterator[Callable[..., Coordinator]]:
    """Starts coordinators with two workers, or with one for each of `devices`; the test's end stops them."""
    started: list[Coordinator] = []

    def start(on: Store = store, **settings: Any) -> Coordinator:
        defaults: dict[str, Any] = {"data_dir": str(tmp_path / "data"), "grace": 1.0, "devices": "cpu,cpu"}
        coordinator = Coordinator(on, Settings(**(defaults | settings)), cluster=with_run(run_steps))
        coordinator.start()
        started.append(coordinator)
        return coordinator

    yield start
    for coordinator in started:
        coordinator.stop()


def cluster_of(coordinator: Coordinator) -> InProcessCluster:
    assert isinstance(coordinator._cluster, InProcessCluster)
    return coordinator._cluster


@pytest.fixture
def checkpoint_file(tmp_path: Path) -> Path:
    """A posted file of the test's own, which may be changed and deleted; no worker looks into it."""
    target = tmp_path / "run" / "epoch_1.pt"
    target.parent.mkdir()
    target.write_bytes(b"weights")
    return target


def test_the_cluster_in_this_process_has_all_that_the_real_one_has() -> None:
    """What it did not have would be Dask's, without a client."""
    public = {name for name in vars(Cluster) if not name.startswith("_")}
    assert public <= vars(InProcessCluster).keys()
    assert {name: signature(vars(Cluster)[name]) for name in public} == {
        name: signature(vars(InProcessCluster)[name]) for name in public
    }


def test_large_items_are_a_file_that_a_restart_keeps(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    """An orphan is swept when the service starts; what a row names must not go with it."""
    large = steps_suite(tmp_path, "large", shards=1, steps=9_000, seconds=0, looks=True)
    evaluation = enter(store, checkpoint_file, large)
    small = enter(store, checkpoint_file, steps_suite(tmp_path, "small", shards=1, steps=4, seconds=0, looks=True))
    first = coordinate()
    assert wait(store, evaluation).state == wait(store, small).state == "succeeded"
    first.stop()
    folder = tmp_path / "data" / "items"
    (kept,) = (path for path in folder.rglob("*") if path.is_file())
    orphan = folder / "00" / ("0" * 64)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"of a service that was killed")
    second = coordinate()
    second.wake()
    wait_until(store, lambda _: not orphan.exists())
    with store.reading() as session:
        rows = session.execute(select(Task.items_sha256, Task.items).order_by(Task.id)).all()
        tables = [read_task_items(find_evaluation(session, number), folder)["steps"] for number in (evaluation, small)]
    assert [(row.items_sha256, row.items is None) for row in rows] == [(kept.name, True), (None, False)]
    assert [len(table) for table in tables] == [9_000, 4]
    assert tables[0].column("mark")[:4] == tables[1].column("mark"), "of the same checkpoint"


def test_what_comes_while_it_is_looked_whether_anything_waits_is_not_left_waiting(
    store: Store, checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = Coordinator(store, Settings(data_dir=str(tmp_path / "data")), cluster=with_run(run_steps))
    coordinator._hold_database()
    looks, handed_out = [], []

    def come_too_late() -> bool:
        looks.append(found := enter(store, checkpoint_file, steps_suite(tmp_path)))
        coordinator.wake()
        return found is None

    monkeypatch.setattr(coordinator._cluster, "free", lambda: ["tls://worker"])
    monkeypatch.setattr(coordinator._cluster, "submit", lambda key, *_: handed_out.append(key))
    monkeypatch.setattr(coordinator, "_is_queued", come_too_late)
    coordinator._dispatch()
    assert (len(looks), handed_out) == (1, [])
    coordinator._dispatch()
    assert handed_out == ["evaluation-1/shard-1/attempt-1"]
    coordinator._database_lock.release()


def test_an_idle_coordinator_asks_neither_database_nor_scheduler_until_it_is_woken(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = Coordinator(store, Settings(data_dir=str(tmp_path / "data")), cluster=with_run(run_steps))
    coordinator._hold_database()
    asked: list[str] = []
    monkeypatch.setattr(coordinator._cluster, "free", lambda: asked.append("scheduler") or ["tls://worker"])
    for _ in range(3):
        coordinator._dispatch()
    assert asked == ["scheduler"]
    coordinator.wake()
    coordinator._dispatch()
    assert asked == ["scheduler"] * 2
    coordinator._database_lock.release()


def test_an_evaluation_runs_on_all_workers_with_progress(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    coordinator = coordinate()
    first = enter(store, checkpoint_file, steps_suite(tmp_path, "first", shards=1, steps=1), step=0)
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=4, steps=8))
    coordinator.wake()
    seen: list[int] = []

    def watch(session: Any) -> bool:
        seen.extend(live.done for live in coordinator.live().values() if live.per_second)
        return find_evaluation(session, evaluation).state in OVER

    wait_until(store, watch)
    assert wait(store, evaluation).state == wait(store, first).state == "succeeded"
    assert coordinator.workers() == 2
    assert max(seen) > 0
    wait_until(store, lambda session: coordinator.live() == {})  # a moment after the result is in the database
    assert set(steps_done(tmp_path).values()) == {1}
    assert workers_used(tmp_path) == {"inproc://0", "inproc://1"}
    with store.reading() as session:
        assert read_history(session, "run-a")["series"][0]["value"] == [1, 32]
        found = read_results(session, tmp_path / "data" / "items", "run-a", 1, "raw")
        assert found["provenance"]["steps"]["notes"]["base"] == {
            "label": "run 'run-a' step 0",
            "layout": None,
        }


def test_a_poison_shard_fails_its_own_evaluation_after_three_attempts_and_no_other(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    poisoned = enter(store, checkpoint_file, steps_suite(tmp_path, "poisoned", shards=3, poison=1))
    innocent = enter(store, checkpoint_file, steps_suite(tmp_path, "innocent", shards=8))
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
    coordinator = coordinate(grace=0.2)
    polite = enter(store, checkpoint_file, steps_suite(tmp_path, "polite", shards=1, steps=30, seconds=0.05))
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


class UnansweredStore(Store):
    """Its connection breaks at a commit that `breaks_at` chooses: it is carried out, and nobody is told."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.broken: list[str] = []
        self.breaks_at: Callable[[Shard], bool] = lambda shard: False

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            yield session
            found = [shard for shard in session.scalars(select(Shard)) if self.breaks_at(shard)]
        if found:
            self.breaks_at = lambda shard: False
            self.broken.append(found[0].stage)
            raise OperationalError("COMMIT", {}, Exception("the connection broke"))


@pytest.mark.parametrize("state", ["running", "succeeded"])
def test_a_commit_without_an_answer_loses_nothing_and_runs_nothing_twice(
    coordinate: Callable[..., Coordinator], tmp_path: Path, checkpoint_file: Path, state: str
) -> None:
    """At a hand-out the shard was `running` for ever, with nobody to run it; at a result, the file with its output was
    removed as one that came too late, and the shard ran again."""
    store = UnansweredStore(f"sqlite:///{tmp_path / 'evalsvc.db'}")
    store.breaks_at = lambda shard: shard.stage == "run" and shard.index == 1 and shard.state == state
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=4, steps=2, size=200_000))
    coordinator = coordinate(store)
    assert wait(store, evaluation).state == "succeeded"
    coordinator.stop()
    assert store.broken == ["run"]
    assert set(steps_done(tmp_path).values()) == {1}
    with store.reading() as session:
        outcomes = Counter(session.scalars(select(Attempt.outcome)))
        assert outcomes == ({"succeeded": 6, "lost": 1} if state == "running" else {"succeeded": 6})
        assert set(session.scalars(select(Shard.failed_attempts))) == {0}
    store.close()


def test_a_shard_that_is_retried_while_it_stops_runs_again(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    """The old attempt takes its worker's place until it has stopped, and its end must not end the shard."""
    coordinator = coordinate(devices="cpu", grace=20.0)
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=1, steps=3, seconds=0.3))
    coordinator.wake()
    wait_until(store, lambda session: begun(tmp_path))
    with store.transaction() as session:
        cancel_evaluation(session, evaluation)
    wait_until(store, lambda _: any(item.cancelled_at for item in coordinator._in_flight.values()))
    with store.transaction() as session:
        retry_evaluation(session, evaluation)
    coordinator.wake()
    assert wait(store, evaluation).state == "succeeded"
    assert steps_done(tmp_path)["0", "2"] == 1
    with store.reading() as session:
        outcomes = session.scalars(select(Attempt.outcome).join(Shard).where(Shard.stage == "run")).all()
        assert outcomes == ["cancelled", "succeeded"]


def test_a_shard_that_overruns_its_deadline_is_stopped_and_tried_again(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    coordinate(devices="cpu", shard_deadline=0.3, max_attempts=2)
    slow = enter(store, checkpoint_file, steps_suite(tmp_path, shards=1, seconds=60))
    failed = wait(store, slow)
    assert failed.error is not None
    assert failed.error["code"] == "deadline_exceeded"
    assert "longer than 0.3 s, 2 times; raise EVALSVC_SHARD_DEADLINE" in failed.error["message"]
    with store.reading() as session:
        tried = select(Attempt.outcome).join(Attempt.shard).where(Shard.state == "failed")
        assert session.scalars(tried).all() == ["deadline_exceeded"] * 2


def test_a_shard_that_overruns_its_deadline_is_killed_until_it_is_gone(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    """On a machine that was busy it was killed while nobody knew its process yet, once and in vain, and ran on."""
    coordinator = coordinate(devices="cpu", shard_deadline=0.3, max_attempts=1)
    cluster_of(coordinator).kills_in_vain = 2
    slow = enter(store, checkpoint_file, steps_suite(tmp_path, shards=1, seconds=600))
    coordinator.wake()
    failed = wait(store, slow)
    assert failed.error is not None
    assert failed.error["code"] == "deadline_exceeded"


def test_shards_of_a_scheduler_that_went_away_run_again_uncharged(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    coordinator = coordinate()
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=2, steps=4, seconds=0.2))
    coordinator.wake()
    wait_until(store, lambda session: begun(tmp_path))
    cluster_of(coordinator).disconnect()
    assert wait(store, evaluation).state == "succeeded"
    with store.reading() as session:
        outcomes = Counter(session.scalars(select(Attempt.outcome).join(Shard).where(Shard.stage == "run")))
        assert outcomes["succeeded"] == 2
        assert outcomes["lost"] in (1, 2)
        assert set(session.scalars(select(Shard.failed_attempts))) == {0}


def test_stopping_stores_what_was_running_and_the_next_start_runs_only_the_rest(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    first = coordinate(grace=90.0)
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=6, steps=4, seconds=0.05))
    first.wake()
    wait_until(store, lambda session: begun(tmp_path))
    first.stop()
    assert 1 <= len({shard for shard, _ in steps_done(tmp_path)}) < 6
    coordinate()
    assert wait(store, evaluation).state == "succeeded"
    assert set(steps_done(tmp_path).values()) == {1}
    with store.reading() as session:
        assert set(session.scalars(select(Attempt.outcome))) == {"succeeded"}


def test_a_copied_checkpoint_may_be_deleted_and_its_copy_goes_when_it_is_evaluated(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    coordinator = coordinate()
    suite = steps_suite(tmp_path, shards=1, steps=8)
    evaluation = enter(store, checkpoint_file, suite, spool="copy")
    coordinator.wake()
    wait_until(store, lambda session: session.get_one(Checkpoint, 1).spool_state == "ready")
    checkpoint_file.unlink()
    assert wait(store, evaluation).state == "succeeded"
    wait_until(store, lambda session: session.get_one(Checkpoint, 1).spool_state == "released")
    wait_until(store, lambda _: not (tmp_path / "data" / "spool" / "1").exists())


def test_a_checkpoint_that_changes_before_it_is_copied_fails_with_the_reason(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=1), spool="copy")
    checkpoint_file.write_bytes(b"other")
    coordinate()
    failed = wait(store, evaluation)
    assert failed.error is not None
    assert failed.error["code"] == "checkpoint_changed"


def test_a_full_disk_fails_the_evaluation_and_leaves_the_history_sound(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "data" / "artifacts").write_text("in the way")
    coordinator = coordinate(max_attempts=2)
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=1, steps=1, leaves=True))
    coordinator.wake()
    failed = wait(store, evaluation)
    assert failed.error is not None
    assert failed.error["code"] == "artifact_not_written"
    assert "make room there, then retry the evaluation (tried 2 times)" in failed.error["message"]
    with store.reading() as session:
        assert read_history(session, "run-a")["series"] == []
    (tmp_path / "data" / "artifacts").unlink()
    with store.transaction() as session:
        retry_evaluation(session, evaluation)
    coordinator.wake()
    assert wait(store, evaluation).state == "succeeded"
    assert steps_done(tmp_path)["0", "0"] == 1, "only the merge ran again"
    with store.reading() as session:
        [artifact] = session.scalars(select(Artifact)).all()
        assert (artifact.name, artifact.details) == ("log.txt", {"total": 1})
        assert artifact_path(tmp_path / "data" / "artifacts", artifact.sha256).read_text().startswith("0 0 ")


def output_files(tmp_path: Path) -> list[str]:
    return sorted(
        str(path.relative_to(tmp_path / "data" / "outputs")) for path in (tmp_path / "data" / "outputs").rglob("*-*")
    )


def test_large_outputs_are_files_until_they_are_merged(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    """Where they cannot be written, the shards fail, and nothing of them is in the history."""
    (tmp_path / "data" / "outputs").write_text("in the way")
    coordinator = coordinate(devices="cpu", max_attempts=1)
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=2, steps=1, seconds=0.1, size=200_000))
    coordinator.wake()
    failed = wait(store, evaluation)
    assert failed.error is not None
    assert failed.error["code"] == "artifact_not_written"
    assert re.match(r"the output of a shard, 200,\d\d\d bytes, cannot be written to", failed.error["message"])
    with store.reading() as session:
        assert read_history(session, "run-a")["series"] == []
    (tmp_path / "data" / "outputs").unlink()
    with store.transaction() as session:
        retry_evaluation(session, evaluation)
    coordinator.wake()
    wait_until(store, lambda session: output_files(tmp_path) != [])
    assert wait(store, evaluation).state == "succeeded"
    wait_until(store, lambda session: output_files(tmp_path) == [])

    late = enter(store, checkpoint_file, steps_suite(tmp_path, "late", shards=1, steps=2, seconds=0.3, size=200_000))
    coordinator.wake()
    wait_until(store, lambda session: begun(tmp_path, "late"))
    with store.transaction() as session:
        session.execute(update(Shard).where(Shard.state == "running").values(attempt=Shard.attempt + 1))
    wait_until(store, lambda session: coordinator.live() == {})
    assert output_files(tmp_path) == [], "of an attempt that was not the current one any more"
    with store.reading() as session:
        assert find_evaluation(session, late).state == "running"


def test_a_restart_sweeps_orphans_and_makes_again_only_what_was_lost(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    """A service may be killed between file and row, and its folder may be lost while its database is kept."""
    first = coordinate(grace=0.0)
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=3, steps=2, seconds=0.1, size=200_000))
    first.wake()
    wait_until(store, lambda session: len(output_files(tmp_path)) >= 2)
    first.stop()
    lost = output_files(tmp_path)[0]
    (tmp_path / "data" / "outputs" / lost).write_bytes(b"torn")
    for orphan in ("1/2-7", "99/1-1", "1/tmp.partial"):
        (tmp_path / "data" / "outputs" / orphan).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / "outputs" / orphan).touch()
    artifact = tmp_path / "data" / "artifacts" / "00" / ("0" * 64)
    artifact.parent.mkdir(parents=True)
    artifact.touch()
    coordinate()
    wait_until(store, lambda session: "99/1-1" not in output_files(tmp_path))
    assert wait(store, evaluation).state == "succeeded"
    assert not artifact.exists()
    assert [steps_done(tmp_path)[str(index), "1"] for index in range(2)] == [2, 1]
    # They go once the result is stored.
    wait_until(store, lambda _: not any(path.is_file() for path in (tmp_path / "data" / "outputs").rglob("*")))


def test_a_task_that_has_seen_enough_stops_and_an_idle_service_asks_for_no_copies(
    store: Store,
    coordinate: Callable[..., Coordinator],
    checkpoint_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looks are done by workers beside the shards; where they do not run in order, n is still that of the first that
    is enough. The spooler was asked twice a second what there was to copy, on a service that had copied nothing."""
    polls: list[float] = []
    poll = Spooler.poll
    monkeypatch.setattr(Spooler, "poll", lambda spooler: (polls.append(time.monotonic()), poll(spooler))[1])
    coordinator = coordinate()
    until = {"stderr": 0.05, "metric": "mark"}
    suite = steps_suite(tmp_path, shards=24, steps=256, seconds=0.001, looks=True, until=until)
    evaluation = enter(store, checkpoint_file, suite)
    coordinator.wake()
    assert wait(store, evaluation).state == "succeeded"
    with store.reading() as session:
        (task,) = evaluation_view(session, find_evaluation(session, evaluation), {})["tasks"]
        assert read_history(session, "run-a")["series"][0]["n"] == [512]
    assert task["provenance"]["notes"]["stopped"].startswith("after 512 of 6,144 steps: the standard error of mark, 0.")
    assert task["shards"]["succeeded"] == 2
    assert len({shard for shard, _ in steps_done(tmp_path)}) < 24
    wait_until(store, lambda session: coordinator.live() == {})
    time.sleep(5 * TICK)
    before = len(polls)
    time.sleep(5 * TICK)
    assert len(polls) == before


def fail_once(patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception, failed: list[str]) -> None:
    """Have a function raise at its first call, as what it calls might; `close` has done its work by then."""
    original, full_name = getattr(owner, name), f"{owner.__name__}.{name}"

    def fail(*arguments: Any, **keywords: Any) -> Any:
        fails = full_name not in failed
        if name == "close" or not fails:
            result = original(*arguments, **keywords)
        if fails:
            failed.append(full_name)
            raise error
        return result

    patch.setattr(owner, name, fail)


def test_nothing_that_is_raised_ends_the_coordinator(
    store: Store,
    coordinate: Callable[..., Coordinator],
    checkpoint_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its thread died of what was raised outside of the guarded part, and a service that answered evaluated nothing."""
    failed: list[str] = []
    parts: list[tuple[Any, str]]
    parts = [(InProcessCluster, name) for name in ("start", "connected", "free", "submit", "release", "close")]
    parts += [(shards, name) for name in ("requeue_running", "unwanted", "take", "finish")]
    parts += [(shard_files, "named_outputs"), (Spooler, "poll"), (Spooler, "close")]
    for owner, name in parts:
        fail_once(monkeypatch, owner, name, RuntimeError(f"{name} is broken"), failed)
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=2))
    coordinator = coordinate(devices="cpu")
    assert wait(store, evaluation).state in OVER
    assert coordinator.alive()
    with store.transaction() as session:
        retry_evaluation(session, evaluation)
    coordinator.wake()
    assert wait(store, evaluation).state == "succeeded"
    coordinator.stop()
    assert not coordinator.alive()
    assert sorted(failed) == sorted(f"{owner.__name__}.{name}" for owner, name in parts)
    assert "could not reach the cluster; trying again in 0.5 s" in caplog.text
    assert "RuntimeError: take is broken" in caplog.text


def test_a_clock_that_is_set_back_disturbs_no_evaluation(
    store: Store,
    coordinate: Callable[..., Coordinator],
    checkpoint_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the deadline of what runs, nor the order of what waits, nor the wait of what is to be tried again."""
    (tmp_path / "data" / "artifacts").write_text("in the way")
    coordinator = coordinate(devices="cpu", shard_deadline=60.0)
    first = enter(store, checkpoint_file, steps_suite(tmp_path, "first", shards=2, steps=6, seconds=0.1, leaves=True))
    coordinator.wake()
    wait_until(store, lambda session: begun(tmp_path, "first"))
    set_back = datetime.now(UTC) - timedelta(days=30)
    for module in (shards, back_off, posting):
        monkeypatch.setattr(module, "now", lambda: set_back)
    second = enter(store, checkpoint_file, steps_suite(tmp_path, "second", shards=1, steps=1), step=2)
    coordinator.wake()
    waiting = select(Shard.not_before).where(Shard.not_before.is_not(None))
    wait_until(store, lambda session: session.scalars(waiting).all() != [])
    (tmp_path / "data" / "artifacts").unlink()
    for module in (shards, back_off, posting):
        monkeypatch.setattr(module, "now", lambda: set_back - timedelta(days=30))
    assert wait(store, first).state == wait(store, second).state == "succeeded"
    assert set(steps_done(tmp_path, "first").values()) == {1}
    assert (tmp_path / "first.log").stat().st_mtime < (tmp_path / "second.log").stat().st_mtime


def test_of_two_coordinators_one_works_and_the_other_takes_over(
    store: Store, coordinate: Callable[..., Coordinator], checkpoint_file: Path, tmp_path: Path
) -> None:
    """Each queued again what the other was running, and every shard ran twice."""
    first = coordinate(grace=30.0)
    evaluation = enter(store, checkpoint_file, steps_suite(tmp_path, shards=12, steps=4, seconds=0.05))
    first.wake()
    wait_until(store, lambda session: begun(tmp_path))
    second = coordinate()
    wait_until(store, lambda _: second.displaced())
    assert second.workers() == 0
    first.stop()
    assert wait(store, evaluation).state == "succeeded"
    assert not second.displaced()
    assert set(steps_done(tmp_path).values()) == {1}


def test_a_coordinator_that_hangs_is_not_alive(
    store: Store, coordinate: Callable[..., Coordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that waits for ever is there, and does as little as one that has ended."""
    go_on = threading.Event()
    monkeypatch.setattr(coordinator_module, "STALLED_AFTER", 0.3)
    monkeypatch.setattr(shards, "requeue_running", lambda *_: go_on.wait(60))
    monkeypatch.setattr(InProcessCluster, "start", lambda cluster: None)
    coordinator = coordinate(devices="cpu")
    wait_until(store, lambda _: not coordinator.alive())
    go_on.set()
    wait_until(store, lambda _: coordinator.alive())
