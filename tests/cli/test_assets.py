"""`evalsvc assets`: what it prints, and its exit codes."""

from pathlib import Path

import pytest
from console import Command

from evalsvc.assets import ASSETS


class TestAssets:
    def test_list_shows_what_is_missing(self, command: Command) -> None:
        result = command("assets", "list")
        assert (result.code, result.err) == (0, "")
        rows = {line.split()[0]: line.split()[1] for line in result.out.splitlines() if " MB " in line}
        assert rows == dict.fromkeys(ASSETS, "-")
        assert {"inception", "movqgan-270M", "clip-vit-b-32", "dinov2-vit-l-14"} <= set(rows)

    def test_pull_from_a_file(self, command: Command, inception_path: Path, tmp_path: Path) -> None:
        result = command("assets", "pull", "inception", "--from", str(inception_path))
        assert result.code == 0, result.err
        pulled = tmp_path / "home" / "evalsvc" / "assets" / inception_path.name
        assert result.out == f"inception: {pulled}\n"
        assert pulled.is_file()
        line = next(line for line in command("assets", "list").out.splitlines() if "inception" in line)
        assert "there" in line
        assert str(inception_path) in line

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["inceptoin"], "no asset is named 'inceptoin'; did you mean 'inception'?"),
            (["inception", "--from", "nowhere.pt"], "--from nowhere.pt: there is no such file"),
            (["inception", "movqgan-67M", "--from", "a.pt"], "is one file and 2 assets are named; name one"),
        ],
    )
    def test_bad_argument(self, command: Command, arguments: list[str], words: str) -> None:
        result = command("assets", "pull", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err
