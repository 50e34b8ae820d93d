"""Files for later evaluations: in a folder of this machine, and what other machines get of them."""

import os
from pathlib import Path

import pytest

from evalsvc.errors import DataDirectoryUnusable
from evalsvc.files import kept
from evalsvc.files.atomic import FileLost
from evalsvc.files.kept import KeptFolder

KEY = "ab" * 32
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
    files.folder.write_bytes(b"in the way")
    with pytest.raises(DataDirectoryUnusable, match="make room or change permissions"):
        files.keep_bytes(f"{KEY}.npz", b"")


def test_a_write_that_fails_leaves_the_old_file(files: KeptFolder) -> None:
    files.keep_bytes(f"{KEY}.npz", b"old")

    def fail(stream: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataDirectoryUnusable, match="no space left on device"):
        files.keep(f"{KEY}.npz", fail)
    assert [path.name for path in files.folder.iterdir()] == [f"{KEY}.npz"]


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
