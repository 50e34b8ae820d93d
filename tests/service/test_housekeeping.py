"""Pruning beside a service that stores results."""

import logging
import threading
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from app_in_process import App, app_in_process, refused
from sqlalchemy.orm import Session

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.client import Client
from evalsvc.errors import ArtifactPruned, DatabaseUnusable, InvalidRequest
from evalsvc.files.artifacts import artifact_path, drop_contents, keep_content, naming
from evalsvc.messages import ShardRequest, Stage
from evalsvc.service import coordinator
from evalsvc.service.coordinator import RetriedCall
from evalsvc.service.shard_files import prune
from evalsvc.service.shard_queue import Placement
from evalsvc.spec.documents import Pruned, Retention
from evalsvc.spec.suite import TaskSpec
from evalsvc.store.queue.attempts import Assignment
from evalsvc.store.tables import Artifact


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data", roots=str(tmp_path)) as app:
        yield app


def evaluate(app: App, step: int, *contents: bytes) -> list[int]:
    """A checkpoint with artifacts of these contents; their ids."""
    weights = app.settings.data_path.parent / f"epoch_{step}.pt"
    weights.write_bytes(b"weights")
    app.post(weights, step=step, suites=["loss"]).raise_for_status()
    app.coordinator.work()
    with app.store.transaction() as session:
        task = session.execute(Artifact.metadata.tables["tasks"].select()).all()[-1].id
        artifacts = [artifact(app, task, f"{index}.txt", content) for index, content in enumerate(contents)]
        session.add_all(artifacts)
        session.flush()
        return [item.id for item in artifacts]


def artifact(app: App, task: int, name: str, content: bytes) -> Artifact:
    kept = {"sha256": keep_content(app.settings.artifacts_path, content), "size": len(content), "details": {}}
    return Artifact(task_id=task, kind="grid", name=name, media_type="text/plain", **kept)


def test_pruned_artifacts_say_what_became_of_them(app: App) -> None:
    [old, shared] = evaluate(app, 50, b"old", b"shared")
    [new] = evaluate(app, 100, b"shared")
    with Client("http://evalsvc", transport=app.transport) as client:
        assert client.retention("run-a") == Retention(run="run-a", keep=None, from_=None)
        assert client.prune().artifacts == 0
        client.put_retention("run-a", {"last": 1})
        would_be = Pruned(artifacts=2, bytes=9, freed_bytes=0, runs={"run-a": 2}, dry_run=True)
        assert client.prune(dry_run=True) == would_be
        assert app.http.get(f"/v1/artifacts/{old}").content == b"old"
        pruned = client.prune("run-a")
        assert (pruned.artifacts, pruned.freed_bytes) == (2, 3)
        assert client.prune().artifacts == 0
        rows = {row.id: row.pruned_at for row in client.artifacts("run-a")}
    assert rows[new] is None
    assert rows[old] is not None
    for pruned_one in (old, shared):
        answer = app.http.get(f"/v1/artifacts/{pruned_one}")
        assert "evaluate the checkpoint again" in refused(answer, 410, ArtifactPruned.code, "by the retention rule of")
    assert app.http.get(f"/v1/artifacts/{new}").content == b"shared"
    assert app.http.get("/v1/runs/run-a/metrics").json()["series"][0]["x"] == [50, 100]


def test_a_rule_that_keeps_nothing_is_refused(app: App, tmp_path: Path) -> None:
    nothing = {"rule keeps nothing": {"keep": {}}, "did you mean 'last'": {"keep": {"lest": 3}}, "keep": {}}
    for words, body in nothing.items():
        refused(app.http.put("/v1/runs/run-a/retention", json=body), 422, "invalid_request", words)
    with pytest.raises(InvalidRequest, match="RETENTION"), app_in_process(tmp_path / "other", retention="{"):
        pass


def test_a_content_that_is_about_to_be_named_again_stays(app: App) -> None:
    """The file was there, so it is not written again; pruning it before the row that names it is entered would lose it.

    A result waits between the two; pruning must wait for it.
    """
    evaluate(app, 50, b"shared")
    evaluate(app, 100, b"other")
    app.http.put("/v1/runs/run-a/retention", json={"keep": {"last": 1}}).raise_for_status()
    looked_up = threading.Event()

    @contextmanager
    def reading() -> Iterator[Session]:
        looked_up.set()
        with app.store.reading() as session:
            yield session

    pruning = threading.Thread(target=prune, args=(app.settings, app.store.transaction, reading))
    with naming:
        again = artifact(app, 3, "again", b"shared")
        pruning.start()
        assert not looked_up.wait(0.5), "it asks who names a content while one is being named"
        with app.store.transaction() as session:
            session.add(again)
    pruning.join(30)
    assert looked_up.is_set()
    assert artifact_path(app.settings.artifacts_path, again.sha256).read_bytes() == b"shared"


def test_contents_go_in_pieces_and_what_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsvc.files.artifacts.DROPPED_PER_LOCK", 2)
    digests = [keep_content(tmp_path, bytes([number])) for number in range(5)]
    artifact_path(tmp_path, digests[0]).unlink()
    asked: list[int] = []

    def named(piece: object) -> list[str]:
        asked.append(len(piece))
        return [digests[1]]

    assert drop_contents(tmp_path, digests, named) == 3
    assert asked == [2, 2, 1]
    assert [artifact_path(tmp_path, digest).exists() for digest in digests] == [False, True, False, False, False]


def shard(checkpoint: int, run: int = 1, stage: Stage = "run", begins: bool = False) -> Assignment:
    request = ShardRequest(TaskSpec("loss", "loss", {}), stage, CheckpointRef("/checkpoint"))
    return Assignment(1, 1, 1, 1, request, checkpoint, run, begins)


def test_a_shard_goes_to_the_worker_that_has_its_checkpoint() -> None:
    """Runs are counted, and their turns noted; planning and merging leave what is loaded."""
    placement = Placement()
    assert placement.choose(["w1", "w2"], shard(7)) == "w1"
    assert placement.choose(["w2"], shard(8)) == "w2"
    assert placement.choose(["w1", "w2"], shard(8)) == "w2"
    assert placement.choose(["w1", "w2", "w3"], shard(7)) == "w1"
    assert placement.choose(["w1", "w2", "w3"], shard(9)) == "w3", "which has nothing to lose"
    assert placement.choose(["w2"], shard(9, run=3)) == "w2", "it waits for nobody"
    placement.choose(["w2"], shard(7, run=2, stage="plan", begins=True))
    placement.choose(["w2"], shard(8, run=1, stage="merge", begins=True))
    worker_state = placement.worker_state(["w2", "w4"], [shard(7, run=1), shard(8, run=1), shard(9, run=2)])
    assert (worker_state.loaded, dict(worker_state.busy)) == ({9}, {1: 2, 2: 1})
    assert worker_state.turns[2] < worker_state.turns[1]
    assert 3 not in worker_state.turns


def test_what_fails_is_tried_again_later_each_time_and_at_once_when_it_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that was away for a second must not cost half a minute, nor one that is away a thousand tries."""
    clock, tries, broken = 100.0, [], True
    monkeypatch.setattr(coordinator.time, "monotonic", lambda: clock)

    def do() -> None:
        tries.append(clock)
        if broken:
            raise RuntimeError

    call = RetriedCall("test", do, longest_wait=5)
    for _ in range(200):
        call.attempt()
        clock += 0.25
    assert [later - sooner for sooner, later in pairwise(tries)][:5] == [0.5, 1, 2, 4, 5]
    assert len(tries) < 15
    clock, broken = clock + 5, False
    assert call.attempt()
    assert call.attempt()
    broken = True
    assert not call.attempt()
    clock += 0.5
    assert not call.attempt()
    assert tries[-1] == clock


def test_what_is_expected_has_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A cancelled wait is no Exception, and a client whose loop ends raises it in the thread that waits."""

    def fail(error: BaseException) -> None:
        raise error

    gone = partial(fail, OSError("gone"))
    assert not RetriedCall("store", gone, 5, lambda error: DatabaseUnusable(f"the database is {error}")).attempt()
    assert not RetriedCall("store", gone, 5).attempt()
    assert not RetriedCall("reach the cluster", partial(fail, CancelledError()), 5).attempt()
    expected, surprise, cancelled = caplog.records
    assert expected.getMessage() == "could not store: the database is gone; retrying in 0.5 s"
    assert (expected.levelno, expected.exc_info) == (logging.WARNING, None)
    assert surprise.exc_info is not None
    assert cancelled.getMessage().startswith("could not reach the cluster")
