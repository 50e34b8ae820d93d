"""What the database names of the data folder."""

from pathlib import Path

import pytest
from queue_steps import enter, evaluate_whole, kept_artifact, metric, submission, suite

from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.store.lock import database_id
from evalsvc.store.named_files import may_begin_folder
from evalsvc.store.session import Store


@pytest.mark.parametrize("kind", ["artifacts", "items"])
def test_a_database_with_runs_takes_over_only_a_folder_with_its_files(store: Store, tmp_path: Path, kind: str) -> None:
    def may_begin() -> bool:
        with store.reading() as session:
            return may_begin_folder(session, tmp_path / "artifacts", tmp_path / "items")

    assert may_begin(), "a new one"
    database_id(store)
    assert may_begin(), "one without runs"
    sha256 = keep_content(tmp_path / kind, b"content")
    enter(store, submission(1), suite())
    named = {"artifacts": [kept_artifact(sha256)]} if kind == "artifacts" else {"items": sha256}
    evaluate_whole(store, metric(1.0), **named)
    assert may_begin(), "whose file is there"
    artifact_path(tmp_path / kind, sha256).unlink()
    assert not may_begin()


def test_a_database_of_old_has_begun_none(store: Store, tmp_path: Path) -> None:
    """Before databases had an identity, no folder said whose it was."""
    enter(store, submission(1), suite())
    with store.reading() as session:
        assert may_begin_folder(session, tmp_path / "artifacts", tmp_path / "items")
