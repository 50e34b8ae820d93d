"""The folder of the service that workers of other machines read: whose it is, and what a hostile worker puts there."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from evalsvc.errors import DataDirectoryUnusable, SourceUnreachable
from evalsvc.files import kept
from evalsvc.files.atomic import FileLost
from evalsvc.files.kept import MARKER, CarriedFiles, KeptFolder, claim_shared, require_shared, shared_owner
from evalsvc.files.outputs import keep_output

KEY = "ab" * 32


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    claim_shared(tmp_path / "shared", "mine")
    return tmp_path / "shared"


def test_a_worker_sees_the_folder_of_its_service_at_any_path(shared: Path, tmp_path: Path) -> None:
    claim_shared(shared, "mine")  # a restart
    assert shared_owner(shared) == "mine"
    (tmp_path / "mounted").symlink_to(shared)
    require_shared(tmp_path / "mounted", "mine")


def test_two_services_have_no_folder_in_common(shared: Path) -> None:
    """Each would remove the outputs that the other's database names."""
    with pytest.raises(DataDirectoryUnusable, match="is that of another service; choose another folder by EVALSVC_SHA"):
        claim_shared(shared, "another")
    assert shared_owner(shared) == "mine"


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / MARKER).write_text("another"), "that of another service"),
        (lambda folder: (folder / MARKER).write_text("MINE"), "that of another service"),
        (lambda folder: (folder / MARKER).write_text("mine" * 10**6), "that of another service"),
        (lambda folder: (folder / MARKER).unlink(), "no service has claimed it, and it holds 0 other files"),
        (lambda folder: folder.rename(folder.with_name("moved")), "because it does not exist"),
        (lambda folder: replace(folder / MARKER, os.mkfifo), "it is no regular file"),
        (lambda folder: replace(folder / MARKER, os.mkdir), "it is no regular file"),
        (lambda folder: replace(folder / MARKER, lambda path: os.symlink("/etc/passwd", path)), "symbolic link"),
    ],
)
def test_a_worker_with_another_folder(shared: Path, spoil: Callable[[Path], object], problem: str) -> None:
    """It computed statistics anew for every shard, or read the other service's."""
    spoil(shared)
    with pytest.raises(SourceUnreachable) as refused:
        require_shared(shared, "mine")
    for words in (problem, str(shared), "mount the service's EVALSVC_SHARED there"):
        assert words in refused.value.message


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def test_what_a_worker_keeps_travels_with_its_result_and_the_folder_stays(tmp_path: Path) -> None:
    """The folder may be mounted for reading alone."""
    KeptFolder(tmp_path).keep_bytes(f"{KEY}.npz", b"old")
    tmp_path.chmod(0o500)
    try:
        files = CarriedFiles(tmp_path)
        answer = f"answers/{KEY}/{KEY}.json"
        for name in (answer, f"{KEY}.npz"):
            files.keep_bytes(name, b"new")
            with files.open(name) as stream:
                assert stream.read() == b"new"
        assert files.names() == {f"{KEY}.npz"}
        assert files.names(f"answers/{KEY}") == {answer}
        for name in ("../evalsvc.db", "coco.npz"):
            with pytest.raises(ValueError, match="no name to keep"):
                files.keep_bytes(name, b"")
        assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.npz"]
        assert set(files.new) == {answer, f"{KEY}.npz"}
    finally:
        tmp_path.chmod(0o700)


def test_what_is_too_large_is_not_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Features of a million images have no room in MessagePack, and the shard that computed them failed."""
    monkeypatch.setattr(kept, "CARRIED_BYTES", 10)
    files = CarriedFiles(tmp_path)
    files.keep_bytes(f"{KEY}.features.npz", bytes(9))
    files.keep_bytes(f"{KEY}.moments.npz", bytes(3))
    assert set(files.carried()) == {f"{KEY}.moments.npz"}
    assert "features.npz, 9 bytes, is not kept for later evaluations: too large" in caplog.text
    with files.open(f"{KEY}.features.npz") as stream:
        assert stream.read() == bytes(9)


def test_workers_of_the_service_s_group_read_and_others_do_not(shared: Path) -> None:
    """They may run as users of their own."""
    KeptFolder(shared / "statistics").keep_bytes(f"{KEY}.npz", b"")
    keep_output(shared / "outputs", bytes(100_000), task=3, shard=7, attempt=1)
    modes = {path.stat().st_mode & 0o777 for path in shared.rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert shared.stat().st_mode & 0o007 == 0


ANSWER = f"answers/{KEY}/{'cd' * 32}.json"


@pytest.fixture
def files(tmp_path: Path) -> KeptFolder:
    return KeptFolder(tmp_path / "statistics")


@pytest.mark.parametrize("name", [f"{KEY}.npz", f"{KEY}.moments.npz", f"{KEY}.features.npz", ANSWER])
def test_what_is_kept_is_found_by_its_folder_and_read_by_its_name(files: KeptFolder, name: str) -> None:
    assert files.names() == frozenset()
    files.keep_bytes(name, b"old")
    files.keep_bytes(name, b"new")
    assert files.names(name.rpartition("/")[0]) == {name}
    with files.open(name) as stream:
        assert stream.read() == b"new"


def test_names_of_other_forms_are_neither_written_nor_read(files: KeptFolder, tmp_path: Path) -> None:
    """A worker is trusted, and a name that leads out of the folder is still a mistake."""
    files.folder.mkdir()
    (tmp_path / "evalsvc.db").write_bytes(b"secret")
    (files.folder / "notes.txt").write_bytes(b"")
    for name in ("../evalsvc.db", "coco.npz", f"{KEY}.npz/../../x", f"answers/{KEY}/x.json", ""):
        with pytest.raises(ValueError, match="no name to keep"):
            files.keep_bytes(name, b"")
    for name in ("../evalsvc.db", "notes.txt", "/etc/passwd", f"answers/../../{KEY}.npz"):
        with pytest.raises(FileLost, match="no name"):
            files.open(name)
    assert files.names() == frozenset()


def test_a_file_that_cannot_be_read_or_written_says_where(files: KeptFolder) -> None:
    with pytest.raises(FileLost, match="no such file"):
        files.open(f"{KEY}.npz")
    files.folder.mkdir()
    (files.folder / "coco.npz").symlink_to("/etc/passwd")
    with pytest.raises(FileLost, match=r"coco\.npz: "):
        files.open("coco.npz")
    (files.folder / "coco.npz").unlink()
    files.folder.rmdir()
    files.folder.write_bytes(b"in the way")
    with pytest.raises(DataDirectoryUnusable, match="make room or change permissions"):
        files.keep_bytes(f"{KEY}.npz", b"")


def test_answers_are_bounded_and_statistics_are_not(files: KeptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "ANSWER_BYTES", 25)
    names = [f"answers/{number:064x}/{'0' * 64}.json" for number in range(3)]
    for age, name in enumerate(names):
        files.keep_bytes(name, bytes(10))
        files.keep_bytes(f"{age:064x}.npz", bytes(100))
        os.utime(files.folder / name, (1_000 + age, 1_000 + age))
    files.open(names[1]).close()
    files.keep_bytes(f"answers/{'f' * 64}/{'0' * 64}.json", bytes(10))
    left = {path.relative_to(files.folder).as_posix() for path in files.folder.glob("answers/*/*")}
    assert left == {names[1], f"answers/{'f' * 64}/{'0' * 64}.json"}, "the one that was read is younger"
    assert len(files.names()) == 3
