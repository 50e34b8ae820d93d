"""The container: what is no tar of `ArchiveWriter`, or was cut off or changed, is refused before it is restored."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from backup_files import Entry, Parts, read_parts, tar_of, write_parts

from evalsvc.errors import BackupUnusable, InvalidRequest
from evalsvc.store.backup.archive import ArchiveWriter, Damaged, open_archive

FIRST_LINE = '{"format": "any"}'
CONTENT = bytes(range(256)) * 5
DIGEST = hashlib.sha256(CONTENT).hexdigest()

MEMBERS: list[tuple[str, bytes, dict[str, Any]]] = [
    ("tables/00-runs/000000.jsonl", b"[1]\n", {}),
    ("tables/01-tokens/000000.jsonl", b"[2]\n" * 300, {}),
    (f"artifacts/{DIGEST}", CONTENT, {"sha256": DIGEST}),
    ("outputs/10/1-2", b"", {}),
    ("spool/3/000000", b"weights", {"path": "epoch_1.pt/größe", "mtime_ns": 10**18 + 7}),
    ("statistics/000000000", bytes(512), {"path": "coco.npz", "mtime_ns": 5}),
]


def add(archive: ArchiveWriter, name: str, content: bytes, **fields: Any) -> None:
    archive.add(name, io.BytesIO(content), len(content), **fields)


@pytest.fixture
def small_backup(tmp_path: Path) -> Path:
    """An archive with a member or two of every kind."""
    path = tmp_path / "good.tar"
    with path.open("w+b") as stream, tempfile.TemporaryFile() as lines:
        archive = ArchiveWriter(stream, lines)
        for name, content, fields in MEMBERS:
            add(archive, name, content, **fields)
        archive.close(FIRST_LINE)
        assert (archive.members, archive.files) == (6, 4)
    return path


@pytest.fixture
def parts(small_backup: Path) -> Parts:
    """Its parts, to be changed."""
    return read_parts(small_backup)


def refused(path: Path, message: str) -> None:
    with pytest.raises(BackupUnusable, match=message), open_archive(path):
        pass


def test_what_was_written_is_read(small_backup: Path, tmp_path: Path) -> None:
    with open_archive(small_backup) as archive:
        assert archive.manifest == FIRST_LINE.encode() + b"\n"
        sections = tuple(dict.fromkeys(name.partition("/")[0] for name, _, _ in MEMBERS))
        read = [(member, archive.read(member)) for member in archive.members(sections)]
        assert [(member.name, content) for member, content in read] == [(name, content) for name, content, _ in MEMBERS]
        assert [(member.path, member.mtime_ns) for member, _ in read][-2:] == [
            ("epoch_1.pt/größe", 10**18 + 7),
            ("coco.npz", 5),
        ]
        assert [archive.read(member) for member in archive.members(("artifacts",))] == [CONTENT]
    with tarfile.open(small_backup) as listed:
        assert listed.getnames() == [*(name for name, _, _ in MEMBERS), "manifest.jsonl"]


def test_what_is_written_again_by_hand_is_read(parts: Parts, small_backup: Path, tmp_path: Path) -> None:
    """The tests below prove nothing if what they change were refused anyway."""
    with open_archive(write_parts(tmp_path / "same.tar", parts)) as archive:
        assert json.loads(archive.manifest) == {"format": "any", "members": 6}


def test_a_damaged_file_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "good.tar"
    with path.open("w+b") as stream, tempfile.TemporaryFile() as lines:
        archive = ArchiveWriter(stream, lines)
        add(archive, "tables/00-runs/000000.jsonl", b"[1]\n")
        with pytest.raises(Damaged):
            add(archive, f"artifacts/{DIGEST}", CONTENT[:-1], sha256=DIGEST)
        with pytest.raises(Damaged):
            archive.add("outputs/1/1-1", io.BytesIO(b"short"), 6)
        add(archive, "outputs/1/1-2", b"x")
        archive.close(FIRST_LINE)
    with open_archive(path) as whole:
        assert [member.name for member in whole.members(("artifacts", "outputs"))] == ["outputs/1/1-2"]


def test_a_file_that_changes_while_it_is_read(small_backup: Path) -> None:
    content = small_backup.read_bytes()
    for changed in (content.replace(CONTENT, CONTENT[::-1]), content[:600]):
        small_backup.write_bytes(content)
        with open_archive(small_backup) as archive:
            small_backup.write_bytes(changed)
            with pytest.raises(BackupUnusable, match=r"was changed during the restore|became shorter"):
                archive.read(next(archive.members(("artifacts",))))


def artifact(content: bytes = b"mine", **fields: Any) -> Entry:
    return Entry(f"artifacts/{hashlib.sha256(content).hexdigest()}", content, **fields)


KINDS = {
    "symbolic link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard link": {"type": tarfile.LNKTYPE, "linkname": "tables/00-attempt_totals/000000.jsonl"},
    "character device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
    "block device": {"type": tarfile.BLKTYPE, "devmajor": 8},
    "fifo": {"type": tarfile.FIFOTYPE},
    "folder": {"type": tarfile.DIRTYPE},
    "old regular file": {"type": tarfile.AREGTYPE},
    "contiguous file": {"type": tarfile.CONTTYPE},
    "GNU sparse file": {"type": tarfile.GNUTYPE_SPARSE},
    "GNU long name": {"type": tarfile.GNUTYPE_LONGNAME},
    "extended header": {"type": tarfile.XHDTYPE},
    "global header": {"type": tarfile.XGLTYPE},
    "link's target on a regular file": {"linkname": "/etc/passwd"},
}


@pytest.mark.parametrize("info", KINDS.values(), ids=KINDS)
def test_a_member_that_is_no_plain_file(info: dict[str, Any], parts: Parts, tmp_path: Path) -> None:
    parts.entries.insert(0, artifact(b"", info=info))
    refused(write_parts(tmp_path / "bad.tar", parts), "is no regular file")


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "artifacts/../../evil",
        f"artifacts/../{'a' * 64}",
        "/etc/cron.d/evil",
        f"/artifacts/{'a' * 64}",
        f"artifacts/{'A' * 64}",
        f"artifacts/{'a' * 64}/x",
        f"artifacts//{'a' * 64}",
        "outputs/1/-1-2",
        "outputs/../2-3",
        "spool/1/../000000",
        "statistics/../../evil.npz",
        "evalsvc.db",
        "database.json",
        "tables/00-runs/000000.jsonl.partial",
        "artifacts",
        "",
    ],
)
def test_a_member_with_another_name(name: str, parts: Parts, tmp_path: Path) -> None:
    parts.entries.insert(0, Entry(name, b"evil"))
    refused(write_parts(tmp_path / "bad.tar", parts), "no member with the name|no regular file|none that")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"mode": 0o4777}, "differs from the header that `evalsvc backup` writes"),
        ({"uname": "root"}, "differs from the header that `evalsvc backup` writes"),
        ({"mtime": 1}, "differs from the header that `evalsvc backup` writes"),
        ({"size": 1 << 60}, "ends in the middle of .* has 1,152,921,504,606,846,976 bytes"),
        ({"size": 3}, "other bytes than zeros|invalid tar header"),
    ],
)
def test_a_header_that_is_not_its_own(info: dict[str, Any], message: str, parts: Parts, tmp_path: Path) -> None:
    parts.of("artifacts/")[0].info = info
    refused(write_parts(tmp_path / "bad.tar", parts), message)


def twice(parts: Parts) -> None:
    first = parts.of("artifacts/")[0]
    parts.insert_after(first, Entry(first.name, first.content))


def out_of_order(parts: Parts) -> None:
    parts.entries.append(parts.entries.pop(0))


def not_listed(parts: Parts) -> None:
    parts.of("artifacts/")[0].listed = False


def listed_only(parts: Parts) -> None:
    parts.of("statistics/")[-1].extra = ["coco.npz"]


def path_of(section: str, path: Any, mtime_ns: Any = 1) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts.of(section)[0].extra = [path, mtime_ns]

    return change


def long_line(parts: Parts) -> None:
    parts.manifest["evalsvc"] = "x" * (1 << 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (twice, "is repeated or out of order"),
        (out_of_order, "is repeated or out of order"),
        (not_listed, "is not in the manifest"),
        (listed_only, "an invalid line for 'statistics/"),
        (path_of("spool", "../../evil"), "leads out of its folder"),
        (path_of("spool", "/etc/evil"), "leads out of its folder"),
        (path_of("spool", "a\0b"), "leads out of its folder"),
        (path_of("spool", "epoch_0.pt", -1), "another type"),
        (path_of("spool", ["epoch_0.pt"]), "another type"),
        (path_of("statistics", "../artifacts/x.npz"), "leads out of its folder"),
        (path_of("statistics", "evil.py"), "no name of a statistics file"),
        (path_of("artifacts", "../evil"), "a path is missing or not allowed"),
        (long_line, "a line that is cut off or too long"),
    ],
)
def test_members_and_manifest_that_do_not_fit(
    change: Callable[[Parts], None], message: str, parts: Parts, tmp_path: Path
) -> None:
    change(parts)
    refused(write_parts(tmp_path / "bad.tar", parts), message)


def test_what_is_no_backup(small_backup: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    good = small_backup.read_bytes()
    contents = {
        "empty": b"",
        "zeros": bytes(10240),
        "a pickle": pickle.dumps({"a": 1}) * 1000,
        "compressed": gzip.compress(good),
        "followed by more": good + b"more",
        "followed by zeros": good + bytes(512),
        "two backups": good + good,
    }
    for content in contents.values():
        path.write_bytes(content)
        refused(path, "is not a whole backup: ")
    refused(tar_of(path, (tarfile.TarInfo("x" * 300), b"long")), "is no regular file")


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.tar", tmp_path, Path("/dev/zero")):
        with (
            pytest.raises(InvalidRequest, match=f"{path}.*; name a file that `evalsvc backup` wrote"),
            open_archive(path),
        ):
            pass


def test_a_backup_that_was_cut_off_anywhere(small_backup: Path, tmp_path: Path) -> None:
    """Twenty places at random, and those at which a part of a tar ends."""
    content = small_backup.read_bytes()
    dice = Random(20)
    ends = [512, 1024, len(content) - 1, len(content) - 512, len(content) - 1024, len(content) - 1025]
    for size in [dice.randrange(len(content)) for _ in range(20)] + ends:
        cut = tmp_path / "cut.tar"
        cut.write_bytes(content[:size])
        with pytest.raises(BackupUnusable, match="is not a whole backup"), open_archive(cut):
            pass


def test_a_bit_that_was_turned_anywhere(small_backup: Path, tmp_path: Path) -> None:
    """But in the first line of the manifest, which the restore checks: nothing has its digest."""
    content = bytearray(small_backup.read_bytes())
    first = content.index(FIRST_LINE.encode())
    dice = Random(21)
    for place in [dice.randrange(len(content)) for _ in range(50)]:
        if first <= place < first + len(FIRST_LINE):
            continue
        content[place] ^= 1
        bad = tmp_path / "bad.tar"
        bad.write_bytes(content)
        refused(bad, "is not a whole backup")
        content[place] ^= 1
