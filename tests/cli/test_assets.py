"""`evalsvc assets` and `reference`: what they print, and their exit codes."""

from pathlib import Path

import numpy
import pytest
from console import Command

from evalsvc.assets import ASSETS, Asset, Source
from evalsvc.files.kept import KeptFolder
from evalsvc.tasks.reference_statistics import load_reference


@pytest.mark.usefixtures("wide_pipe")
def test_list_shows_what_is_missing(command: Command) -> None:
    result = command("assets", "list")
    assert (result.code, result.err) == (0, "")
    rows = {line.split()[0]: line.split()[1] for line in result.out.splitlines() if " MB " in line}
    assert rows == dict.fromkeys(ASSETS, "-")
    assert {"inception", "movqgan-270M", "clip-vit-b-32", "dinov2-vit-l-14"} <= set(rows)


@pytest.mark.usefixtures("wide_pipe")
def test_pull_from_a_file(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ASSETS, "decoder", Asset("decoder", "kept.ckpt", 5, "decoding", (Source("https://a/b", None),)))
    (tmp_path / "mine.ckpt").write_bytes(b"weights")
    pulled = tmp_path / "home" / "evalsvc" / "assets" / "kept.ckpt"
    assert command("assets", "pull", "decoder", "--from", "mine.ckpt").out == f"decoder: {pulled}\n"
    assert pulled.read_bytes() == b"weights"
    (line,) = (line for line in command("assets", "list").out.splitlines() if line.split()[:1] == ["decoder"])
    assert line.split()[1] == "installed"
    assert str(tmp_path / "mine.ckpt") in line


def test_a_file_is_one_asset(command: Command) -> None:
    result = command("assets", "pull", "inception", "movqgan-67M", "--from", "a.pt")
    assert (result.code, result.out) == (2, "")
    assert "holds one asset, and 2 assets are named; name one asset" in result.err


def test_statistics_are_imported(command: Command, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "x.npz", mu=numpy.zeros(64), sigma=numpy.eye(64))
    result = command("reference", "import", "x.npz", "--name", "theirs", "--n", "30000")
    assert result.code == 0, result.err
    saved = tmp_path / "home" / "evalsvc" / "shared" / "statistics" / "theirs.npz"
    assert result.out == f"theirs: {saved}\n"
    assert load_reference("theirs", KeptFolder(saved.parent)).foreign
