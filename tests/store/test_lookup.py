"""Rows by what users call them."""

import pytest
from queue_steps import enter, submission, suite

from evalsvc.errors import UnknownName
from evalsvc.store.lookup import find_run
from evalsvc.store.session import Store


def test_an_unknown_run_is_named_with_its_near_misses(store: Store) -> None:
    enter(store, submission(), suite())
    with store.reading() as session, pytest.raises(UnknownName, match="no run is named 'run-b'; did you mean 'run-a'"):
        find_run(session, "run-b")
