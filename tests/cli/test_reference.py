"""`evalsvc reference import`."""

from pathlib import Path

import numpy
from console import Command

from evalsvc.tasks.reference_statistics import load_reference


class TestReference:
    def test_import(self, command: Command, tmp_path: Path) -> None:
        numpy.savez(tmp_path / "x.npz", mu=numpy.zeros(64), sigma=numpy.eye(64))
        result = command("reference", "import", "x.npz", "--name", "theirs", "--n", "30000")
        assert result.code == 0, result.err
        saved = tmp_path / "home" / "evalsvc" / "statistics" / "theirs.npz"
        assert result.out == f"theirs: {saved}\n"
        assert load_reference("theirs", saved.parent).foreign

    def test_file_that_is_none(self, command: Command) -> None:
        result = command("reference", "import", "nowhere.npz", "--name", "theirs")
        assert (result.code, "nowhere.npz cannot be read as an npz file" in result.err) == (2, True)
