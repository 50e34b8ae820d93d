"""Copies are complete or not there: in the spool they outlive their originals, and the cache stays below its bound."""

import fcntl
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import pytest

from evalsvc.checkpoints.copies import Cache, Copy, NoRoom, copy_files, keep_uploads, link_into, spool_path, spooled
from evalsvc.checkpoints.opening import opened
from evalsvc.checkpoints.reference import (
    CheckpointRef,
    Identity,
    check_sha256,
    hash_files,
    identify,
    uploaded_sha256,
    verify,
)
from evalsvc.errors import (
    CacheFull,
    CheckpointChanged,
    CheckpointGone,
    CheckpointNotAllowed,
    DataDirectoryUnusable,
    InvalidRequest,
)


@pytest.fixture(params=["file", "folder"])
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / "run" / "epoch_1"
    inside = path / "sub" if request.param == "folder" else path.parent
    inside.mkdir(parents=True)
    (inside / path.name).write_bytes(b"weights")
    return path


@pytest.mark.parametrize("kind", ["link", "copy"])
def test_a_spooled_checkpoint_outlives_the_original(original: Path, tmp_path: Path, kind: str) -> None:
    before, digest, copy = identify(original), hash_files(original), spooled(tmp_path, 7)
    path = spool_path(tmp_path, 7, str(original))
    if kind == "link":
        link_into(copy, original, path.name)
    else:
        (copy.partial / original.name).mkdir(parents=True)
        (copy.partial / original.name / "half").write_bytes(b"of a copy that broke off")
        copy.fill(lambda folder: copy_files(original, folder / path.name))
    shutil.rmtree(original.parent)
    assert identify(path) == before, "a spooled checkpoint must still be the posted one"
    assert hash_files(path) == digest
    for _ in range(2):
        copy.remove()
        assert list(copy.folder.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "copy"])
def test_what_takes_the_name_of_an_open_file_is_not_spooled(original: Path, tmp_path: Path, kind: str) -> None:
    """The spool lies below the roots of workers: what was exchanged for a file outside was read from there."""
    secret = tmp_path / "secret" / original.name
    (secret / "sub" if original.is_dir() else secret.parent).mkdir(parents=True)
    (secret / "sub" / "epoch_1" if original.is_dir() else secret).write_bytes(b"secrets")
    digest, copy = hash_files(original), spooled(tmp_path, 7)
    with opened(CheckpointRef(str(original))) as pinned:
        original.parent.rename(tmp_path / "moved")
        original.parent.symlink_to(tmp_path / "secret")
        if kind == "link":
            link_into(copy, Path(pinned.path), original.name)
        else:
            copy.fill(lambda folder: copy_files(Path(pinned.path), folder / original.name))
    assert hash_files(copy.folder / original.name) == digest
    assert not any(path.is_symlink() for path in copy.folder.rglob("*"))


def test_a_link_that_cannot_be_made(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InvalidRequest, match=r"invalid cross-device link.*use spool=copy"):
        link_into(spooled(tmp_path, 1), original, original.name)
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_an_upload_is_kept_with_links_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Workers read the copy, and may be other users of the group; the upload itself is the service's alone."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    upload = tmp_path / "verified"
    upload.write_bytes(b"weights")
    upload.chmod(0o600)
    keep_uploads(copy := spooled(tmp_path, 7), {"upload:abc": upload})
    kept = copy.folder / "upload:abc"
    assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (b"weights", 0o640)
    monkeypatch.setattr(shutil, "copyfile", refuse)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(DataDirectoryUnusable, match=r"uploads cannot be kept in .*free some space in the data folder"):
        keep_uploads(spooled(tmp_path, 8), {"upload:abc": upload})


def test_workers_of_another_user_can_read_a_copy(original: Path, tmp_path: Path) -> None:
    """Whatever the umask of the training job was."""
    for path in (original, *original.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    copy = spooled(tmp_path, 1)
    copy.fill(lambda folder: copy_files(original, folder / original.name))
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in copy.folder.rglob("*")}
    assert modes.items() <= {True: 0o750, False: 0o640}.items()


def test_an_uploaded_file_gets_its_name_in_the_spool(tmp_path: Path) -> None:
    """What a post that was rolled back left under the same id is replaced."""
    source = tmp_path / "verified"
    source.write_bytes(b"weights")
    copy = spooled(tmp_path, 7)
    for content in (b"weights", b"others"):
        source.unlink()
        source.write_bytes(content)
        keep_uploads(copy, {"upload:abc": source})
        assert [(path.name, path.read_bytes()) for path in copy.folder.iterdir()] == [("upload:abc", content)]
    source.unlink()
    private = tmp_path / "private"
    private.touch(0o600)
    source.symlink_to(private)
    keep_uploads(copy, {"upload:abc": source})
    assert (copy.folder / "upload:abc").is_symlink(), "a link is linked, and not what the link leads to"
    assert private.stat().st_mode & 0o777 == 0o600


def test_a_copy_is_removed_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup that lists the folder while its files are deleted would take the rest for the checkpoint."""
    copy = spooled(tmp_path, 7)
    copy.fill(lambda folder: [(folder / name).touch() for name in ("a", "b")])  # type: ignore[arg-type, return-value]
    remove, deletes_in_place = os.unlink, []

    def unlink(path: str, **options: int) -> None:
        deletes_in_place.append(copy.folder.exists())
        remove(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    copy.remove()
    assert deletes_in_place[:2] == [False, False]
    assert not copy.partial.exists()


def write(size: int, folder: Path) -> None:
    (folder / "x.pt").write_bytes(b"x" * size)


def refuse(folder: Path) -> None:
    raise AssertionError("it is there already")


def put(cache: Cache, name: str, size: int) -> Copy:
    entry = cache.copy(name, Identity(size, 0, "1"))
    with cache.held(entry, partial(write, size), int):
        pass
    return entry


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 100)


def test_a_second_use_fetches_nothing(cache: Cache) -> None:
    entry = put(cache, "a", 40)
    with cache.held(entry, refuse, int) as folder:
        assert (folder / "x.pt").read_bytes() == b"x" * 40
    assert cache.copy("a", Identity(40, 0, "2")) != entry, "another content at the same address"
    (entry.folder.parent.parent / "file").write_text("")
    with pytest.raises(CacheFull, match=r"cannot be created .*; set EVALSVC_CACHE"):
        put(Cache(entry.folder.parent.parent / "file" / "cache", 100), "a", 1)


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
    """Two that are fetched at once fit each alone; counting what has arrived so far would let both in."""

    def fetch(folder: Path) -> None:
        with pytest.raises(NoRoom):
            put(cache, "b", 60)
        write(60, folder)

    entry = cache.copy("a", Identity(60, 0, "1"))
    with cache.held(entry, fetch, int):
        with pytest.raises(NoRoom):
            put(cache, "b", 60)
        put(cache, "c", 40)
        assert entry.folder.exists()
    put(cache, "b", 60)
    assert not entry.folder.exists()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.pt")) <= 100


def broken_off(cache: Cache, error: Exception) -> Copy:
    """An entry whose fetch ended half way."""
    entry = cache.copy("a", Identity(60, 0, "1"))

    def fetch(folder: Path) -> None:
        (folder / "x.pt").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)), cache.held(entry, fetch, int):
        pass
    return entry


def test_a_fetch_that_broke_off_is_gone_on_with(cache: Cache) -> None:
    entry = broken_off(cache, OSError("the connection broke"))
    assert not entry.folder.exists()

    def go_on(folder: Path) -> None:
        assert (folder / "x.pt").read_bytes() == b"half"

    with cache.held(entry, go_on, int) as folder:
        assert folder.is_dir()
    cache.drop(entry)
    assert broken_off(cache, OSError("the connection broke")).partial.exists()
    put(cache, "b", 60)
    assert not entry.partial.exists(), "a part makes room"
    assert not broken_off(cache, CheckpointChanged("it was replaced")).partial.exists(), "not what was posted"


@pytest.mark.parametrize("cancelled", [False, True])
def test_of_several_processes_one_fetches(cache: Cache, cancelled: bool) -> None:
    """A worker that waits for another one's fetch must still hear that its evaluation was cancelled."""
    entry = cache.copy("a", Identity(60, 0, "1"))
    entry.lock.parent.mkdir()

    def finish() -> None:
        if cancelled:
            raise KeyboardInterrupt
        entry.folder.mkdir()
        fcntl.flock(file, fcntl.LOCK_UN)

    with entry.lock.open("w") as file, pytest.raises(KeyboardInterrupt) if cancelled else nullcontext():
        fcntl.flock(file, fcntl.LOCK_EX)
        with cache.held(entry, refuse, finish) as folder:
            assert folder == entry.folder


def test_many_at_once_stay_below_the_bound(tmp_path: Path) -> None:
    """Threads with their own locks, as processes have: fetching, using, evicting, in any order."""
    cache = Cache(tmp_path / "cache", 100)

    def use(number: int) -> None:
        for turn in range(12):
            entry = cache.copy(f"{(number + turn) % 5}", Identity(30, 0, "1"))
            with suppress(NoRoom), cache.held(entry, partial(write, 30), int) as folder:
                assert (folder / "x.pt").read_bytes() == b"x" * 30

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.pt")) <= 100


def test_identity_and_digest_of_a_file_and_of_a_folder(original: Path) -> None:
    """Size, time and content; for a folder of all files, and the names belong to the content."""
    files = [original]
    if original.is_dir():
        (original / "config.json").write_bytes(b"{}")
        files = [original / "sub" / "epoch_1", original / "config.json"]
    for nanoseconds, file in enumerate(files, 5):
        os.utime(file, ns=(nanoseconds, nanoseconds))
    assert identify(original) == Identity(7 if len(files) == 1 else 9, 4 + len(files))
    digest = hash_files(original)
    assert (digest == hashlib.sha256(b"weights").hexdigest()) == (len(files) == 1)
    if original.is_dir():
        files[1].rename(original / "other.json")
        assert hash_files(original) != digest
    with pytest.raises(CheckpointGone, match="no such file"):
        identify(original.with_name("none.pt"))


def test_verify(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(error: type[Exception], *fragments: str) -> None:
        with pytest.raises(error) as caught:
            verify(reference)
        for fragment in fragments:
            assert fragment in str(caught.value)

    verify(CheckpointRef(str(original)))
    reference = CheckpointRef(str(original), identify(original), label="run-a step 25")
    verify(reference)
    changed = original / "sub" / "more.json" if original.is_dir() else original
    changed.write_bytes(b"other weights")
    told = ("run-a step 25", str(original))
    refused(CheckpointChanged, *told, "20 bytes" if original.is_dir() else "13 bytes", "7 bytes", "replace=true")
    shutil.rmtree(original.parent)
    refused(CheckpointGone, *told, "was deleted before it was evaluated", "spool=link or spool=copy")
    # The uri of an uploaded file would be a relative path: such a file in the folder of a worker is none of ours.
    monkeypatch.chdir(tmp_path)
    uri = f"upload:{'0' * 64}"
    (tmp_path / uri).write_bytes(b"weights")
    reference = CheckpointRef(path=uri, identity=identify(tmp_path / uri), label="run 'a' step 1")
    refused(CheckpointGone, "run 'a' step 1: ", "submit RUN STEP FILE --upload")
    for sha256 in (None, "f" * 64):
        check_sha256(CheckpointRef("/a.pt", sha256=sha256), "f" * 64)
    with pytest.raises(CheckpointChanged, match=r"has sha256 ff.*, expected 00.*; post it again"):
        check_sha256(CheckpointRef("/a.pt", sha256="0" * 64), "f" * 64)


def test_uris_of_uploaded_files() -> None:
    assert uploaded_sha256(f"upload:{'A' * 64}") == "a" * 64
    assert uploaded_sha256("/uploads/a.pt") is None
    for uri in ("upload:", "upload:abc", f"upload:{'0' * 63}/", f"upload:{'0' * 64}/../a", "upload://a"):
        with pytest.raises(CheckpointNotAllowed, match="64 hexadecimal digits"):
            uploaded_sha256(uri)
