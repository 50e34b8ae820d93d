"""`evalsvc doctor` and `evalsvc layout`."""

import json
from pathlib import Path

import pytest
from console import Command

from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout


class TestDoctor:
    def test_shows_settings_with_their_source(
        self, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
        monkeypatch.setenv("EVALSVC_DATABASE_URL", "postgresql://evalsvc:secret@127.0.0.1:9/evalsvc")
        result = command("doctor", "--data-dir", str(tmp_path / "data"))
        rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if "EVALSVC_" in line[:12]}
        assert rows["EVALSVC_PORT"] == ["8321", "default"]
        assert rows["EVALSVC_DEVICES"] == ["cpu", "environment"]
        assert rows["EVALSVC_DATA_DIR"] == [str(tmp_path / "data"), "option"]
        assert "secret" not in result.out
        assert result.code == 1  # no database answers there

    def test_exit_code(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fresh machine is fine; the data of a suite are missing once somebody wants that suite."""
        monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
        assert command("doctor").code == 0
        result = command("doctor", "loss")
        assert result.code == 1
        assert "heldout_text.jsonl" in result.out


class TestDoctorLayout:
    """What it finds is tested in tests/layout_doctor; here is what the command does with it."""

    CHECKPOINT = str(ROOT / "runs/random-init/checkpoints/epoch_5.pt")
    PAIRS = ("--pairs", str(ROOT / "heldout_pairs.jsonl"))
    SIZES = ("--text-size", "512", "--codebook-size", "64", "--device", "cpu", "--threads", "1")

    @pytest.mark.usefixtures("many_cases")
    def test_decided(self, command: Command, tmp_path: Path) -> None:
        """The file that it writes is the layout for `run --layout`, and its own for the next question."""
        outputs = ("--output", "layout.yaml", "--findings", "all.json")
        result = command("layout", self.CHECKPOINT, *self.PAIRS, *self.SIZES, *outputs)
        assert result.code == 0, result.err
        assert "the layout is image-then-special 512 (text, image)" in result.out
        assert "special tokens: doc 576, /doc 577, text 578, /text 579, image 580, /image 581, pad 582" in result.out
        assert "split-tables 512" in result.out
        layout = parse_layout(str(tmp_path / "layout.yaml"))
        assert (layout.image_ids, layout.special["/image"]) == (range(512, 576), 581)
        assert json.loads((tmp_path / "all.json").read_text())["decided"] is True

    def test_refused(self, command: Command, tmp_path: Path) -> None:
        """Two pairs are not enough for anything: no file, exit code 1, and what to do."""
        outputs = ("--limit", "2", "--output", "layout.yaml", "--findings", "all.json")
        result = command("layout", self.CHECKPOINT, *self.PAIRS, *self.SIZES, *outputs)
        assert result.code == 1
        assert "not decided" in result.out
        assert "use more pairs (--limit)" in result.out
        assert not (tmp_path / "layout.yaml").exists()
        assert json.loads((tmp_path / "all.json").read_text())["decided"] is False

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([CHECKPOINT, "--pairs", "nowhere.jsonl"], "nowhere.jsonl"),
            ([CHECKPOINT, *PAIRS, "--output", "no/where.yaml"], "--output no/where.yaml: the folder no does not exist"),
            ([CHECKPOINT, *PAIRS, "--layout", "image-then-specail"], "did you mean 'image-then-special' or"),
        ],
    )
    def test_bad_argument(self, command: Command, arguments: list[str], words: str) -> None:
        result = command("layout", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err
        assert "Traceback" not in result.err
