"""`evalsvc doctor` and `evalsvc layout`."""

import json
from pathlib import Path

import pytest
from console import Shell

from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout


def test_the_doctor_shows_settings_with_their_source_and_what_is_missing(
    evalsvc: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh machine is fine; the data of a suite are missing once somebody wants that suite."""
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
    assert evalsvc("doctor").code == 0
    result = evalsvc("doctor loss")
    assert (result.code, "heldout_text.jsonl" in result.out) == (1, True)
    monkeypatch.setenv("EVALSVC_DATABASE_URL", "postgresql://evalsvc:secret@127.0.0.1:9/evalsvc")
    result = evalsvc("doctor --data-dir data")
    rows = {row[0]: row[1:] for row in result.cells if row and row[0].startswith("EVALSVC_")}
    assert rows["EVALSVC_PORT"] == ["8321", "default"]
    assert rows["EVALSVC_DEVICES"] == ["cpu", "environment"]
    assert rows["EVALSVC_DATA_DIR"] == ["data", "option"]
    assert "secret" not in result.out
    assert result.code == 1  # no database answers there


class TestDoctorLayout:
    """What it finds is tested in tests/doctor/layout; here is what the command does with it."""

    LAYOUT = f"layout {ROOT}/runs/random-init/checkpoints/epoch_5.pt --pairs {ROOT}/heldout_pairs.jsonl --text-size 512"
    LAYOUT += " --codebook-size 64 --device cpu --threads 1 --output layout.yaml --findings all.json"

    @pytest.mark.usefixtures("many_cases")
    def test_decided(self, evalsvc: Shell, tmp_path: Path) -> None:
        """The file that it writes is the layout for `run --layout`, and its own for the next question."""
        result = evalsvc(self.LAYOUT)
        assert result.code == 0, result.err
        assert "the layout is image-then-special 512 (text, image)" in result.out
        assert "special tokens: doc 576, /doc 577, text 578, /text 579, image 580, /image 581, pad 582" in result.out
        assert "split-tables 512" in result.out
        layout = parse_layout(str(tmp_path / "layout.yaml"))
        assert (layout.image_ids, layout.special["/image"]) == (range(512, 576), 581)
        assert json.loads((tmp_path / "all.json").read_text())["decided"] is True

    def test_refused(self, evalsvc: Shell, tmp_path: Path) -> None:
        """Two pairs are not enough for anything: no file, exit code 1, and what to do."""
        result = evalsvc(f"{self.LAYOUT} --limit 2")
        assert (result.code, "not decided" in result.out) == (1, True)
        assert "use more pairs (--limit)" in result.out
        assert not (tmp_path / "layout.yaml").exists()
        assert json.loads((tmp_path / "all.json").read_text())["decided"] is False
