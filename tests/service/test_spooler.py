"""Which spooled copies are dropped, and which outlive their own evaluation."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machines import wait_for
from posts_and_results import metric, submission, suite
from queue_steps import ask, enter, evaluate_whole, set_base
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from evalsvc.checkpoints.copies import releasing, spool_path
from evalsvc.checkpoints.reference import Identity, identify
from evalsvc.config import Settings
from evalsvc.service import spooler as spooler_module
from evalsvc.service.spooler import Spooler
from evalsvc.store.lookup import find_checkpoint
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint, Evaluation


@pytest.fixture
def spooler(store: Store, tmp_path: Path) -> Iterator[Spooler]:
    spooler = Spooler(store, Settings(data_dir=str(tmp_path)), lambda: None)
    yield spooler
    spooler.close()


def spool(
    store: Store, spooler: Spooler, step: int, run: str = "run-a", variant: str = "raw", **fields: object
) -> Path:
    """A checkpoint that has been copied and evaluated; its copy."""
    enter(store, submission(step, run=run, variant=variant, spool="copy", **fields), suite())
    with store.transaction() as session:
        checkpoint = session.scalars(select(Checkpoint).order_by(Checkpoint.id.desc())).first()
        checkpoint.spool_state = "ready"
    copy = spool_path(spooler._data_path, checkpoint.id, checkpoint.path)
    copy.parent.mkdir(parents=True)
    copy.touch()
    evaluate_whole(store, metric(1.0))
    return copy


def test_a_base_is_kept_as_long_as_it_is_one(store: Store, spooler: Spooler) -> None:
    """Every later checkpoint of the run needs it, and the trainer has long deleted the original."""
    first, averaged, later = (
        spool(store, spooler, step, variant=variant) for step, variant in ((0, "raw"), (0, "ema"), (25, "raw"))
    )
    named = spool(store, spooler, 9, "text")
    set_base(store, "run-b", "text", 9)
    assert left(spooler, first, averaged, later, named) == [True, True, False, True]
    set_base(store, "run-a", "text", 9)
    assert left(spooler, first, averaged, named) == [False, False, True]
    replacement = spool(store, spooler, 9, "text", identity=Identity(7, 7), replace=True)
    assert left(spooler, named, replacement) == [False, True]


def test_a_parent_is_kept_as_long_as_a_virtual_checkpoint_waits(store: Store, spooler: Spooler) -> None:
    """Also when nobody has evaluated it yet, or it failed and may be tried again."""
    first, second, other = (spool(store, spooler, step) for step in (3, 5, 7))
    uri = "avg(run-a@3, run-a@5)"
    virtual = submission(30, run="v", uri=uri, path=uri, identity=Identity(0, 0), parents=[1, 2])
    enter(store, virtual)
    assert left(spooler, first, second, other) == [True, True, False]
    [evaluation] = enter(store, virtual, suite())
    state(store, evaluation, "failed")
    assert left(spooler, first) == [True]
    state(store, evaluation, "queued")
    evaluate_whole(store, metric(1.0))
    assert left(spooler, first, second) == [False, False]


def left(spooler: Spooler, *copies: Path) -> list[bool]:
    """Which copies are left after a poll."""
    spooler.poll()
    return [copy.exists() for copy in copies]


def state(store: Store, evaluation: int, value: str) -> None:
    with store.transaction() as session:
        session.get_one(Evaluation, evaluation).state = value


def test_what_was_cancelled_is_kept_until_its_shard_has_stopped(store: Store, spooler: Spooler) -> None:
    """It was retried before that, and failed since its copy was gone under a worker that was about to open it."""
    first, second = (spool(store, spooler, step) for step in (3, 5))
    uri = "avg(run-a@3, run-a@5)"
    enter(store, submission(30, run="v", uri=uri, path=uri, identity=Identity(0, 0), parents=[1]), suite())
    for number in (1, 2, 3):
        state(store, number, "cancelled")
    spooler.poll(in_use=[3])
    assert [copy.exists() for copy in (first, second)] == [True, False], "what runs is made of the first"
    spooler.poll(in_use=[1])
    assert first.exists()
    spooler.poll()
    assert not first.exists()


def test_what_is_retried_meanwhile_keeps_its_copy(
    store: Store, spooler: Spooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release waits for a post that sends the file again: it took away what the post had just put in its place."""
    copy = spool(store, spooler, 3)
    state(store, 1, "cancelled")
    transaction = store.transaction

    @contextmanager
    def after_a_retry() -> Iterator[Session]:
        with transaction() as session:
            session.get_one(Evaluation, 1).state = "queued"
        with transaction() as session:
            yield session

    monkeypatch.setattr(store, "transaction", after_a_retry)
    spooler.poll()
    assert copy.exists()
    monkeypatch.undo()
    assert ask(store, find_checkpoint, 1).spool_state == "ready"
    state(store, 1, "cancelled")
    release = threading.Thread(target=spooler.poll)
    with releasing:
        release.start()
        time.sleep(0.1)
        assert ask(store, find_checkpoint, 1).spool_state == "ready"
        assert copy.exists()
    release.join()
    assert not copy.exists()


def test_a_copy_is_known_although_the_database_was_away(
    store: Store,
    spooler: Spooler,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its thread ended by that, and the evaluation waited for the copy until the service was started again."""
    monkeypatch.setattr(spooler_module, "STORE_AGAIN_SECONDS", 0.05)
    source = tmp_path_factory.mktemp("run") / "epoch_1.pt"
    source.write_bytes(b"weights")
    enter(store, submission(path=str(source), identity=identify(source), spool="copy"), suite())
    away = [True, True]
    half = tmp_path / "spool" / "1" / "epoch_1.pt.partial"  # by a service that ended while it copied
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")

    class Away(Store):
        @contextmanager
        def transaction(self) -> Iterator[Session]:
            if away:
                away.pop()
                raise OperationalError("COMMIT", {}, Exception("server closed the connection"))
            with super().transaction() as session:
                yield session

    spooler._store = Away(store.url)
    spooler.poll()
    wait_for(lambda: ask(store, find_checkpoint, 1).spool_state == "ready", "the copy is known")
    spooler._store.close()
    assert away == []
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.pt*")] == ["spool/1/epoch_1.pt"]
    assert "the state of the copy of checkpoint 1 could not be stored, retrying" in caplog.text


def test_a_link_that_leads_out_of_the_roots_is_not_copied(store: Store, tmp_path: Path) -> None:
    """It took the place of the file between the post and the copy, and workers read the copy, since it is ours."""
    root, secret = tmp_path / "root", tmp_path / "secret.pt"
    root.mkdir()
    secret.write_bytes(b"secrets")
    (root / "epoch_1.pt").symlink_to(secret)
    posted = submission(path=str(root / "epoch_1.pt"), identity=identify(secret), spool="copy")
    enter(store, posted, suite())
    spooler = Spooler(store, Settings(data_dir=str(tmp_path / "data"), roots=str(root)), lambda: None)
    spooler._copy(ask(store, find_checkpoint, 1))
    assert ask(store, find_checkpoint, 1).spool_state == "failed"
    assert list((tmp_path / "data" / "spool").rglob("*.pt")) == []


def test_copies_of_no_checkpoint_are_removed(
    store: Store, spooler: Spooler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A post that is rolled back has linked its copy already, and PostgreSQL never gives its id again."""
    monkeypatch.setattr(spooler_module, "SWEEP_SECONDS", 0.0)
    kept = spool(store, spooler, 0)
    for step in (1, 2, 3):
        enter(store, submission(step, run="run-a"), suite())
    orphans, given_next = (
        [tmp_path / "spool" / name for name in pair] for pair in (("2", "3.partial"), ("5", "notes"))
    )
    for folder in (*orphans, *given_next):
        folder.mkdir(parents=True)
        (folder / "epoch_1.pt").touch()
    assert all(left(spooler, *orphans)), "they may be of posts that have not committed yet"
    assert not any(left(spooler, *orphans))
    assert all(left(spooler, kept, *given_next)), "a post may get the id while its copy is removed"
