"""Components by name: those of installed packages too, from the moment on that they are installed."""

import os
import sys
from pathlib import Path

import pytest

from evalsvc.errors import UnknownName
from evalsvc.spec import catalog


def install(folder: Path, name: str) -> None:
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[evalsvc.tasks]\n{name} = os:sep\n")


def test_what_is_installed_meanwhile_is_found_and_what_is_removed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are remembered, since to look for them takes longer than many a shard."""
    with pytest.raises(UnknownName):
        catalog.load("tasks", "first")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    install(tmp_path, "first")
    assert catalog.load("tasks", "first") is os.sep
    os.utime(tmp_path, ns=(1, 1))  # file systems have coarse clocks, and this test is fast
    install(tmp_path, "second")
    assert {"first", "second", "loss"} <= set(catalog.names("tasks"))
    monkeypatch.setattr(sys, "path", sys.path[:-1])
    assert not {"first", "second"} & set(catalog.names("tasks"))


def test_looking_for_the_same_again_reads_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    known = catalog.names("tasks")
    monkeypatch.setattr(catalog, "entry_points", lambda **_: pytest.fail("it looked again"))
    assert catalog.names("tasks") == known
