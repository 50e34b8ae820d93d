"""The folder of links that a backup reads from."""

from pathlib import Path

import pytest

from evalsvc.errors import DataDirectoryUnusable
from evalsvc.store.backup.named import NamedFile
from evalsvc.store.backup.pinned_files import FOLDER, pinned_files


def test_one_backup_at_a_time(tmp_path: Path) -> None:
    """What a killed backup has left behind is removed by the next one."""
    left = tmp_path / FOLDER / "artifacts" / "x"
    left.parent.mkdir(parents=True)
    left.touch()
    with pinned_files(tmp_path) as pinned:
        assert pinned.pin([]) == set()
        assert not left.exists()
        with pytest.raises(DataDirectoryUnusable, match="another backup of the data folder is running"):
            pinned_files(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_files_and_folders_are_linked_and_outlive_their_deletion(tmp_path: Path) -> None:
    whole = tmp_path / "spool" / "7" / "epoch_1.pt"
    for file in (whole / "b" / "x", whole / "a", tmp_path / "artifacts" / "aa" / "aa11"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    named = [
        NamedFile("artifacts/aa11", Path("artifacts/aa/aa11")),
        NamedFile("items/gone", Path("items/go/gone")),
        NamedFile("spool/7", Path("spool/7/epoch_1.pt")),
    ]
    with pinned_files(tmp_path) as pinned:
        assert pinned.pin(named) == {"items/gone"}
        (whole / "a").unlink()
        (tmp_path / "artifacts" / "aa" / "aa11").unlink()
        found = [(place, path.read_text()) for place, path in pinned.of("spool")]
        assert found == [("7/epoch_1.pt/a", "a"), ("7/epoch_1.pt/b/x", "x")]
        assert [(place, path.read_text()) for place, path in pinned.of("artifacts")] == [("aa/aa11", "aa11")]
        assert list(pinned.of("items")) == []
        assert pinned.pin(named[:1]) == {"artifacts/aa11"}
        assert list(pinned.of("spool")) == [], "of the snapshot before"
