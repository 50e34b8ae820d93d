"""Files of a service on another machine: fetched once, checked, and bounded."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from evalsvc.files import served, service_files
from evalsvc.files.kept import KeptFileLost
from evalsvc.files.served import Part, ServedFiles
from evalsvc.files.service_files import ServiceFiles

KEY = "ab" * 32
NAME = f"{KEY}.moments.npz"
ANSWER = f"answers/{KEY}/{'cd' * 32}.json"
CONTENT = bytes(range(250))


class Counted(ServedFiles):
    """Counts the bytes that leave the service; `damage` changes a part on its way."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sent = 0
        self.damage: Callable[[int, bytes], bytes | None] = lambda offset, data: data

    def part(self, place: str, offset: int | None) -> Part | None:
        found = super().part(place, offset)
        if found is None or offset is None:
            return found
        self.sent += len(found.data)
        data = self.damage(offset, found.data)
        return None if data is None else Part(found.size, found.sha256, data)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    monkeypatch.setattr(served, "PART_BYTES", 100)
    for place in (f"statistics/{NAME}", f"statistics/{ANSWER}", "statistics/coco.npz", "outputs/3/4-1"):
        (tmp_path / "service" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "service" / place).write_bytes(CONTENT)
    return Counted(tmp_path / "service")


@pytest.fixture
def files(service: Counted, tmp_path: Path) -> ServiceFiles:
    return ServiceFiles(service, tmp_path / "copies")


def read(files: ServiceFiles, name: str) -> bytes:
    with files.open(name) as stream:
        return stream.read()


def test_a_file_travels_to_a_machine_once(files: ServiceFiles, service: Counted, tmp_path: Path) -> None:
    assert files.names() == {NAME, "coco.npz"}
    assert files.names(f"answers/{KEY}") == {ANSWER}
    assert read(files, NAME) == CONTENT
    another = ServiceFiles(service, tmp_path / "copies")
    assert read(another, ANSWER) == read(another, "coco.npz") == CONTENT
    with another.fetch("outputs/3/4-1", hashlib.sha256(CONTENT).hexdigest()) as stream:
        assert stream.read() == CONTENT
    assert service.sent == len(CONTENT), "content is what a copy is known by, not its name"


def test_a_damaged_copy_is_fetched_again(files: ServiceFiles, service: Counted, tmp_path: Path) -> None:
    read(files, NAME)
    [copy] = (tmp_path / "copies").iterdir()
    copy.write_bytes(bytes(250))
    assert read(files, NAME) == CONTENT
    assert service.sent == 2 * len(CONTENT)


def test_an_imported_name_that_has_other_numbers_now_is_another_copy(files: ServiceFiles, tmp_path: Path) -> None:
    read(files, "coco.npz")
    (tmp_path / "service" / "statistics" / "coco.npz").write_bytes(b"other")
    assert read(files, "coco.npz") == b"other"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda offset, data: bytes(len(data)), "changed while it was fetched"),
        (lambda offset, data: None if offset else data, "disappeared"),
        (lambda offset, data: data[:0] if offset else data, "disappeared"),
    ],
    ids=["changed", "gone", "cut"],
)
def test_what_is_damaged_on_the_way_leaves_no_copy(
    files: ServiceFiles, service: Counted, tmp_path: Path, damage: Callable[[int, bytes], bytes | None], reason: str
) -> None:
    service.damage = damage
    with pytest.raises(KeptFileLost, match=reason):
        files.open(NAME)
    assert list((tmp_path / "copies").iterdir()) == []


def test_what_the_service_has_not_is_lost(files: ServiceFiles) -> None:
    for name in (f"{'ee' * 32}.npz", "../evalsvc.db"):
        with pytest.raises(KeptFileLost, match="the service has no file"):
            files.open(name)
    with pytest.raises(KeptFileLost, match="has other content than was written"):
        files.fetch("outputs/3/4-1", "00" * 32)


def test_new_files_are_there_at_once_and_go_to_the_service_with_the_result(
    files: ServiceFiles, service: Counted, tmp_path: Path
) -> None:
    name = f"{'ee' * 32}.moments.npz"
    files.keep_bytes(name, b"new")
    assert name in files.names()
    assert name not in files.names(f"answers/{KEY}")
    assert read(files, name) == b"new"
    assert files.new == {name: b"new"}
    (tmp_path / "service" / "statistics" / name).write_bytes(files.new[name])  # as the service does
    assert read(ServiceFiles(service, tmp_path / "copies"), name) == b"new"
    assert service.sent == 0, "what a machine has computed does not come back to it"
    with pytest.raises(ValueError, match="no name to keep"):
        files.keep_bytes("coco.npz", b"")


def test_a_machine_without_room_for_copies_works_and_fetches_again(
    files: ServiceFiles, service: Counted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk on a worker is no reason to run other shards again."""
    (tmp_path / "copies").write_bytes(b"in the way")
    assert read(files, NAME) == read(files, NAME) == CONTENT
    assert service.sent == 2 * len(CONTENT)
    assert "no copy of" in caplog.text


def test_what_another_process_writes_stays_and_what_one_left_behind_goes(
    files: ServiceFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_files, "COPIES_BYTES", 0)
    (tmp_path / "copies").mkdir()
    written, left = (tmp_path / "copies" / f"{name}.partial" for name in ("written", "left"))
    for path in (written, left):
        path.write_bytes(b"half")
    os.utime(left, (1_000, 1_000))
    read(files, NAME)
    assert written.exists()
    assert not left.exists()


def test_copies_that_were_used_least_recently_go_first(
    files: ServiceFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_files, "COPIES_BYTES", 10)
    folder = tmp_path / "service" / "statistics"
    for age, content in enumerate((b"oldest", b"older", b"newest")):
        (folder / "coco.npz").write_bytes(content)
        read(files, "coco.npz")
        copy = tmp_path / "copies" / hashlib.sha256(content).hexdigest()
        os.utime(copy, (1_000 + age, 1_000 + age))
    assert {path.read_bytes() for path in (tmp_path / "copies").iterdir()} == {b"older", b"newest"}
