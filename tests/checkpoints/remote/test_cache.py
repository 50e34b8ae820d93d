"""Fetched copies are complete or not there, and the cache stays below its bound."""

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from evalsvc.checkpoints.copies import Cache, Copy, NoRoom
from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import CacheFull, CheckpointChanged


def nothing() -> None:
    pass


def writer(size: int) -> object:
    return lambda folder: (folder / "x.pt").write_bytes(b"x" * size)


def refuse(folder: Path) -> None:
    raise AssertionError("it is there already")


def put(cache: Cache, name: str, size: int) -> Copy:
    entry = cache.copy(name, Identity(size, 0, "1"))
    with cache.held(entry, writer(size), nothing):  # type: ignore[arg-type]
        pass
    return entry


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.pt"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 100)


def test_a_second_use_fetches_nothing(cache: Cache) -> None:
    entry = put(cache, "a", 40)
    with cache.held(entry, refuse, nothing) as folder:
        assert (folder / "x.pt").read_bytes() == b"x" * 40


def test_another_content_at_the_same_address_is_another_entry(cache: Cache) -> None:
    one, two = (cache.copy("a", Identity(1, 0, etag)) for etag in ("1", "2"))
    assert one != two


def test_the_least_recently_used_goes_first(cache: Cache) -> None:
    entries = {name: put(cache, name, 40) for name in "ab"}
    for age, name in enumerate("ba"):
        os.utime(entries[name].lock, (age, age))  # b is older
    put(cache, "c", 40)
    assert not entries["b"].folder.exists()
    assert not entries["b"].lock.exists(), "nothing is left of it"
    assert entries["a"].folder.exists()
    put(cache, "a", 40)
    put(cache, "d", 40)
    assert entries["a"].folder.exists(), "using it made it recent"


def test_what_is_in_use_stays(cache: Cache, tmp_path: Path) -> None:
    entry = cache.copy("a", Identity(60, 0, "1"))
    with cache.held(entry, writer(60), nothing):  # type: ignore[arg-type]
        with pytest.raises(NoRoom):
            put(cache, "b", 60)
        put(cache, "c", 40)
        assert entry.folder.exists()
    put(cache, "b", 60)
    assert not entry.folder.exists()
    assert size_of(tmp_path) <= 100


def test_what_is_being_fetched_counts_in_full(cache: Cache) -> None:
    """Two that are fetched at once fit each alone; counting what has arrived so far would let both in."""

    def fetch(folder: Path) -> None:
        with pytest.raises(NoRoom):
            put(cache, "b", 60)
        (folder / "x.pt").write_bytes(b"x" * 60)

    with cache.held(cache.copy("a", Identity(60, 0, "1")), fetch, nothing):
        pass


def broken_off(cache: Cache, error: Exception) -> Copy:
    """An entry whose fetch ended half way."""
    entry = cache.copy("a", Identity(60, 0, "1"))

    def fetch(folder: Path) -> None:
        (folder / "x.pt").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)), cache.held(entry, fetch, nothing):
        pass
    return entry


def test_a_fetch_that_broke_off_is_gone_on_with(cache: Cache) -> None:
    entry = broken_off(cache, OSError("the connection broke"))
    assert not entry.folder.exists()

    def go_on(folder: Path) -> None:
        assert (folder / "x.pt").read_bytes() == b"half"

    with cache.held(entry, go_on, nothing) as folder:
        assert folder.is_dir()


def test_the_part_of_a_fetch_that_broke_off_makes_room(cache: Cache) -> None:
    entry = broken_off(cache, OSError("the connection broke"))
    put(cache, "b", 60)
    assert not entry.partial.exists()


def test_what_is_not_the_posted_content_is_not_kept(cache: Cache) -> None:
    assert not broken_off(cache, CheckpointChanged("it was replaced")).partial.exists()


@pytest.fixture
def fetching(cache: Cache) -> Iterator[tuple[Copy, IO[str]]]:
    """An entry that another process is fetching, and the file that it has locked meanwhile."""
    entry = cache.copy("a", Identity(60, 0, "1"))
    entry.lock.parent.mkdir()
    with entry.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield entry, file


def test_of_several_processes_one_fetches(cache: Cache, fetching: tuple[Copy, IO[str]]) -> None:
    entry, file = fetching

    def finish() -> None:
        entry.folder.mkdir()
        fcntl.flock(file, fcntl.LOCK_UN)

    with cache.held(entry, refuse, finish) as folder:
        assert folder == entry.folder


def test_a_cancelled_wait_ends(cache: Cache, fetching: tuple[Copy, IO[str]]) -> None:
    """A worker that waits for another one's fetch must still hear that its evaluation was cancelled."""

    def cancelled() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), cache.held(fetching[0], refuse, cancelled):
        pass


def test_many_at_once_stay_below_the_bound(tmp_path: Path) -> None:
    """Threads with their own locks, as processes have: fetching, using, evicting, in any order."""
    limit, wrong = 100, []
    cache = Cache(tmp_path / "cache", limit)

    def use(number: int) -> None:
        for turn in range(12):
            name = f"{(number + turn) % 5}"
            entry = cache.copy(name, Identity(30, 0, "1"))
            try:
                with cache.held(entry, writer(30), nothing) as folder:  # type: ignore[arg-type]
                    if (folder / "x.pt").read_bytes() != b"x" * 30:
                        wrong.append(name)
            except NoRoom:
                pass
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert size_of(tmp_path) <= limit


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache", 100)
    with pytest.raises(CacheFull, match=r"cannot be created .*; set EVALSVC_CACHE"):
        put(cache, "a", 1)
