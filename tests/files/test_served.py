"""What a worker on another machine may read of the service's data folder, and how."""

import hashlib
from pathlib import Path

import pytest

from evalsvc.files import served
from evalsvc.files.served import ServedFiles

KEY = "ab" * 32
SMALL = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    answers = tmp_path / "statistics" / "answers" / KEY
    answers.mkdir(parents=True)
    (tmp_path / "outputs" / "7").mkdir(parents=True)
    for place in (f"statistics/{KEY}.npz", "statistics/coco.npz", f"statistics/answers/{KEY}/{KEY}.json"):
        (tmp_path / place).write_bytes(place.encode())
    (tmp_path / "outputs" / "7" / "12-1").write_bytes(bytes(range(25)))
    (tmp_path / "evalsvc.db").write_bytes(b"secret")
    return tmp_path


def test_a_file_comes_in_parts_with_the_digest_of_the_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "PART_BYTES", SMALL)
    files = ServedFiles(folder)
    parts = [files.part("outputs/7/12-1", offset) for offset in (0, 10, 20, 25)]
    assert [len(part.data) for part in parts if part] == [10, 10, 5, 0]
    assert b"".join(part.data for part in parts if part) == bytes(range(25))
    about = files.part("outputs/7/12-1", None)
    assert about is not None
    assert (about.size, about.sha256, about.data) == (25, hashlib.sha256(bytes(range(25))).hexdigest(), b"")


def test_a_file_that_was_written_anew_has_another_digest(folder: Path) -> None:
    files = ServedFiles(folder)
    before = files.part("statistics/coco.npz", None)
    (folder / "statistics" / "new").write_bytes(b"other")
    (folder / "statistics" / "new").rename(folder / "statistics" / "coco.npz")
    after = files.part("statistics/coco.npz", None)
    assert before is not None
    assert after is not None
    assert before.sha256 != after.sha256


@pytest.mark.parametrize(
    "place",
    [
        "evalsvc.db",
        "statistics/../evalsvc.db",
        "/etc/passwd",
        "outputs/7/../../evalsvc.db",
        "outputs/7/12-1/",
        "statistics/nothing.npz",
        "statistics",
        "statistics/answers",
        f"statistics/answers/{KEY}/x.json",
        "artifacts/ab/cd",
        "statistics/coco.npz\n",
    ],
)
def test_nothing_else_is_there(folder: Path, place: str) -> None:
    files = ServedFiles(folder)
    assert files.part(place, 0) is None
    assert files.part(place, None) is None


def test_a_folder_in_the_place_of_a_file_and_a_place_before_it_are_none(folder: Path) -> None:
    (folder / "statistics" / "folder.npz").mkdir()
    assert ServedFiles(folder).part("statistics/folder.npz", 0) is None
    assert ServedFiles(folder).part("statistics/coco.npz", -1) is None


def test_names_are_those_of_kept_files(folder: Path) -> None:
    files = ServedFiles(folder)
    assert sorted(files.names("statistics")) == [f"{KEY}.npz", "coco.npz"]
    assert files.names(f"statistics/answers/{KEY}") == [f"{KEY}.json"]
    for other in ("", ".", "statistics/..", "outputs", "outputs/7", "/etc", "statistics/answers", "statistics/x"):
        assert files.names(other) == []
