"""Backups whose rows, files and manifest do not fit together, or are hostile: nothing of them is restored."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
from backup_files import Entry, Parts, write_parts
from filled_store import settings_of

from evalsvc.errors import BackupUnusable, SchemaVersionMismatch
from evalsvc.files.outputs import EXTENSION
from evalsvc.store.backup.restoring import restore_backup
from evalsvc.store.session import Store

Refused = Callable[[Path, str], None]


@pytest.fixture
def refused(empty_target: Store, is_untouched: Callable[[], bool], tmp_path: Path) -> Refused:
    """Restores a file, and checks that this fails with a message and leaves nothing behind."""

    def check(path: Path, message: str) -> None:
        with pytest.raises(BackupUnusable, match=message):
            restore_backup(settings_of(empty_target, tmp_path / "restored"), path)
        assert is_untouched()

    return check


def changed(parts: Parts) -> None:
    """With a manifest that knows of the change."""
    entry = parts.of("artifacts/")[0]
    entry.content = entry.content[:-1] + b"?"


def not_named(parts: Parts) -> None:
    extra = Entry(f"artifacts/{hashlib.sha256(b'mine').hexdigest()}", b"mine")
    parts.entries = sorted([*parts.entries, extra], key=lambda entry: (entry.name[:6] != "tables", entry.name))
    parts.manifest["files"] += 1


def missing(parts: Parts) -> None:
    parts.entries.remove(parts.of("items/")[0])
    parts.manifest["files"] -= 1


def spooled_for_nobody(parts: Parts) -> None:
    place = parts.of("spool/")[-1]
    parts.insert_after(place, Entry("spool/77/000000", b"x", ["epoch_7.pt", 1]))
    parts.manifest["files"] += 1


def spooled_by_another_name(parts: Parts) -> None:
    parts.of("spool")[0].extra = ["epoch_9.pt", 1]


def unknown_table(parts: Parts) -> None:
    parts.manifest["tables"].append({"name": "evil", "columns": {"id": "integer"}, "rows": 0})


def unknown_column(parts: Parts) -> None:
    parts.table("runs")["columns"]["evil"] = "text"


def column_missing(parts: Parts) -> None:
    del parts.table("tokens")["columns"]["revoked_at"]


def other_kind(parts: Parts) -> None:
    parts.table("runs")["columns"]["name"] = "bytes"


def fewer_rows(parts: Parts) -> None:
    parts.table("runs")["rows"] += 1


def rows_of_no_table(parts: Parts) -> None:
    entry = parts.of("tables/")[-1]
    parts.insert_after(entry, Entry("tables/98-evil/000000.jsonl", b"[]\n"))


def same_row_twice(parts: Parts) -> None:
    parts.rows("runs").content *= 2
    parts.table("runs")["rows"] *= 2


def value(table: str, column: str, content: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.set_value(table, column, content)


def text(table: str, content: bytes) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts.rows(table).content = content

    return change


def manifest(name: str, content: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.manifest.__setitem__(name, content)


def output_of(*fields: Any) -> str:
    packed = msgpack.packb(msgpack.ExtType(EXTENSION, msgpack.packb(fields)))
    return base64.b64encode(packed).decode()


CHANGES: list[tuple[Callable[[Parts], None], str]] = [
    (changed, "the SHA-256 of .* differs from its name"),
    (not_named, "1 files that none of its rows names"),
    (missing, "1 files that its rows name are not in it"),
    (spooled_for_nobody, "names the spooled checkpoint of 'spool/77/000000'"),
    (spooled_by_another_name, "names the spooled checkpoint"),
    (unknown_table, "tables are not those of schema version .*: evil"),
    (unknown_column, "the columns of table runs are not those of schema version .*: evil"),
    (column_missing, "the columns of table tokens are not .*: revoked_at"),
    (other_kind, "the columns of table runs are not .*: name"),
    (fewer_rows, "its manifest has other numbers of rows for runs"),
    (rows_of_no_table, "belongs to no table of the manifest"),
    (same_row_twice, "refuses a row of 'tables/.*-runs/000000.jsonl': UNIQUE"),
    (value("checkpoints", "run_id", 10**6), "refuses a row"),
    (value("runs", "id", "1; DROP TABLE runs"), "the value of runs.id is not of kind integer"),
    (value("runs", "id", True), "runs.id is not of kind integer"),
    (value("runs", "history_version", 2**63), "runs.history_version is not of kind integer"),
    (value("tokens", "id", 2**31), "has an id beyond"),
    (value("runs", "created_at", "2026-01-01T00:00:00"), "runs.created_at is not of kind time"),
    (value("runs", "name", ["x"]), "runs.name is not of kind text"),
    (value("runs", "name", "\ud800"), "refuses a row"),
    (value("runs", "name", None), "refuses a row"),
    (value("artifacts", "sha256", "../../../etc/passwd"), "names '../../../etc/passwd', which is no SHA-256"),
    (value("tasks", "items_sha256", "../x"), "names '../x', which is no SHA-256"),
    (value("shards", "output", output_of("../../etc", 1, 1, "0" * 64, 1)), "an output file with invalid numbers"),
    (value("shards", "output", output_of(1, 2)), "an output that cannot be read"),
    (value("shards", "output", "%%%"), "shards.output is not of kind bytes"),
    (value("checkpoints", "path", "/a/.."), "a spooled copy without a name"),
    (text("runs", b"[" * 200_000), "line 1 is not JSON"),
    (text("runs", b"[1,2]\n"), "line 1 does not have the 7 columns of table runs"),
    (text("runs", b'{"id": 1}\n'), "line 1 does not have the 7 columns"),
    (text("runs", b"\xff\xfe\n"), "line 1 is not JSON"),
    (manifest("format", "evalsvc-backup/2"), "its manifest cannot be read: format"),
    (manifest("revision", "../0016"), "its manifest cannot be read: revision"),
    (manifest("surprise", 1), "its manifest cannot be read: surprise"),
    (manifest("ids", {"runs": 2**62}), "its manifest cannot be read: ids.runs"),
    (manifest("made_at", "yesterday"), "its manifest cannot be read: made_at"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_backup_that_was_changed(
    change: Callable[[Parts], None], message: str, parts: Parts, refused: Refused, tmp_path: Path
) -> None:
    change(parts)
    refused(write_parts(tmp_path / "bad.tar", parts), message)
    assert not (tmp_path / "evil").exists()


def test_a_backup_that_was_cut_off(good_backup: Path, refused: Refused, tmp_path: Path) -> None:
    content = good_backup.read_bytes()
    dice = Random(22)
    for size in (dice.randrange(len(content)) for _ in range(20)):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(content[:size])
        refused(cut, "is not a whole backup")


def test_a_backup_of_a_newer_evalsvc(
    parts: Parts, empty_target: Store, is_untouched: Callable[[], bool], tmp_path: Path
) -> None:
    parts.manifest |= {"revision": "9999", "evalsvc": "99.0"}
    path = write_parts(tmp_path / "newer.tar", parts)
    with pytest.raises(
        SchemaVersionMismatch, match=r"by evalsvc 99.0, .* version 9999, .* that version of evalsvc or a newer"
    ):
        restore_backup(settings_of(empty_target, tmp_path / "restored"), path)
    assert is_untouched()
