"""The demo, with one checkpoint of the twelve; all of them are what `make demo` runs."""

from pathlib import Path

import pytest

from evalsvc.cli import demo
from evalsvc.client import Client
from evalsvc.errors import AssetMissing


def test_every_checkpoint_has_its_step() -> None:
    found = demo.checkpoints()
    assert [step for run, step, _ in found if run == "pretrained"] == [0, 10, 20, 80, 300, 3000]
    assert len(found) == 12
    assert all(file.exists() for _, _, file in found)


def test_a_checkpoint_goes_from_post_to_table(
    inception_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service once looked for the weights in the demo's own folder, and every image task failed."""
    [last] = [file for run, step, file in demo.checkpoints() if (run, step) == ("pretrained", 3000)]
    # As step 0, so that it is its own base.
    monkeypatch.setattr(demo, "checkpoints", lambda: [("pretrained", 0, last)])
    monkeypatch.setattr(demo, "RUNS", ("pretrained",))
    with demo.started_service(tmp_path, "cpu,cpu", inception_path.parent) as url, Client(url) as client:
        seen: list[tuple[int, str]] = []
        failures = demo.wait_all(client, demo.post_all(client), lambda done, running: seen.append((done, running)))
        assert failures == []
        assert (0, "pretrained step 0") in seen
        [row] = demo.read_table(client)
        answers = demo.read_answers(client)
    assert (row.run, row.step) == ("pretrained", 0)
    assert set(row.cells) == set(demo.COLUMNS)
    assert number(row, "agreement") > 0.8
    assert number(row, "cloze (chance .25)") < 0.35
    assert row.grid is not None
    assert [found.prompt.split()[0] for found in answers] == ["Simply", "Translate"]
    assert all(found.by_step.keys() == {0} and "‹image" in found.by_step[0] for found in answers)


def number(row: demo.Row, column: str) -> float:
    return float(row.cells[column].split()[0])


def test_missing_weights_are_said_before_anything_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(AssetMissing, match="evalsvc assets pull inception"),
        demo.started_service(tmp_path, "cpu", tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
