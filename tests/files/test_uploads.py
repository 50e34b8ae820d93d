"""The store of uploads: whose they are, how many there may be, what counts when, and what a killed service leaves."""

import base64
import hashlib
import os
import time
from contextlib import AbstractContextManager, closing
from pathlib import Path
from shutil import disk_usage

import pytest

from evalsvc.errors import ChecksumMismatch, DataDirectoryUnusable, StorageFull, UploadConflict, UploadNotFound
from evalsvc.files import uploads as module
from evalsvc.files.manifest import write_manifest
from evalsvc.files.uploads import RESERVE_BYTES, Part, Upload, Uploads

CONTENT = b"weights" * 1000
LIMIT = 1_000_000


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", LIMIT)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


SHA256 = sha256(CONTENT)


def create(uploads: Uploads, content: bytes = CONTENT, owner: str | None = "trainer", kept: int = 0) -> Upload:
    return uploads.create(owner, sha256(content), len(content), kept)


def part_of(
    uploads: Uploads, content: bytes = CONTENT, offset: int = 0, owner: str = "trainer", checksum: str | None = None
) -> AbstractContextManager[Part]:
    return closing(Part(uploads, owner, sha256(content), offset, checksum, 0))


def send(uploads: Uploads, sent: bytes, content: bytes = CONTENT, offset: int = 0, owner: str = "trainer") -> None:
    with part_of(uploads, content, offset, owner) as part:
        part.write(sent)
        part.finish()


def offset_of(uploads: Uploads) -> int:
    return uploads.find("trainer", SHA256).offset


def test_an_upload_is_its_owners_alone(uploads: Uploads) -> None:
    upload = create(uploads)
    assert uploads.find("trainer", SHA256) == upload
    others = [(owner, SHA256) for owner in ("other", None, "None")]
    for owner, digest in (*others, ("trainer", "0" * 64), ("trainer", "..")):
        with pytest.raises(UploadNotFound, match="POST /v1/uploads"):
            uploads.find(owner, digest)
    assert (uploads.folder.stat().st_mode & 0o777, upload.path.stat().st_mode & 0o777) == (0o700, 0o600)
    assert create(uploads, owner=None).path != upload.path


def test_the_same_file_is_announced_twice_and_is_one_upload(uploads: Uploads) -> None:
    create(uploads)
    send(uploads, CONTENT[:3000])
    assert create(uploads).offset == 3000
    assert uploads.create("trainer", SHA256, 10, 0).offset == 0, "of two lengths the newer is right"
    assert len(list(uploads.folder.iterdir())) == 1


def test_a_killed_service_goes_on_where_the_disk_is(uploads: Uploads) -> None:
    create(uploads)
    with part_of(uploads) as part:
        part.write(CONTENT[:3000])  # and never finished
    restarted = Uploads(uploads.folder, LIMIT)
    assert offset_of(restarted) == 3000
    with pytest.raises(UploadConflict, match=r"3,000 of 7,000 bytes"):
        restarted.verify("trainer", SHA256)
    send(restarted, CONTENT[3000:], offset=3000)
    assert restarted.verify("trainer", SHA256).path.read_bytes() == CONTENT


def test_bytes_are_flushed_as_they_arrive(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gigabytes that are flushed together would hold up the database."""
    monkeypatch.setattr(module, "SYNC_BYTES", 4000)
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda file: flushed.append(os.fstat(file).st_size))
    create(uploads)
    with part_of(uploads) as part:
        for start in range(0, 6000, 2000):
            part.write(CONTENT[start : start + 2000])
        assert flushed == [4000]
        part.finish()
    assert flushed == [4000, 6000]


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_part_with_a_checksum_is_all_or_nothing(uploads: Uploads, algorithm: str) -> None:
    create(uploads)
    send(uploads, CONTENT[:1000])
    checksum = f"{algorithm} {base64.b64encode(hashlib.new(algorithm, CONTENT[1000:]).digest()).decode()}"
    with part_of(uploads, offset=1000, checksum=checksum) as part:
        part.write(b"?" * 6000)
        with pytest.raises(ChecksumMismatch, match=f"another {algorithm}"):
            part.finish()
    with part_of(uploads, offset=1000, checksum=checksum) as part:
        part.write(CONTENT[1000:2000])  # and never finished
    assert offset_of(uploads) == 1000
    with part_of(uploads, offset=1000, checksum=checksum) as part:
        part.write(CONTENT[1000:])
        part.finish()
    assert uploads.verify("trainer", SHA256).is_verified


def test_space_counts_when_it_is_used(uploads: Uploads) -> None:
    """One token announced files of the whole space without sending a byte, and nobody else could upload for a day."""
    first, second, third = (bytes([number]) * 600_000 for number in range(3))
    create(uploads, first, "mine")
    create(uploads, second, "theirs")
    with pytest.raises(StorageFull, match="your unfinished uploads still need 600,000"):
        create(uploads, third, "mine")
    send(uploads, first, first, owner="mine")
    with part_of(uploads, second, owner="theirs") as part:
        part.write(second[:400_000])
        with pytest.raises(StorageFull, match=r"have 1,000,000 of these, .* resume"):
            part.write(second[400_000:])
    uploads.delete("mine", sha256(first))
    send(uploads, second[400_000:], second, 400_000, "theirs")


def test_bytes_that_arrive_count_before_their_checksum_is_compared(uploads: Uploads) -> None:
    first, second = (bytes([number]) * 600_000 for number in range(2))
    create(uploads, first)
    create(uploads, second, "theirs")
    with part_of(uploads, second, owner="theirs") as waiting:
        with part_of(uploads, first, checksum="sha1 0") as part:
            part.write(first)
            with pytest.raises(StorageFull):
                waiting.write(second)
        waiting.write(second)


def test_the_number_of_uploads_is_bounded(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UPLOADS_OF_OWNER", 2)
    monkeypatch.setattr(module, "MAX_UPLOADS", 3)
    for content in (b"1", b"2"):
        create(uploads, content)
    with pytest.raises(StorageFull, match="2 uploads of this client"):
        create(uploads, b"3")
    create(uploads, b"3", "another")
    with pytest.raises(StorageFull, match="3 uploads in all"):
        create(uploads, b"4", "a third")


def test_finished_files_of_a_folder_leave_room_for_the_others(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of 17 files could never be sent: each waits for the others, and there were 16 uploads of a token."""
    monkeypatch.setattr(module, "MAX_UPLOADS_OF_OWNER", 1)
    monkeypatch.setattr(module, "MAX_KEPT_OF_OWNER", 3)
    for content in (b"1", b"2", b"3"):
        create(uploads, content)
        send(uploads, content, content)
    with pytest.raises(StorageFull, match="3 uploads of this client"):
        create(uploads, b"4")
    manifest = write_manifest({name: sha256(name.encode()) for name in "123"})
    create(uploads, manifest, "other")
    send(uploads, manifest, manifest, owner="other")
    sent = uploads.finished("other", sha256(manifest))
    assert sent is not None
    assert (sent.files, sent.missing, sent.paths("a")) == ({}, ("1", "2", "3"), {}), "files of another client"


def test_a_file_that_is_announced_again_is_kept_for_another_day(uploads: Uploads) -> None:
    """The first file of a folder would expire while the last one is sent."""
    create(uploads)
    send(uploads, CONTENT)
    first = uploads.verify("trainer", SHA256)
    time.sleep(0.02)
    again = create(uploads)
    assert (again.expires_at > first.expires_at, again.is_verified) == (True, True)


def test_one_request_at_a_time_is_at_work(uploads: Uploads) -> None:
    create(uploads)
    with part_of(uploads):
        for work in (
            lambda: Part(uploads, "trainer", SHA256, 0, None, 0),
            lambda: uploads.delete("trainer", SHA256),
            lambda: uploads.verify("trainer", SHA256),
            lambda: uploads.create("trainer", SHA256, 10, 0),
        ):
            with pytest.raises(UploadConflict, match="another request is writing"):
                work()
    uploads.delete("trainer", SHA256)
    with pytest.raises(UploadNotFound):
        uploads.delete("trainer", SHA256)


def test_an_upload_expires_a_day_after_its_last_byte(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    create(uploads)
    with part_of(uploads) as part:
        monkeypatch.setattr(module, "LIFETIME", -1.0)
        with pytest.raises(UploadNotFound):
            uploads.find("trainer", SHA256)
        assert uploads.sweep() == 0, "a request is writing to the upload"
        monkeypatch.setattr(module, "LIFETIME", 86_400.0)
        part.write(b"w")
    monkeypatch.setattr(module, "LIFETIME", -1.0)
    assert uploads.sweep() == 1
    assert list(uploads.folder.iterdir()) == []


def test_the_disk_keeps_a_reserve(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is looked at as bytes arrive, too: others fill it meanwhile."""
    free = RESERVE_BYTES + 10_000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: disk_usage(path)._replace(free=free))
    create(uploads)
    with pytest.raises(StorageFull, match=r"7,000 bytes do not fit, and 3,000 are free"):
        create(uploads, CONTENT[::-1])
    with part_of(uploads) as part:
        part.write(CONTENT[:2000])
        free = RESERVE_BYTES - 1
        with pytest.raises(StorageFull, match="0 are free"):
            part.write(CONTENT[2000:])
    assert offset_of(uploads) == 2000


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file in its place")
    with pytest.raises(DataDirectoryUnusable, match="EVALSVC_DATA_DIR"):
        create(Uploads(tmp_path / "uploads", LIMIT))


def test_links_and_other_files_are_no_uploads(uploads: Uploads, tmp_path: Path) -> None:
    """Whoever could put links into the data folder would have the service write to any of its files."""
    upload, secret = create(uploads), tmp_path / "secret"
    secret.write_bytes(b"secret")
    upload.path.unlink()
    upload.path.symlink_to(secret)
    name = upload.path.name
    for other in ("a", name.replace("7000", "07000"), name + "0" * 20, name.upper()):
        (uploads.folder / other).touch()
    for work in (uploads.verify, uploads.delete, lambda *_: part_of(uploads)):
        with pytest.raises(UploadNotFound):
            work("trainer", SHA256)
    assert uploads.sweep() == 0
    assert secret.read_bytes() == b"secret"
    with pytest.raises(DataDirectoryUnusable, match="file exists"):
        create(uploads)
