"""Suites that were put."""

from pathlib import Path

from queue_steps import suite

from evalsvc.store.session import Store
from evalsvc.store.suites import kept_suite, put_suite


def test_a_suite_is_kept_as_it_was_given(store: Store, tmp_path: Path) -> None:
    with store.transaction() as session:
        assert put_suite(session, suite("mine")) is True
        assert put_suite(session, suite("mine", limit=3)) is False
    with store.reading() as session:
        assert kept_suite(session, "mine")["tasks"][0]["limit"] == 3
