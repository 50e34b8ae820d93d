"""The demo, with one checkpoint of the twelve; all of them are what `make demo` runs."""

from pathlib import Path

import pytest

from evalsvc import demo
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
    last = [entry for entry in demo.checkpoints() if entry[:2] == ("pretrained", 3000)]
    monkeypatch.setattr(demo, "checkpoints", lambda: last)
    monkeypatch.setattr(demo, "RUNS", ("pretrained",))
    with demo.started_service(tmp_path, "cpu,cpu", inception_path.parent) as url, Client(url) as client:
        seen: list[tuple[int, str]] = []
        failures = demo.wait_all(client, demo.post_all(client), lambda done, running: seen.append((done, running)))
        assert failures == []
        assert (0, "pretrained step 3000") in seen
        [row] = demo.read_table(client)
    assert (row.run, row.step) == ("pretrained", 3000)
    assert set(row.cells) == set(demo.COLUMNS)
    assert float(row.cells["agreement"].split()[0]) > 0.8
    assert row.grid is not None


def test_missing_weights_are_said_before_anything_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(AssetMissing, match="evalsvc assets pull inception"),
        demo.started_service(tmp_path, "cpu", tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
