"""The coordinator on workers in this process: what runs, how often, and what is kept when something dies."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from in_process_cluster import Call, InProcessCluster, Run, run_steps, with_run
from laboratory import Laboratory
from queue_steps import act, ask
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from evalsvc.cluster.cluster import Cluster
from evalsvc.config import Settings
from evalsvc.files import outputs as output_files_module
from evalsvc.files.artifacts import artifact_path
from evalsvc.messages import ShardRequest, ShardResult
from evalsvc.service import coordinator as coordinator_module
from evalsvc.service import shard_files
from evalsvc.service.coordinator import Coordinator
from evalsvc.service.spooler import Spooler
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue import attempts, transitions
from evalsvc.store.results import read_results, read_task_items
from evalsvc.store.runs.deletion import delete_run
from evalsvc.store.session import Store
from evalsvc.store.tables import Artifact, Checkpoint, Shard, Task

TICK = 0.02


@pytest.fixture
def runs() -> list[Run]:
    """What workers do, the last of these; a test appends its own."""
    return [run_steps]


@pytest.fixture
def laboratory(tmp_path: Path, weights: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> Iterator[Laboratory]:
    """Coordinators with workers in this process, which wait for nothing else, and a file into which no worker looks."""
    for name, seconds in {"TICK": TICK, "LONGEST_WAIT": 0.2, "KILL_AGAIN": 0.1, "LOST_AFTER": 0.1}.items():
        monkeypatch.setattr(coordinator_module, name, seconds)
    monkeypatch.setattr(transitions, "FIRST_BACK_OFF", 0.05)
    with closing(Laboratory(tmp_path, with_run(lambda *call: runs[-1](*call)), weights)) as laboratory:
        yield laboratory


def test_the_cluster_in_this_process_has_all_that_the_real_one_has() -> None:
    """What it did not have would be Dask's, without a client."""
    for name, member in vars(Cluster).items():
        assert name.startswith("_") or signature(vars(InProcessCluster)[name]) == signature(member), name


def test_large_items_are_a_file_that_a_restart_keeps(laboratory: Laboratory) -> None:
    """An orphan is swept when the service starts; what a row names must not go with it."""
    large = laboratory.post("large", shards=1, steps=9_000, seconds=0, looks=True)
    small = laboratory.post("small", shards=1, steps=4, seconds=0, looks=True)
    first = laboratory.start()
    assert laboratory.succeeds(large, small)
    first.stop()
    folder = laboratory.data / "items"
    (kept,) = (path for path in folder.rglob("*") if path.is_file())
    orphan = folder / "00" / ("0" * 64)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"of a service that was killed")
    laboratory.start()
    laboratory.wait_until(lambda _: not orphan.exists())
    with laboratory.store.reading() as session:
        rows = session.execute(select(Task.items_sha256, Task.items).order_by(Task.id)).all()
        tables = [read_task_items(find_evaluation(session, number), folder)["steps"] for number in (large, small)]
    assert [(row.items_sha256, row.items is None) for row in rows] == [(kept.name, True), (None, False)]
    assert [len(table) for table in tables] == [9_000, 4]
    assert tables[0].column("mark")[:4] == tables[1].column("mark"), "of the same checkpoint"


def test_an_idle_coordinator_asks_nobody_until_it_is_woken_and_misses_nothing_that_comes_during_a_look(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = Coordinator(laboratory.store, Settings(data_dir=str(laboratory.data)), cluster=with_run(run_steps))
    coordinator._hold_database()
    asked, looks, dispatched = [], [], []

    def come_too_late() -> bool:
        looks.append(laboratory.post())
        coordinator.wake()
        return True

    monkeypatch.setattr(coordinator._cluster, "free", lambda: asked.append("scheduler") or ["tls://worker"])
    monkeypatch.setattr(coordinator._cluster, "submit", lambda key, *_: dispatched.append(key))
    for _ in range(3):
        coordinator._dispatch()
    assert asked == ["scheduler"]
    monkeypatch.setattr(coordinator._queue, "is_empty", come_too_late)
    coordinator.wake()
    coordinator._dispatch()
    assert (len(asked), len(looks), dispatched) == (2, 1, [])
    coordinator._dispatch()
    assert dispatched == ["evaluation-1/shard-1/attempt-1"]
    coordinator._lock.release()


def test_an_evaluation_runs_on_all_workers_with_progress(laboratory: Laboratory) -> None:
    coordinator = laboratory.start()
    first = laboratory.post("first", step=0, shards=1, steps=1)
    evaluation = laboratory.post(shards=4, steps=8)
    seen: list[int] = []

    def ends(_: Session) -> bool:
        seen.extend(live.done for live in coordinator.live().values() if live.per_second)
        return laboratory.is_over(evaluation)

    laboratory.wait_until(ends)
    assert laboratory.succeeds(evaluation, first)
    assert coordinator.workers() == 2
    assert max(seen) > 0
    laboratory.wait_until(lambda _: coordinator.live() == {})  # a moment after the result is in the database
    assert set(laboratory.steps().values()) == {1}
    assert {worker for *_, worker in laboratory.log()} == {"inproc://0", "inproc://1"}
    assert laboratory.history()[0].value == [1, 32]
    found = ask(laboratory.store, read_results, laboratory.data / "items", "run-a", 1, "raw")
    assert found.provenance["steps"]["notes"]["base"] == {"label": "run 'run-a' step 0", "layout": None}


def test_a_poison_shard_fails_its_own_evaluation_after_three_attempts_and_no_other(laboratory: Laboratory) -> None:
    poisoned = laboratory.post("poisoned", shards=3, poison=1)
    innocent = laboratory.post("innocent", shards=8)
    laboratory.start()
    assert laboratory.succeeds(innocent)
    code, message = laboratory.failure(poisoned)
    assert code == "worker_died"
    assert "died while it ran this shard, 3 times (the last time, it was poisoned)" in message
    assert set(laboratory.steps("innocent").values()) == {1}
    assert (laboratory.steps("poisoned")[1, 0], laboratory.steps("poisoned")[0, 3]) == (3, 1)
    assert laboratory.outcomes("poisoned")["worker_died"] == 3


def test_what_is_cancelled_makes_room_whether_it_listens_or_not_and_can_be_retried(laboratory: Laboratory) -> None:
    laboratory.start(grace=0.2)
    polite = laboratory.post("polite", shards=1, steps=30, seconds=0.05)
    deaf = laboratory.post("deaf", shards=1, seconds=60, deaf=True)
    other = laboratory.post("other", shards=2, steps=1)
    laboratory.wait_for_steps("polite", "deaf")
    laboratory.cancel(polite, deaf)
    assert laboratory.succeeds(other)
    laboratory.wait_until(lambda session: "running" not in session.scalars(select(Shard.state)).all())
    assert len(laboratory.steps("polite")) < 30
    laboratory.retry(polite)
    assert laboratory.succeeds(polite)
    assert laboratory.wait(deaf).state == "cancelled"


def test_a_run_that_is_deleted_while_it_runs_stops_and_leaves_nothing(laboratory: Laboratory) -> None:
    laboratory.start(devices="cpu", grace=60.0)
    laboratory.post("slow", shards=3, steps=10_000, seconds=0.02, size=200_000)
    laboratory.wait_for_steps("slow")
    assert act(laboratory.store, delete_run, "run-a", cancel=True).evaluations == 1
    # The one worker takes this up only once it was told to stop: the shard would take 200 s.
    fast = laboratory.post("fast", shards=3, steps=2)
    assert laboratory.succeeds(fast)
    assert laboratory.outcomes("fast") == {"succeeded": 3}
    assert [series.value for series in laboratory.history()] == [[6]]
    before = len(laboratory.log("slow"))
    time.sleep(0.2)
    assert len(laboratory.log("slow")) == before
    assert output_files(laboratory) == []


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
def test_a_commit_without_an_answer_loses_nothing_and_runs_nothing_twice(laboratory: Laboratory, state: str) -> None:
    """At a hand-out the shard was `running` for ever, with nobody to run it; at a result, the file with its output was
    removed as one that came too late, and the shard ran again."""
    laboratory.store.close()
    laboratory.store = store = UnansweredStore(laboratory.store.url)
    store.breaks_at = lambda shard: shard.stage == "run" and shard.index == 1 and shard.state == state
    evaluation = laboratory.post(shards=4, steps=2, size=200_000)
    laboratory.start()
    assert laboratory.succeeds(evaluation)
    assert store.broken == ["run"]
    assert set(laboratory.steps().values()) == {1}
    assert laboratory.outcomes() == ({"succeeded": 4, "lost": 1} if state == "running" else {"succeeded": 4})
    assert laboratory.failed_attempts() == 0


def test_a_shard_that_overruns_its_deadline_is_killed_until_it_is_gone_and_tried_again(laboratory: Laboratory) -> None:
    """On a machine that was busy it was killed while nobody knew its process yet, once and in vain, and ran on."""
    coordinator = laboratory.start(devices="cpu", shard_deadline=0.3, max_attempts=2)
    coordinator._cluster.kills_in_vain = 2
    code, message = laboratory.failure(laboratory.post(shards=1, seconds=600))
    assert code == "deadline_exceeded"
    assert "longer than 0.3 s, 2 times; raise EVALSVC_SHARD_DEADLINE" in message
    assert laboratory.outcomes() == {"deadline_exceeded": 2}


@pytest.mark.parametrize("reports", [True, False])
def test_planning_without_progress_is_stopped(laboratory: Laboratory, runs: list[Run], reports: bool) -> None:
    """A template without end held a worker for two hours, three times. A download tells its progress while it lasts."""
    plans: list[str] = []

    def run(request: ShardRequest, call: Call) -> ShardResult:
        if request.stage == "plan":
            plans.append(call.key)
            for _ in range(20):
                call.pause(0.05)
                if reports:
                    call.report(0)
        return run_steps(request, call)

    runs.append(run)
    laboratory.start(devices="cpu", shard_deadline=4.8)
    evaluation = laboratory.post(shards=1)
    if reports:
        assert laboratory.succeeds(evaluation)
    else:
        code, message = laboratory.failure(evaluation)
        assert code == "deadline_exceeded"
        assert "after 0.4 s without progress; look for a template" in message
    assert len(plans) == 1


def test_a_result_that_cannot_be_read_fails_its_shard(laboratory: Laboratory, runs: list[Run]) -> None:
    """A worker that was taken over may return anything."""
    runs.append(lambda request, call: b"\xc1")
    laboratory.start(devices="cpu")
    code, message = laboratory.failure(laboratory.post(shards=1, steps=1))
    assert code == "internal_error"
    assert message.startswith("its result cannot be read (Unreadable: ")


def test_shards_of_a_scheduler_that_went_away_run_again_uncharged(laboratory: Laboratory) -> None:
    coordinator = laboratory.start()
    evaluation = laboratory.post(shards=2, steps=4, seconds=0.2)
    laboratory.wait_for_steps()
    coordinator._cluster.disconnect()
    assert laboratory.succeeds(evaluation)
    assert laboratory.outcomes()["succeeded"] == 2
    assert laboratory.outcomes()["lost"] in (1, 2)
    assert laboratory.failed_attempts() == 0


def test_stopping_stores_what_was_running_and_the_next_start_runs_only_the_rest(laboratory: Laboratory) -> None:
    first = laboratory.start(grace=90.0)
    evaluation = laboratory.post(shards=6, steps=4, seconds=0.05)
    laboratory.wait_for_steps()
    first.stop()
    assert 1 <= len({shard for shard, _ in laboratory.steps()}) < 6
    laboratory.start()
    assert laboratory.succeeds(evaluation)
    assert set(laboratory.steps().values()) == {1}
    assert laboratory.outcomes() == {"succeeded": 6}


def test_a_copied_checkpoint_may_be_deleted_and_its_copy_goes_when_it_is_evaluated(laboratory: Laboratory) -> None:
    """One that changes before it is copied fails its evaluation with the reason."""
    changed = laboratory.post("changed", step=2, shards=1, spool="copy")
    laboratory.checkpoint.write_bytes(b"other")
    evaluation = laboratory.post(shards=1, steps=8, seconds=0.3, spool="copy")
    laboratory.start()
    assert laboratory.failure(changed)[0] == "checkpoint_changed"
    laboratory.wait_until(lambda session: session.get_one(Checkpoint, 2).spool_state == "ready")
    laboratory.checkpoint.unlink()
    assert laboratory.succeeds(evaluation)
    laboratory.wait_until(lambda session: session.get_one(Checkpoint, 2).spool_state == "released")
    laboratory.wait_until(lambda _: not (laboratory.data / "spool" / "2").exists())


def test_a_full_disk_fails_the_evaluation_and_leaves_the_history_sound(laboratory: Laboratory) -> None:
    artifacts = laboratory.data / "artifacts"
    artifacts.write_text("in the way")
    laboratory.start(max_attempts=2)
    evaluation = laboratory.post(shards=1, steps=1, leaves=True)
    code, message = laboratory.failure(evaluation)
    assert code == "artifact_not_written"
    assert "make room there, then retry the evaluation (tried 2 times)" in message
    assert laboratory.history() == []
    artifacts.unlink()
    laboratory.retry(evaluation)
    assert laboratory.succeeds(evaluation)
    assert laboratory.steps()[0, 0] == 1, "only the merge ran again"
    with laboratory.store.reading() as session:
        [artifact] = session.scalars(select(Artifact)).all()
    assert (artifact.name, artifact.details) == ("log.txt", {"total": 1})
    assert artifact_path(artifacts, artifact.sha256).read_text().startswith("0 0 ")


def output_files(laboratory: Laboratory) -> list[str]:
    """Return the files of outputs by shard and attempt. A folder that goes meanwhile is no error for `os.walk`."""
    folder = laboratory.data / "shared" / "outputs"
    found = [Path(parent, name).relative_to(folder) for parent, _, names in os.walk(folder) for name in names]
    return sorted(str(path) for path in found if "-" in path.name)


def test_large_outputs_are_files_until_they_are_merged(laboratory: Laboratory) -> None:
    coordinator = laboratory.start(devices="cpu")
    evaluation = laboratory.post(shards=2, steps=1, seconds=0.1, size=200_000)
    laboratory.wait_until(lambda _: output_files(laboratory) != [])
    assert laboratory.succeeds(evaluation)
    laboratory.wait_until(lambda _: output_files(laboratory) == [])

    late = laboratory.post("late", shards=1, steps=2, seconds=0.3, size=200_000)
    laboratory.wait_for_steps("late")
    with laboratory.store.transaction() as session:
        session.execute(update(Shard).where(Shard.state == "running").values(attempt=Shard.attempt + 1))
    laboratory.wait_until(lambda _: coordinator.live() == {})
    assert output_files(laboratory) == [], "of an attempt that was not the current one any more"
    assert ask(laboratory.store, find_evaluation, late).state == "running"


def test_a_restart_sweeps_orphans_and_makes_again_only_what_was_lost(laboratory: Laboratory) -> None:
    """A service may be killed between file and row, and its folder may be lost while its database is kept. What runs
    when its grace is over is charged nothing."""
    first = laboratory.start(grace=0.0)
    evaluation = laboratory.post(shards=3, steps=2, seconds=0.1, size=200_000)
    laboratory.wait_until(lambda _: len(output_files(laboratory)) >= 2)
    first.stop()
    outputs, artifact = laboratory.data / "shared" / "outputs", laboratory.data / "artifacts" / "00" / ("0" * 64)
    (outputs / output_files(laboratory)[0]).write_bytes(b"torn")
    for orphan in (outputs / "1" / "2-7", outputs / "99" / "1-1", outputs / "1" / "tmp.partial", artifact):
        orphan.parent.mkdir(parents=True, exist_ok=True)
        orphan.touch()
    laboratory.start()
    laboratory.wait_until(lambda _: "99/1-1" not in output_files(laboratory))
    assert laboratory.succeeds(evaluation)
    assert not artifact.exists()
    assert [laboratory.steps()[index, 1] for index in range(2)] == [2, 1]
    # They go once the result is stored.
    laboratory.wait_until(lambda _: not any(names for _, _, names in os.walk(outputs)))


def test_a_task_stops_early_and_an_idle_service_polls_no_copies(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks are done by workers beside the shards; where they do not run in order, n is still that of the first that
    is enough. The spooler was asked twice a second what there was to copy, on a service that had copied nothing."""
    polls: list[float] = []
    poll = Spooler.poll
    monkeypatch.setattr(Spooler, "poll", lambda spooler: (polls.append(time.monotonic()), poll(spooler))[1])
    coordinator = laboratory.start()
    until = {"stderr": 0.05, "metric": "mark"}
    assert laboratory.succeeds(laboratory.post(shards=24, steps=256, seconds=0.001, looks=True, until=until))
    assert laboratory.history()[0].n == [512]
    assert len({shard for shard, _ in laboratory.steps()}) < 24
    laboratory.wait_until(lambda _: coordinator.live() == {})
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


@pytest.mark.usefixtures("many_cases")
def test_nothing_that_is_raised_ends_it(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its thread died of what was raised outside of the guarded part, and a service that answered evaluated nothing."""
    failed: list[str] = []
    parts: list[tuple[Any, str]]
    parts = [(InProcessCluster, name) for name in ("start", "connected", "free", "submit", "release", "close")]
    parts += [(attempts, name) for name in ("requeue_running", "unwanted", "take", "finish")]
    parts += [(shard_files, "named_outputs"), (Spooler, "poll"), (Spooler, "close")]
    for owner, name in parts:
        fail_once(monkeypatch, owner, name, RuntimeError(f"{name} is broken"), failed)
    evaluation = laboratory.post(shards=2)
    coordinator = laboratory.start(devices="cpu")
    laboratory.wait(evaluation)
    assert coordinator.alive()
    laboratory.retry(evaluation)
    assert laboratory.succeeds(evaluation)
    coordinator.stop()
    assert not coordinator.alive()
    assert sorted(failed) == sorted(f"{owner.__name__}.{name}" for owner, name in parts)
    assert "could not reach the cluster; retrying in 0.5 s" in caplog.text
    assert "RuntimeError: take is broken" in caplog.text


def test_of_two_coordinators_one_works_and_the_other_takes_over(laboratory: Laboratory) -> None:
    """Each queued again what the other was running, and every shard ran twice."""
    first = laboratory.start(grace=30.0)
    evaluation = laboratory.post(shards=12, steps=4, seconds=0.05)
    laboratory.wait_for_steps()
    second = laboratory.start()
    laboratory.wait_until(lambda _: second.displaced())
    assert second.workers() == 0
    first.stop()
    assert laboratory.succeeds(evaluation)
    assert not second.displaced()
    assert set(laboratory.steps().values()) == {1}


def test_a_coordinator_that_hangs_is_not_alive(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for ever is there, and does as little as one that has ended."""
    go_on = threading.Event()
    monkeypatch.setattr(coordinator_module, "STALLED_AFTER", 0.3)
    monkeypatch.setattr(attempts, "requeue_running", lambda *_: go_on.wait(60))
    monkeypatch.setattr(InProcessCluster, "start", lambda cluster: None)
    coordinator = laboratory.start(devices="cpu")
    laboratory.wait_until(lambda _: not coordinator.alive())
    go_on.set()
    laboratory.wait_until(lambda _: coordinator.alive())


def test_new_files_are_there_before_the_result_is_stored(laboratory: Laboratory, runs: list[Run]) -> None:
    """Whoever is evaluated next must find them; one that cannot be written costs the task nothing."""
    key = "ab" * 32
    name, bad = f"{key}.moments.npz", "../evalsvc.db"

    def run_with_files(request: ShardRequest, call: Call) -> ShardResult:
        result = run_steps(request, call)
        return replace(result, kept={name: b"numbers", bad: b"bad"}) if request.stage == "merge" else result

    runs.append(run_with_files)
    laboratory.start()
    evaluation = laboratory.post(shards=2)
    laboratory.wait_until(lambda _: laboratory.is_over(evaluation))
    assert (laboratory.data / "shared" / "statistics" / name).read_bytes() == b"numbers"
    assert laboratory.succeeds(evaluation)
    assert not (laboratory.data / "evalsvc.db").exists()


def test_the_coordinator_reads_no_output(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    """246 MB of 30,000 images went through its thread, and nothing else was dispatched meanwhile."""
    readers: set[str] = set()
    read = output_files_module.open_regular

    def watched(path: Path) -> BinaryIO:
        readers.add(threading.current_thread().name)
        return read(path)

    monkeypatch.setattr(output_files_module, "open_regular", watched)
    laboratory.start()
    evaluation = laboratory.post(shards=2, size=100_000)
    assert laboratory.succeeds(evaluation)
    assert len(readers) == 1
    assert "coordinator" not in readers
