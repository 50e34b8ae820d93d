"""`evalsvc reference import`."""

from pathlib import Path

import numpy
from console import Command

from evalsvc.files.kept import KeptFolder
from evalsvc.tasks.reference_statistics import load_reference


def test_import(command: Command, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "x.npz", mu=numpy.zeros(64), sigma=numpy.eye(64))
    result = command("reference", "import", "x.npz", "--name", "theirs", "--n", "30000")
    assert result.code == 0, result.err
    saved = tmp_path / "home" / "evalsvc" / "shared" / "statistics" / "theirs.npz"
    assert result.out == f"theirs: {saved}\n"
    assert load_reference("theirs", KeptFolder(saved.parent)).foreign
