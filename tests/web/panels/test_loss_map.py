"""The map of the loss by image code, from the artifact that a task left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, app_in_process
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.client import Client
from evalsvc.errors import InvalidData, UnknownName
from evalsvc.files.artifacts import KeptArtifact, keep_content
from evalsvc.web import vega
from evalsvc.web.panel import Panel
from evalsvc.web.panels.loss_map import LossMapQuery

LOSSES = {"grid": [2, 3], "image_cell": {"start": [0, 1, 3, 5], "loss": [1.0, 2.0, 3.0, 2.5]}}
"""Two of six image codes have no target."""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data") as app:
        yield app


def panel(app: App, content: object, groups: object = ("image_row", "image_cell"), task: str = "loss-0") -> Panel:
    """Return the map of a task that left this content."""
    data = json.dumps(content).encode()
    sha256 = keep_content(app.settings.artifacts_path, data)
    details = {"groups": groups}
    artifact = KeptArtifact("loss_profile", "loss_profile.json", "application/json", details, sha256, len(data))
    enter(app.store, submission(1000), suite("loss"))
    evaluate_whole(app.store, metric(1.0), artifacts=[artifact])
    with Client("http://evalsvc", transport=app.transport) as client:
        return LossMapQuery(evaluation=1, task=task).panel(client)


def test_cells_stand_in_the_rows_and_columns_of_the_image(app: App) -> None:
    shown = panel(app, LOSSES)
    assert shown.title == "Loss by image code: run-a@1000, loss-0"
    assert shown.table.columns == ["row", "0", "1", "2"]
    assert [list(row) for row in shown.table.rows] == [[0, 1.0, 2.0, None], [1, 3.0, None, 2.5]]
    assert shown.notes == ["blue-grey cells have no target"]
    points: Any = shown.spec
    assert points["datasets"]["points"][2] == {"row": 1, "column": 0, "loss": 3.0}


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 700), (700, 1), (128, 128)])
def test_a_map_has_a_size_that_fits_a_page(app: App, rows: int, columns: int) -> None:
    cells = {"start": [*range(rows * columns)], "loss": [1.0] * rows * columns}
    spec: Any = panel(app, {"grid": [rows, columns], "image_cell": cells}).spec
    assert max(spec["width"], spec["height"]) <= 1400
    assert min(spec["width"], spec["height"]) >= 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "should be an object"),
        ({"grid": [2, 3]}, "Field required"),
        (LOSSES | {"grid": [2, 1 << 40]}, "less than or equal to 16384"),
        (LOSSES | {"image_cell": {"start": [-1], "loss": [1.0]}}, "greater than or equal to 0"),
        (LOSSES | {"image_cell": {"start": [0], "loss": [float("nan")]}}, "finite number"),
        (LOSSES | {"image_cell": {"start": [0] * 20_000, "loss": []}}, "at most 16384 items"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(app: App, content: object, words: str) -> None:
    with pytest.raises(InvalidData, match=f"artifact 1 is no loss profile: .*{words}"):
        panel(app, content)


@pytest.mark.parametrize("fields", [{"groups": ["image_position"]}, {"groups": 7}, {"task": "other"}])
def test_a_task_without_a_map_is_named(app: App, fields: dict[str, Any]) -> None:
    with pytest.raises(UnknownName, match="has no loss by image code"):
        panel(app, LOSSES, **fields)


def test_a_map_is_rendered(app: App, child_process: None) -> None:
    spec = panel(app, LOSSES).spec
    assert spec is not None
    svg = vega.render(spec, "svg").decode()
    assert svg.count("aria-roledescription") < 20, "no label of each cell"
    assert "nats/token" in svg
