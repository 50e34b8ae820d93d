"""How many uploads there may be, whose they are, when they end, and what a killed service leaves of them."""

import hashlib
import os
import time
from pathlib import Path
from shutil import disk_usage
from types import SimpleNamespace

import pytest

from evalsvc.errors import CheckpointChanged, DataDirectoryUnusable, StorageFull, UploadConflict, UploadNotFound
from evalsvc.files.uploads import folder as folder_module
from evalsvc.files.uploads.folder import RESERVE_BYTES, UploadFolder
from evalsvc.files.uploads.part import Checksum, PartWriter
from evalsvc.files.uploads.stored import LIFETIME, StoredUpload

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def uploads(tmp_path: Path) -> UploadFolder:
    return UploadFolder(tmp_path / "uploads", limit=1_000_000)


def create(uploads: UploadFolder, content: bytes = CONTENT, owner: str | None = "trainer") -> StoredUpload:
    return uploads.create(len(content), hashlib.sha256(content).hexdigest(), "epoch_1.pt", owner, kept_bytes=0)


def send(uploads: UploadFolder, upload: StoredUpload, part: bytes, offset: int = 0) -> int:
    writer = PartWriter(uploads, upload.id, upload.owner, offset)
    try:
        writer.write(part)
        return writer.keep()
    finally:
        writer.close()


def test_an_upload_is_found_by_its_owner_alone(uploads: UploadFolder) -> None:
    upload = create(uploads)
    assert uploads.find(upload.id, "trainer") == upload
    for upload_id, owner in ((upload.id, "other"), (upload.id, None), ("0" * 32, "trainer"), ("..", "trainer")):
        with pytest.raises(UploadNotFound, match="POST /v1/uploads"):
            uploads.find(upload_id, owner)
    assert uploads.of_owner("other") == []
    assert uploads.of_owner("trainer", "0" * 64) == []
    assert [found.id for found in uploads.of_owner("trainer", SHA256)] == [upload.id]


def test_what_is_on_the_disk_is_for_its_owner_alone(uploads: UploadFolder) -> None:
    upload = create(uploads)
    folder = uploads.folder / upload.id
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_whole_file_is_verified_once_and_has_one_identity(uploads: UploadFolder) -> None:
    upload = create(uploads)
    with pytest.raises(UploadConflict, match=r"0 of 7,000 bytes"):
        uploads.verify(upload.id, "trainer")
    assert uploads.verified(SHA256, "trainer") is None
    send(uploads, upload, CONTENT)
    found = uploads.verified(SHA256, "trainer")
    assert found is not None
    assert found.is_verified
    path = uploads.path(found)
    assert path.read_bytes() == CONTENT
    assert (path.stat().st_mtime_ns, path.stat().st_mode & 0o777) == (0, 0o600)
    assert uploads.verify(upload.id, "trainer") == found


@pytest.mark.parametrize("restarted", [False, True])
def test_a_file_with_another_digest_is_deleted(uploads: UploadFolder, restarted: bool) -> None:
    """Also where the service was restarted, and the digest comes from the disk."""
    upload = create(uploads)
    send(uploads, upload, CONTENT[:-1] + b"?")
    if restarted:
        uploads = UploadFolder(uploads.folder, 1_000_000)
    with pytest.raises(CheckpointChanged, match=f"{SHA256} was announced"):
        uploads.verify(upload.id, "trainer")
    assert list(uploads.folder.iterdir()) == []


def test_a_restarted_service_goes_on_and_trusts_the_disk_alone(uploads: UploadFolder) -> None:
    upload = create(uploads)
    send(uploads, upload, CONTENT[:3000])
    with (uploads.folder / upload.id / "content").open("ab") as content:
        content.write(b"written, and not counted when the service was killed")
    restarted = UploadFolder(uploads.folder, 1_000_000)
    assert restarted.find(upload.id, "trainer").offset == 3000
    send(restarted, upload, CONTENT[3000:], 3000)
    assert restarted.path(restarted.verify(upload.id, "trainer")).read_bytes() == CONTENT


def test_a_file_that_lost_bytes_counts_those_that_are_there(uploads: UploadFolder) -> None:
    upload = create(uploads)
    send(uploads, upload, CONTENT)
    os.truncate(uploads.folder / upload.id / "content", 100)
    assert uploads.find(upload.id, "trainer").offset == 100


def test_space_counts_when_it_is_used(uploads: UploadFolder) -> None:
    """One token announced files of the whole space without sending a byte, and nobody else could upload for a day."""
    content = b"w" * 600_000
    mine, theirs = create(uploads, content, "mine"), create(uploads, content, "theirs")
    with pytest.raises(StorageFull, match="your unfinished uploads still need 600,000"):
        create(uploads, content, "mine")
    send(uploads, mine, content)
    with pytest.raises(StorageFull, match=r"other uploads have 600,000 .* resume"):
        send(uploads, theirs, content)
    assert send(uploads, theirs, content[:400_000]) == 400_000
    with pytest.raises(StorageFull):
        PartWriter(uploads, theirs.id, "theirs", 400_000).require_space(1)
    uploads.delete(mine.id, "mine")
    assert send(uploads, theirs, content[400_000:], 400_000) == 600_000


def test_bytes_that_arrive_count_before_their_checksum_is_compared(uploads: UploadFolder) -> None:
    content = b"w" * 600_000
    writers = [
        PartWriter(uploads, create(uploads, content, owner).id, owner, 0, Checksum("sha1", b"")) for owner in "ab"
    ]
    writers[0].write(content)
    with pytest.raises(StorageFull):
        writers[1].write(content)
    writers[0].close()
    writers[1].write(content)
    writers[1].close()


def test_one_request_at_a_time_is_at_work(uploads: UploadFolder) -> None:
    upload = create(uploads)
    writer = PartWriter(uploads, upload.id, "trainer", 0)
    for work in (
        lambda: PartWriter(uploads, upload.id, "trainer", 0),
        lambda: uploads.delete(upload.id, "trainer"),
        lambda: uploads.verify(upload.id, "trainer"),
    ):
        with pytest.raises(UploadConflict, match="another request is writing"):
            work()
    writer.close()
    uploads.delete(upload.id, "trainer")
    with pytest.raises(UploadNotFound):
        uploads.delete(upload.id, "trainer")


def test_uploads_expire_a_day_after_their_last_byte(uploads: UploadFolder) -> None:
    old, written, young = (create(uploads) for _ in range(3))
    long_ago = time.time() - LIFETIME - 1
    for upload in (old, written):
        os.utime(uploads.folder / upload.id / "offset", (long_ago, long_ago))
    writer = PartWriter(uploads, young.id, "trainer", 0)
    with pytest.raises(UploadNotFound):
        uploads.find(old.id, "trainer")
    assert [upload.id for upload in uploads.of_owner("trainer")] == [young.id]
    assert uploads.sweep() == 2
    assert [path.name for path in uploads.folder.iterdir()] == [young.id]
    writer.close()


def test_an_upload_that_is_written_to_is_not_swept(uploads: UploadFolder) -> None:
    upload = create(uploads)
    writer = PartWriter(uploads, upload.id, "trainer", 0)
    long_ago = time.time() - LIFETIME - 1
    os.utime(uploads.folder / upload.id / "offset", (long_ago, long_ago))
    assert uploads.sweep() == 0
    writer.close()
    assert uploads.sweep() == 1


def test_what_a_killed_service_left_half_made_is_swept(uploads: UploadFolder) -> None:
    create(uploads)
    for name, age in (("a" * 32, 7200), ("b" * 32, 0), (f"{'c' * 32}.gone", 0)):
        (uploads.folder / name).mkdir()
        os.utime(uploads.folder / name, (time.time() - age, time.time() - age))
    (uploads.folder / ("d" * 32)).symlink_to("/etc")
    os.utime(uploads.folder / ("d" * 32), (0, 0), follow_symlinks=False)
    assert uploads.sweep() == 3
    assert ("b" * 32) in {path.name for path in uploads.folder.iterdir()}, "it may be made just now"
    assert Path("/etc").is_dir()


def test_an_owner_has_a_share_of_the_uploads(uploads: UploadFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAX_UPLOADS_OF_OWNER", 2)
    monkeypatch.setattr(folder_module, "MAX_UPLOADS", 3)
    for _ in range(2):
        create(uploads)
    with pytest.raises(StorageFull, match="2 uploads of this client"):
        create(uploads)
    create(uploads, owner="another")
    with pytest.raises(StorageFull, match="3 uploads in all"):
        create(uploads, owner="a third one")


def test_bytes_of_uploads_and_of_kept_checkpoints_are_bounded_together(uploads: UploadFolder) -> None:
    create(uploads)
    with pytest.raises(StorageFull, match=r"EVALSVC_UPLOAD_BYTES is 1,000,000, .* 7,000, .* 600,000"):
        uploads.create(400_000, SHA256, None, "trainer", kept_bytes=600_000)
    uploads.create(400_000, SHA256, None, "trainer", kept_bytes=592_000)


def test_the_disk_keeps_a_reserve(uploads: UploadFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What open uploads are still to send counts as used."""
    free = RESERVE_BYTES + 10_000

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(**disk_usage(path)._asdict() | {"free": free})

    monkeypatch.setattr(folder_module.shutil, "disk_usage", usage)
    create(uploads)
    with pytest.raises(StorageFull, match=r"7,000 bytes do not fit on the disk .* 3,000 are free"):
        create(uploads)


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file in its place")
    with pytest.raises(DataDirectoryUnusable, match="EVALSVC_DATA_DIR"):
        create(UploadFolder(tmp_path / "uploads", 1_000_000))


def test_links_are_not_followed(uploads: UploadFolder, tmp_path: Path) -> None:
    """Whoever could put links into the data folder would have the service write to any of its files."""
    upload, secret = create(uploads), tmp_path / "secret"
    secret.write_bytes(b"secret" * 2000)
    content = uploads.folder / upload.id / "content"
    content.unlink()
    content.symlink_to(secret)
    with pytest.raises((UploadNotFound, DataDirectoryUnusable, UploadConflict)):
        send(uploads, upload, CONTENT)
    with pytest.raises((DataDirectoryUnusable, UploadConflict)):
        uploads.verify(upload.id, "trainer")
    assert secret.read_bytes() == b"secret" * 2000
    elsewhere = tmp_path / "elsewhere"
    other = create(uploads)
    (uploads.folder / other.id).rename(elsewhere)
    (uploads.folder / other.id).symlink_to(elsewhere)
    with pytest.raises(UploadNotFound):
        uploads.find(other.id, "trainer")
