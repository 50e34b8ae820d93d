"""The panel of a metric: its curves with everything around them, its table and its notes."""

from dataclasses import replace
from typing import Any

import pytest
from app_in_process import App
from history_reference import Point, write
from queue_steps import metric
from told_run import BASE, FAILURE, OTHER, RUN, losses, post

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.web.panel import Panel
from evalsvc.web.panels.curve import CurveQuery


def panel(app: App, *pairs: tuple[str, str]) -> Panel:
    with Client("http://evalsvc", transport=app.transport) as client:
        return CurveQuery.parse(pairs).panel(client)


def data(found: Panel, name: str) -> list[dict[str, Any]]:
    assert found.spec is not None
    datasets = found.spec["datasets"]
    assert isinstance(datasets, dict)
    return list(datasets[name])


def columns(found: Panel, *names: str) -> list[tuple[object, ...]]:
    places = [found.table.columns.index(name) for name in names]
    return [tuple(row[at] for at in places) for row in found.table.rows]


TEXT = (("run", RUN), ("metric", "loss/text"))


def test_what_a_curve_is_held_against(told: App) -> None:
    """Chance, the unigram loss and the base are lines; the perplexity is read with each value."""
    found = panel(told, *TEXT, ("base", f"{BASE}@0"))
    assert [row["text"] for row in data(found, "lines")] == ["chance 10.5", "unigram 7.25", "base 6"]
    assert [row["next"] for row in data(found, "points")][:2] == ["perplexity 512", "perplexity 256"]
    assert columns(found, "step", "perplexity")[-1] == (0, 512.0)
    missing = panel(told, *TEXT, ("base", f"{BASE}@7"))
    assert f"the base {BASE}@7 has no value that is comparable with these" in missing.notes


def test_a_metric_and_its_companions_are_read_once(told: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Companions were read together with the metric, which had been read before."""
    asked, buckets = [], Client.buckets
    monkeypatch.setattr(Client, "buckets", lambda *a, **k: asked.append(list(a[2])) or buckets(*a, **k))
    panel(told, *TEXT)
    assert asked[0] == ["loss/text"]
    assert len(asked) == 2
    assert "loss/text" not in asked[1]


def test_a_gap_has_its_reason_on_the_chart_and_in_the_table(told: App) -> None:
    found = panel(told, *TEXT)
    assert [(row["x"], row["run"], row["why"]) for row in data(found, "gaps")] == [
        (400, RUN, "failed"),
        (500, RUN, "cancelled"),
    ]
    assert data(found, "gaps")[0]["message"] == FAILURE
    table = columns(found, "step", "value", "origin")
    assert [step for step, *_ in table] == [500, 400, 350, 300, 200, 100, 0], "newest first"
    assert table[1] == (400, None, f"failed: {FAILURE}")
    assert table[2] == (350, 5.5, "virtual")


def test_what_is_no_number_is_said_as_such(told: App) -> None:
    found = panel(told, ("run", RUN), ("metric", "loss/image"))
    [row] = [row for row in data(found, "points") if row["x"] == 200]
    assert (row["y"], row["word"]) == (None, "NaN")
    assert (200, "NaN") in columns(found, "step", "value")
    assert "NaN" in found.table.to_csv()


def test_runs_are_drawn_over_each_other(told: App) -> None:
    found = panel(told, *TEXT, ("run", OTHER), ("run", "nobody"), ("x", "tokens"))
    assert {row["run"] for row in data(found, "points")} == {RUN, OTHER}
    assert max(row["x"] for row in data(found, "points")) == 300_000
    assert any(note.startswith("nobody is not drawn: no run") for note in found.notes), found.notes
    assert any(
        "values of digits whose checkpoints were posted without tokens_seen, left out: 1" in note
        for note in found.notes
    )
    with pytest.raises(UnknownName):
        panel(told, ("run", "nobody"), ("metric", "loss/text"))
    with pytest.raises(InvalidRequest, match="from=5 is greater than to=3; swap the two"):
        panel(told, *TEXT, ("from", "5"), ("to", "3"))


def test_values_of_another_protocol_are_not_on_the_curve(app: App) -> None:
    post(app.store, RUN, 100, [metric(5.0, limit=1)])
    post(app.store, RUN, 200, [metric(4.0, limit=2)])
    found = panel(app, *TEXT)
    assert [row["x"] for row in data(found, "points")] == [200]
    [note] = [note for note in found.notes if "not comparable" in note]
    assert "(limit=1)" in note
    other = panel(app, *TEXT, ("protocol", metric(5.0, limit=1).protocol.id))
    assert [row["x"] for row in data(other, "points")] == [100]


def test_a_late_value_and_a_repeated_one_take_their_place(app: App) -> None:
    for step in (100, 300, 200):
        post(app.store, RUN, step, losses(step))
    assert [(row["x"], row["y"]) for row in data(panel(app, *TEXT), "points")] == [(100, 8.0), (200, 7.0), (300, 6.0)]
    post(app.store, RUN, 200, [replace(value, value=1.5) for value in losses(200)], limit=2)
    assert [(row["x"], row["y"]) for row in data(panel(app, *TEXT), "points")] == [(100, 8.0), (200, 1.5), (300, 6.0)]


def test_a_long_history_comes_in_buckets_with_their_range(app: App) -> None:
    write(app.store, {"lower/a": [Point(step, float(step % 7), 0.1, 50) for step in range(5000)]})
    found = panel(app, ("run", "run-a"), ("metric", "lower/a"), ("smooth", "0.9"))
    points = data(found, "points")
    assert len(points) == 250
    assert (points[0]["least"], points[0]["most"], points[0]["count"], points[0]["kind"]) == (0.0, 6.0, 20, "imported")
    assert "each point is the last value of several steps; the light band is their range" in found.notes
    part = panel(app, ("run", "run-a"), ("metric", "lower/a"), ("from", "100"), ("to", "199"))
    assert [row["x"] for row in data(part, "points")] == list(range(100, 200))


def test_all_of_a_few_hundred_values_are_drawn_and_longer_histories_share_the_buckets(app: App) -> None:
    drawn = []
    for steps in (500, 501):
        runs = [f"{steps}-{index}" for index in range(4)]
        for run in runs:
            write(app.store, {"lower/a": [Point(step, 1.0, 0.1, 50) for step in range(steps)]}, run=run)
        found = panel(app, *(("run", run) for run in runs), ("metric", "lower/a"))
        drawn.append(len(data(found, "points")))
    assert drawn[0] == 4 * 500
    assert 250 < drawn[1] <= 500


def test_few_values_that_lie_close_to_one_another_are_points_of_their_own(app: App) -> None:
    """A run of 50,000 steps was evaluated every 10 steps at its beginning."""
    steps = [*range(0, 300, 10), 50_000]
    write(app.store, {"lower/a": [Point(step, 1.0, None, None) for step in steps]})
    found = panel(app, ("run", "run-a"), ("metric", "lower/a"))
    assert [row["x"] for row in data(found, "points")] == steps
    assert all("count" not in row for row in data(found, "points"))


def test_the_lines_to_copy(told: App) -> None:
    found = panel(told, *TEXT, ("run", OTHER), ("variant", "raw"), ("x", "tokens"))
    lines = found.commands.shown("http://evalsvc", found.query.address("csv"))
    assert lines["command line"] == "evalsvc history digits digits-2 --metric loss/text --x tokens --variant raw"
    assert told.http.get(lines["curl"].removeprefix("curl -s ").strip("'")).status_code == 200
    assert lines["pandas"].startswith("import pandas; pandas.read_csv('http://evalsvc/panels/curve.csv?run=digits&")
    assert told.http.get(found.query.address("csv")).text == found.table.to_csv()
    assert found.origin is not None
    assert told.http.get(found.origin).status_code == 200
    for address in found.watched:
        assert "ETag" in told.http.get(address).headers
