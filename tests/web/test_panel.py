"""Panels and the queries of their addresses: tables as files, lines to copy, and the files of protocols."""

import ast
import csv
import io
import json
import shlex
from dataclasses import replace
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import pytest
from app_in_process import App
from dashboard_history import kept
from example_documents import example
from history_reference import Point, write
from pydantic import Field
from queue_steps import enter, evaluate_whole, metric, submission, suite
from told_run import BASE, FAILURE, OTHER, RUN, losses, post

from evalsvc.client import Client
from evalsvc.errors import InvalidData, InvalidRequest, UnknownName
from evalsvc.spec.documents.comparisons import Comparison, MetricDifference
from evalsvc.web import vega
from evalsvc.web.charts import Spec
from evalsvc.web.panel import COLUMN, PANELS, Commands, Panel, PanelQuery, Query, Table, panel_class
from evalsvc.web.panels.curve import CurveQuery
from evalsvc.web.panels.differences import ContrastsQuery
from evalsvc.web.panels.loss_map import LossMapQuery
from evalsvc.web.protocol_files import Measured


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_is_found_by_its_name(name: str) -> None:
    assert panel_class(name).name == name
    with pytest.raises(UnknownName, match=f"no panel is named '{name}s'; did you mean '{name}'"):
        panel_class(f"{name}s")


def test_a_table_reads_as_the_same_cells() -> None:
    """After a lone "\\r" in an error's message the rest was a row of its own, and a formula."""
    rows = [["a, b", 1, 0.1, None], ['"quoted"\nline', -2, -5e-324, "nan"], ["größe 🐈 \u202e", 2**63, 1e308, ""]]
    rows += [[f"out of memory{end}=HYPERLINK(1)", -1.5, "-Infinity", -3] for end in ("\r", "\n", "\r\n")]
    text = Table(["text", "whole", "real", "other"], rows).to_csv()
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [
        ["" if cell is None else str(cell) for cell in row] for row in rows
    ]


@pytest.mark.parametrize("formula", ["=HYPERLINK(1)", "+1+cmd", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\uff1d1"])
def test_a_formula_is_text_for_a_spreadsheet(formula: str) -> None:
    """A run's name or an error that begins like one would be computed by whoever opens the file."""
    [_, [cell]] = csv.reader(io.StringIO(Table(["x"], [[formula]]).to_csv(), newline=""))
    assert cell == f"'{formula}"


@pytest.mark.parametrize("name", ["a b", "a'; touch x; '", "$(touch x)", "`x`", "a\nb", '"', "ü🐈"])
def test_a_copied_line_runs_nothing_but_itself(name: str) -> None:
    commands = Commands(f"evalsvc history {shlex.quote(name)}", f"/v1/runs/{name}/metrics")
    lines = commands.shown("http://host:1", f"/panels/curve.csv?run={name}")
    address = f"http://host:1/v1/runs/{name}/metrics"
    assert shlex.split(lines["command line"]) == ["evalsvc", "history", name]
    assert shlex.split(lines["curl"]) == ["curl", "-s", address]
    literals = [node.value for node in ast.walk(ast.parse(lines["pandas"])) if isinstance(node, ast.Constant)]
    assert literals == [f"http://host:1/panels/curve.csv?run={name}"]


def test_a_picture_tells_what_it_shows_without_its_page() -> None:
    """Every file was named `curve`, and a chart of one run had neither its name nor the metric's."""
    query = CurveQuery(run=("pretrained",), metric="digits/fid64", scale="log", width="column")
    spec: Spec = {"width": "container", "mark": "point"}
    panel = Panel(
        query,
        "digits/fid64",
        spec,
        Table([], []),
        Commands("", ""),
        words="Image distance (FID-64)",
        subtitle="pretrained",
        parts=["pretrained", "digits/fid64", "log"],
    )
    assert panel.file_name("svg") == "pretrained_digits-fid64_log.svg"
    picture = panel.picture()
    assert picture["width"] == COLUMN == round(3.3 * 96)
    assert picture["title"] == {
        "text": "Image distance (FID-64) (digits/fid64)",
        "subtitle": "pretrained",
        "anchor": "start",
    }
    assert spec == {"width": "container", "mark": "point"}, "the page has a title of its own"
    hostile = replace(panel, parts=['a"\r\n../b', "é/c"])
    assert hostile.file_name("csv") == "a-..-b_-c.csv"
    with pytest.raises(InvalidRequest, match="width"):
        CurveQuery.parse([("run", "a"), ("metric", "b"), ("width", "100000")])


def test_a_panel_has_an_address_in_each_format() -> None:
    plain, dark = (CurveQuery(run=("a",), metric="loss", theme=theme) for theme in ("light", "dark"))
    assert plain.address("csv") == dark.address("csv", "light") == "/panels/curve.csv?run=a&metric=loss"
    address = "/panels/curve.svg?run=a&metric=loss&theme=dark"
    assert plain.address("svg", "dark") == dark.address("svg", "dark") == address


def test_the_chart_leaves_companions_to_the_table() -> None:
    """The perplexity of a loss is the same difference in another unit, thousands of standard errors wide."""
    rows = [example(MetricDifference, metric=name) for name in ("pairs/text", "pairs/text_perplexity")]
    panel = ContrastsQuery(a="r@0", b="r@1").panel_of(example(Comparison, contrasts=rows))
    assert [row["metric"] for row in data(panel, "points")] == ["pairs/text"]
    assert [row[0] for row in panel.table.rows] == ["pairs/text", "pairs/text_perplexity"]


def test_only_a_digest_has_a_file() -> None:
    """A seed is no file, though the task has a parameter of that name."""
    digest = "ab" * 32
    files = {"seed": "7", "data": "/data.jsonl", digest: "/epoch_1.pt"}
    content = {"seed": "7", "data": "cd" * 32, "base": {"checkpoint": digest, "data": {"of": "ef" * 32}}, "empty": {}}
    assert list(Measured("id", content, (), files).fields()) == [
        ("seed", "7", ""),
        ("data", "cd" * 32, "/data.jsonl"),
        ("base.checkpoint", digest, "/epoch_1.pt"),
        ("base.data.of", "ef" * 32, "/data.jsonl"),
        ("empty", "{}", ""),
    ]


class Example(Query):
    run: Annotated[str, Field(max_length=20)]
    others: Annotated[tuple[Annotated[str, Field(max_length=20)], ...], Field(max_length=2, alias="with")] = ()
    scale: Literal["linear", "log"] = "linear"
    smooth: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    step: Annotated[int, Field(ge=0, le=100)] | None = None


def test_an_address_is_read() -> None:
    query = Example.parse([("run", "a"), ("with", "b"), ("with", "c"), ("step", "7"), ("smooth", "0.5")])
    assert query == Example.model_validate({"run": "a", "with": ("b", "c"), "step": 7, "smooth": 0.5})
    form = Example.parse([("run", "a"), ("step", ""), ("scale", ""), ("with", "")])
    assert form == Example(run="a"), "fields that are empty are left out"
    assert [query.to_query() for query in (form, Example(run="a", step=0))] == ["run=a", "run=a&step=0"]


@pytest.mark.parametrize(
    "query",
    [
        Example(run="a"),
        Example.model_validate({"run": "a&b=c", "with": ("+ %", "ü🐈"), "scale": "log", "step": 0, "smooth": 0.97}),
        Example.model_validate({"run": "<script>", "with": ("",)}),
    ],
)
def test_the_address_of_a_query_is_read_as_the_same_query(query: Example) -> None:
    given = [value for value in query.others if value]
    assert Example.parse(parse_qsl(query.to_query())) == query.model_copy(update={"others": tuple(given)})


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("run", "a"), ("smoth", "1")], "no parameter is named 'smoth'; did you mean 'smooth'"),
        ([("run", "a"), ("others", "b")], "no parameter is named 'others'"),
        ([("run", "a"), ("run", "b")], "the parameter 'run' is given twice; give it once"),
        ([("with", "b")], "run: Field required"),
        ([("run", "a" * 21)], "run: String should have at most 20 characters"),
        ([("run", "a"), ("with", "b"), ("with", "c"), ("with", "d")], "with: Tuple should have at most 2 items"),
        ([("run", "a"), ("with", "b" * 21)], "with.0: String should have at most 20 characters"),
        ([("run", "a"), ("scale", "cubic")], "scale: Input should be 'linear' or 'log', found 'cubic'"),
        ([("run", "a"), ("smooth", "nan")], "smooth: Input should be less than or equal to 0.99, found 'nan'"),
        ([("run", "a"), ("smooth", "inf")], "smooth: Input should be less than or equal to 0.99, found 'inf'"),
        ([("run", "a"), ("step", "-1")], "step: Input should be greater than or equal to 0, found '-1'"),
        ([("run", "a"), ("step", "9" * 5000)], "step: "),
    ],
)
def test_what_no_page_could_have_made_is_refused(pairs: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Example.parse(pairs)
    assert words in refused.value.message
    assert len(refused.value.message) < 300, "what somebody sends is not sent back at length"


def panel(app: App, *pairs: tuple[str, str], query: type[PanelQuery] = CurveQuery) -> Panel:
    with Client("http://evalsvc", transport=app.transport) as client:
        return query.parse(pairs).panel(client)


def data(found: Panel, name: str) -> list[dict[str, Any]]:
    return list(found.spec["datasets"][name])


def columns(found: Panel, *names: str) -> list[tuple[object, ...]]:
    places = [found.table.columns.index(name) for name in names]
    return [tuple(row[at] for at in places) for row in found.table.rows]


TEXT = (("run", RUN), ("metric", "loss/text"))


# The loss by image code

LOSSES = {"grid": [2, 3], "image_cell": {"start": [0, 1, 3, 5], "loss": [1.0, 2.0, 3.0, 2.5]}}
"""Two of six image codes have no target."""


def loss_map(app: App, content: object, groups: object = ("image_row", "image_cell"), task: str = "loss-0") -> Panel:
    data, form = json.dumps(content).encode(), "application/json"
    artifact = kept(app.settings, "loss_profile", "loss_profile.json", form, data, {"groups": groups})
    enter(app.store, submission(1000), suite("loss"))
    evaluate_whole(app.store, metric(1.0), artifacts=[artifact])
    return panel(app, ("evaluation", "1"), ("task", task), query=LossMapQuery)


def test_cells_stand_in_the_rows_and_columns_of_the_image(app: App, child_process: None) -> None:
    shown = loss_map(app, LOSSES)
    assert shown.title == "Loss by image code: run-a@1000, loss-0"
    assert shown.table.columns == ["row", "0", "1", "2"]
    assert [list(row) for row in shown.table.rows] == [[0, 1.0, 2.0, None], [1, 3.0, None, 2.5]]
    assert shown.notes == ["blue-grey cells have no target"]
    points: Any = shown.spec
    assert points["datasets"]["points"][2] == {"row": 1, "column": 0, "loss": 3.0}
    svg = vega.render(points, "svg").decode()
    assert svg.count("aria-roledescription") < 20, "no label of each cell"
    assert "nats/token" in svg


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 700), (700, 1), (128, 128)])
def test_a_map_has_a_size_that_fits_a_page(app: App, rows: int, columns: int) -> None:
    cells = {"start": [*range(rows * columns)], "loss": [1.0] * rows * columns}
    spec: Any = loss_map(app, {"grid": [rows, columns], "image_cell": cells}).spec
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
        loss_map(app, content)


@pytest.mark.parametrize("fields", [{"groups": ["image_position"]}, {"groups": 7}, {"task": "other"}])
def test_a_task_without_a_map_is_named(app: App, fields: dict[str, Any]) -> None:
    with pytest.raises(UnknownName, match="has no loss by image code"):
        loss_map(app, LOSSES, **fields)


# The panel of a metric: its curves with everything around them, its table and its notes


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


def test_a_gap_has_its_reason_on_the_chart_and_in_the_table_and_what_is_no_number_its_word(told: App) -> None:
    found = panel(told, *TEXT)
    gaps = [(row["x"], row["run"], row["why"]) for row in data(found, "gaps")]
    assert gaps == [(400, RUN, "failed"), (500, RUN, "cancelled")]
    assert data(found, "gaps")[0]["message"] == FAILURE
    table = columns(found, "step", "value", "origin")
    assert [step for step, *_ in table] == [500, 400, 350, 300, 200, 100, 0], "newest first"
    assert table[1] == (400, None, f"failed: {FAILURE}")
    assert table[2] == (350, 5.5, "virtual")
    image = panel(told, ("run", RUN), ("metric", "loss/image"))
    [row] = [row for row in data(image, "points") if row["x"] == 200]
    assert (row["y"], row["word"]) == (None, "NaN")
    assert (200, "NaN") in columns(image, "step", "value")
    assert "NaN" in image.table.to_csv()


def test_runs_are_drawn_over_each_other(told: App) -> None:
    found = panel(told, *TEXT, ("run", OTHER), ("run", "nobody"), ("x", "tokens"))
    assert {row["run"] for row in data(found, "points")} == {RUN, OTHER}
    assert max(row["x"] for row in data(found, "points")) == 300_000
    assert any(note.startswith("nobody is not drawn: no run") for note in found.notes), found.notes
    assert any("posted without tokens_seen, left out: 1" in note for note in found.notes)
    with pytest.raises(UnknownName):
        panel(told, ("run", "nobody"), ("metric", "loss/text"))
    with pytest.raises(InvalidRequest, match="from=5 is greater than to=3; swap the two"):
        panel(told, *TEXT, ("from", "5"), ("to", "3"))


def test_values_of_another_protocol_are_not_on_the_curve(app: App) -> None:
    for step, limit in ((100, 1), (200, 2)):
        post(app.store, RUN, step, [metric(5.0, limit=limit)])
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
    assert "How loss/text was measured" in told.http.get(found.origin).text
    for address in found.watched:
        assert "ETag" in told.http.get(address).headers
