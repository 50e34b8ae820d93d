"""Uploaded checkpoints: how many bytes they take, and which of them need their file."""

import pytest
from queue_steps import enter, evaluate_whole, metric, submission, suite
from sqlalchemy import select

from evalsvc.checkpoints.reference import Identity
from evalsvc.store.runs.posting import Submission, submit
from evalsvc.store.runs.uploaded import needs_file, uploaded_bytes
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint

URI = f"upload:{'0' * 64}"


def uploaded(step: int = 25, size: int = 100) -> Submission:
    return submission(step, uri=URI, path=URI, identity=Identity(size, 0))


def keep(store: Store, state: str | None) -> None:
    with store.transaction() as session:
        for checkpoint in session.scalars(select(Checkpoint)):
            checkpoint.spool_state = state


def test_bytes_of_those_that_are_kept(store: Store) -> None:
    with store.reading() as session:
        assert uploaded_bytes(session) == 0
    enter(store, uploaded(25, 3_000_000_000))
    enter(store, uploaded(50, 40))
    enter(store, submission(75))
    for state, size in (("ready", 3_000_000_040), ("released", 0), (None, 0)):
        keep(store, state)
        with store.reading() as session:
            assert uploaded_bytes(session) == size


@pytest.mark.parametrize("state", ["ready", "released"])
def test_a_file_is_needed_by_what_waits(store: Store, state: str) -> None:
    def posted(*suites: str) -> bool:
        with store.transaction() as session:
            return needs_file(submit(session, uploaded(), [suite(name) for name in suites], find=suite))

    assert posted(), "new, and in no spool"
    keep(store, state)
    assert posted() is False, "nothing waits"
    assert posted("quick") is (state == "released")
    evaluate_whole(store, metric(1.0))
    assert posted("quick") is False
