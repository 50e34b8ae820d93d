"""What the data folder and the database take on the disk."""

import threading
from pathlib import Path

import pytest

from evalsvc.store import data_folder
from evalsvc.store.data_folder import EVERY, DiskUse
from evalsvc.store.session import Store


def test_sizes_are_those_of_the_files(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "a").write_bytes(b"x" * 1000)
    (folder / "b").write_bytes(b"x" * 24)
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 5000)
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    with store.reading() as session:
        disk = DiskUse(folder, store.url).view(session)
    assert disk is not None
    assert disk.data_bytes == 1024 + (folder / "link").lstat().st_size
    assert disk.data_complete
    assert 0 < disk.free_bytes <= disk.total_bytes
    assert disk.database_bytes is not None
    assert disk.database_bytes > 10_000, "the tables of an empty database"


def test_the_disk_is_measured_once_in_a_while(store: Store, tmp_path: Path) -> None:
    clock = [0.0]
    use = DiskUse(tmp_path, store.url, lambda: clock[0])
    with store.reading() as session:
        first = use.view(session)
        (tmp_path / "new").write_bytes(b"x" * 1_000_000)
        assert use.view(session) is first
        clock[0] = EVERY
        second = use.view(session)
    assert first is not None
    assert second is not None
    assert second.data_bytes >= first.data_bytes + 1_000_000


def test_a_large_folder_is_a_lower_bound(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "PATIENCE", -1.0)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"x" * 100_000)
    with store.reading() as session:
        disk = DiskUse(tmp_path, store.url).view(session)
    assert disk is not None
    assert not disk.data_complete


def test_nobody_waits_for_a_measurement(store: Store, tmp_path: Path) -> None:
    """A folder with a million files takes a second, and pages that come meanwhile have the answer before."""
    use = DiskUse(tmp_path, store.url)
    seen = []

    def ask() -> None:
        with store.reading() as session:
            seen.append(use.view(session))

    with use._lock:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_disk_that_is_away_is_not_measured(store: Store, tmp_path: Path) -> None:
    with store.reading() as session:
        assert DiskUse(tmp_path / "nothing", store.url).view(session) is None
