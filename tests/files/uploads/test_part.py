"""Parts of uploads: what counts when, and what a checksum or a full disk undoes."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from evalsvc.errors import ChecksumMismatch, StorageFull, UploadConflict
from evalsvc.files.uploads import part as part_module
from evalsvc.files.uploads.folder import UploadFolder
from evalsvc.files.uploads.part import Checksum, PartWriter
from evalsvc.files.uploads.stored import StoredUpload

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def uploads(tmp_path: Path) -> UploadFolder:
    return UploadFolder(tmp_path / "uploads", limit=1_000_000)


@pytest.fixture
def upload(uploads: UploadFolder) -> StoredUpload:
    return uploads.create(len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), None, None, kept_bytes=0)


def offset_of(uploads: UploadFolder, upload: StoredUpload) -> int:
    return uploads.find(upload.id, None).offset


def test_pieces_count_once_they_are_on_the_disk(
    uploads: UploadFolder, upload: StoredUpload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that is killed in the middle of a part loses what was not synced, and nothing else."""
    monkeypatch.setattr(part_module, "SYNC_BYTES", 4000)
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda file: synced.append(os.fstat(file).st_size))
    writer = PartWriter(uploads, upload.id, None, 0)
    for number, counted in enumerate((0, 4000, 4000), 1):
        writer.write(CONTENT[2000 * (number - 1) : 2000 * number])
        assert offset_of(uploads, upload) == counted
    assert synced == [4000]
    assert writer.room == len(CONTENT) - 6000
    writer.close()
    assert offset_of(uploads, upload) == 4000, "as after a kill: what was not kept does not count"
    writer = PartWriter(uploads, upload.id, None, 4000)
    writer.write(CONTENT[4000:6000])
    assert writer.keep(complete=False) == 6000, "what arrived of a part that broke off"
    writer.close()


@pytest.mark.parametrize("offset", [0, 99, 101, 10_240])
def test_a_part_begins_where_the_upload_ends(uploads: UploadFolder, upload: StoredUpload, offset: int) -> None:
    writer = PartWriter(uploads, upload.id, None, 0)
    writer.write(CONTENT[:100])
    writer.keep()
    writer.close()
    with pytest.raises(UploadConflict, match=rf"starts at byte {offset:,}, .* has 100 bytes"):
        PartWriter(uploads, upload.id, None, offset)
    PartWriter(uploads, upload.id, None, 100).close()


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_part_with_a_checksum_is_all_or_nothing(
    uploads: UploadFolder, upload: StoredUpload, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_module, "SYNC_BYTES", 1000)
    half = len(CONTENT) // 2
    right = Checksum(algorithm, hashlib.new(algorithm, CONTENT[:half]).digest())
    writer = PartWriter(uploads, upload.id, None, 0, right)
    writer.write(b"?" * half)
    with pytest.raises(ChecksumMismatch, match=f"another {algorithm}"):
        writer.keep()
    writer.close()
    writer = PartWriter(uploads, upload.id, None, 0, right)
    writer.write(CONTENT[:100])
    assert writer.keep(complete=False) == 0
    writer.close()
    assert offset_of(uploads, upload) == 0
    writer = PartWriter(uploads, upload.id, None, 0, right)
    writer.write(CONTENT[:half])
    assert writer.keep() == half
    writer.close()
    writer = PartWriter(uploads, upload.id, None, half)
    writer.write(CONTENT[half:])
    writer.keep()
    writer.close()
    assert uploads.verify(upload.id, None).is_verified, "what was refused is in no digest"


def test_a_full_disk_loses_nothing_that_counts(
    uploads: UploadFolder, upload: StoredUpload, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = PartWriter(uploads, upload.id, None, 0)
    writer.write(CONTENT[:5000])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageFull, match="no space left on device"):
            writer.write(CONTENT[5000:])
    assert writer.keep(complete=False) == 5000
    writer.close()
    writer = PartWriter(uploads, upload.id, None, 5000)
    writer.write(CONTENT[5000:])
    writer.keep()
    writer.close()
    assert uploads.verify(upload.id, None).is_verified


def test_the_reserve_is_looked_at_while_bytes_arrive(
    uploads: UploadFolder, upload: StoredUpload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others fill the disk, too."""
    monkeypatch.setattr(part_module, "SYNC_BYTES", 1000)
    monkeypatch.setattr("evalsvc.files.uploads.folder.RESERVE_BYTES", 1 << 60)
    writer = PartWriter(uploads, upload.id, None, 0)
    with pytest.raises(StorageFull, match="bytes are free"):
        writer.write(CONTENT[:2000])
    writer.close()
    assert offset_of(uploads, upload) == 2000


def test_a_verified_upload_takes_nothing_more(uploads: UploadFolder, upload: StoredUpload) -> None:
    writer = PartWriter(uploads, upload.id, None, 0)
    writer.write(CONTENT)
    writer.keep()
    writer.close()
    uploads.verify(upload.id, None)
    writer = PartWriter(uploads, upload.id, None, len(CONTENT))
    assert (writer.room, writer.keep()) == (0, len(CONTENT))
    writer.close()
    assert uploads.find(upload.id, None).is_verified
