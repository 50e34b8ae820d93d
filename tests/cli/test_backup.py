"""`evalsvc backup` and `evalsvc restore`: what they print, and how they end."""

from pathlib import Path

from console import Command
from migrated import copy_migrated
from queue_steps import enter, evaluate_whole, kept_artifact, metric, submission, suite

from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.store.session import Store, open_store


def filled(folder: Path) -> Store:
    """A database with one evaluation and its artifact."""
    folder.mkdir()
    copy_migrated(folder / "evalsvc.db")
    store = open_store(f"sqlite:///{folder / 'evalsvc.db'}", migrate=False)
    enter(store, submission(1), suite())
    evaluate_whole(store, metric(1.0), artifacts=[kept_artifact(keep_content(folder / "artifacts", b"grid"))])
    return store


def test_there_and_back(command: Command, tmp_path: Path) -> None:
    filled(tmp_path / "data").close()
    made = command("backup", "b.tar", "--data-dir", "data")
    assert made.code == 0, made.err
    assert made.out == f"b.tar: {(tmp_path / 'b.tar').stat().st_size:,} bytes\n"
    again = command("backup", "b.tar", "--data-dir", "data")
    assert (again.code, again.out) == (2, "")
    assert "b.tar exists; choose another name, or add --force" in again.err
    assert command("backup", "b.tar", "--data-dir", "data", "--force", "--no-spool").code == 0

    copy_migrated(tmp_path / "name.db")
    url = f"sqlite:///{tmp_path / 'name.db'}"
    restored = command("restore", "b.tar", "--data-dir", "restored", "--database-url", url)
    assert restored.code == 0, restored.err
    assert restored.out == "restored b.tar; data folder: restored\n"
    assert [path.read_bytes() for path in (tmp_path / "restored" / "artifacts").glob("*/*")] == [b"grid"]
    assert (tmp_path / "restored" / "database.json").is_file()
    assert not (tmp_path / "restored" / "evalsvc.db").exists()
    refused = command("restore", "b.tar", "--data-dir", "restored", "--database-url", url)
    assert refused.code == 2
    assert refused.err.strip().endswith("[target_not_empty]")


def test_what_was_lost_is_said_twice(command: Command, tmp_path: Path) -> None:
    """When it can still be looked for, and when somebody may miss it."""
    filled(tmp_path / "data").close()
    [path] = (tmp_path / "data" / "artifacts").glob("*/*")
    assert path == artifact_path(tmp_path / "data" / "artifacts", path.name)
    path.unlink()
    lost = path.relative_to(tmp_path / "data")
    warning = f"warning: 1 file of the data folder missing or damaged before the backup: {lost}\n"
    assert command("backup", "b.tar", "--data-dir", "data").err == warning
    (tmp_path / "restored").mkdir()
    copy_migrated(tmp_path / "restored" / "evalsvc.db")
    assert command("restore", "b.tar", "--data-dir", "restored").err == warning
