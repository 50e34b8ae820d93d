"""Panels and the queries of their addresses: tables as files, lines to copy, and the files of protocols."""

import ast
import csv
import io
import json
import shlex
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import pytest
from app_in_process import App
from dashboard_history import kept
from example_documents import example
from history_reference import Point, write
from pydantic import Field
from queue_steps import enter, evaluate_whole, metric, submission, suite
from told_run import RUN, losses

from evalsvc.client import Client
from evalsvc.errors import InvalidData, InvalidRequest, UnknownName
from evalsvc.spec.documents.comparisons import Comparison, MetricDifference
from evalsvc.web import vega
from evalsvc.web.panel import PANELS, Commands, Panel, Query, Table, panel_class
from evalsvc.web.panels.curve import CurveQuery
from evalsvc.web.panels.differences import ContrastsQuery
from evalsvc.web.panels.loss_map import LossMapQuery
from evalsvc.web.panels.origin import OriginQuery
from evalsvc.web.protocol_files import Measured


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_is_found_by_its_name(name: str) -> None:
    assert panel_class(name).name == name


def test_an_unknown_panel_is_named_with_what_is_near() -> None:
    with pytest.raises(UnknownName, match="no panel is named 'curves'; did you mean 'curve'"):
        panel_class("curves")


def test_a_table_reads_as_the_same_cells() -> None:
    rows = [["a, b", 1, 0.1, None], ['"quoted"\nline', -2, -5e-324, "nan"], ["größe 🐈 \u202e", 2**63, 1e308, ""]]
    text = Table(["text", "whole", "real", "other"], rows).to_csv()
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [
        ["" if cell is None else str(cell) for cell in row] for row in rows
    ]


@pytest.mark.parametrize("formula", ["=HYPERLINK(1)", "+1+cmd", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\uff1d1"])
def test_a_formula_is_text_for_a_spreadsheet(formula: str) -> None:
    """A run's name or an error that begins like one would be computed by whoever opens the file."""
    [_, [cell]] = csv.reader(io.StringIO(Table(["x"], [[formula]]).to_csv(), newline=""))
    assert cell == f"'{formula}"


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_no_text_begins_a_row(end: str) -> None:
    """After a lone "\\r" in an error's message the rest was a row of its own, and a formula."""
    text = f"out of memory{end}=HYPERLINK(1)"
    assert list(csv.reader(io.StringIO(Table(["x"], [[text]]).to_csv(), newline=""))) == [["x"], [text]]


def test_negative_numbers_stay_numbers() -> None:
    assert Table(["x"], [[-1.5], ["-Infinity"], [-3]]).to_csv() == "x\n-1.5\n-Infinity\n-3\n"


@pytest.mark.parametrize("name", ["a b", "a'; touch x; '", "$(touch x)", "`x`", "a\nb", '"', "ü🐈"])
def test_a_copied_line_runs_nothing_but_itself(name: str) -> None:
    lines = Commands(f"evalsvc history {shlex.quote(name)}", f"/v1/runs/{name}/metrics").shown(
        "http://host:1", f"/panels/curve.csv?run={name}"
    )
    address = f"http://host:1/v1/runs/{name}/metrics"
    assert shlex.split(lines["command line"]) == ["evalsvc", "history", name]
    assert shlex.split(lines["curl"]) == ["curl", "-s", address]
    literals = [node.value for node in ast.walk(ast.parse(lines["pandas"])) if isinstance(node, ast.Constant)]
    assert literals == [f"http://host:1/panels/curve.csv?run={name}"]


def test_a_panel_has_an_address_in_each_format() -> None:
    plain, dark = (CurveQuery(run=("a",), metric="loss", theme=theme) for theme in ("light", "dark"))
    assert plain.address("csv") == dark.address("csv", "light") == "/panels/curve.csv?run=a&metric=loss"
    assert (
        plain.address("svg", "dark") == dark.address("svg", "dark") == "/panels/curve.svg?run=a&metric=loss&theme=dark"
    )


def test_the_chart_leaves_companions_to_the_table() -> None:
    """The perplexity of a loss is the same difference in another unit, thousands of standard errors wide."""
    rows = [example(MetricDifference, metric=name) for name in ("pairs/text", "pairs/text_perplexity")]
    panel = ContrastsQuery(a="r@0", b="r@1").panel_of(example(Comparison, contrasts=rows))
    assert panel.spec is not None
    datasets = panel.spec["datasets"]
    assert isinstance(datasets, dict)
    assert [row["metric"] for row in datasets["points"]] == ["pairs/text"]
    assert [row[0] for row in panel.table.rows] == ["pairs/text", "pairs/text_perplexity"]


DIGEST = "ab" * 32


def test_only_a_digest_has_a_file() -> None:
    """A seed is no file, though the task has a parameter of that name."""
    files = {"seed": "7", "data": "/data.jsonl", DIGEST: "/epoch_1.pt"}
    content = {"seed": "7", "data": "cd" * 32, "base": {"checkpoint": DIGEST, "data": {"of": "ef" * 32}}, "empty": {}}
    assert list(Measured("id", content, (), files).fields()) == [
        ("seed", "7", ""),
        ("data", "cd" * 32, "/data.jsonl"),
        ("base.checkpoint", DIGEST, "/epoch_1.pt"),
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


def test_fields_of_a_form_that_are_empty_are_left_out() -> None:
    assert Example.parse([("run", "a"), ("step", ""), ("scale", ""), ("with", "")]) == Example(run="a")


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


def test_an_address_names_only_what_differs_from_the_default() -> None:
    assert Example(run="a", scale="linear", smooth=0.0).to_query() == "run=a"
    assert Example(run="a", step=0).to_query() == "run=a&step=0"


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


# How a value was made

OF_TEXT = (("run", RUN), ("metric", "loss/text"))


def origin(told: App, *pairs: tuple[str, str]) -> Panel:
    with Client("http://evalsvc", transport=told.transport) as client:
        return OriginQuery.parse(pairs).panel(client)


def test_everything_that_a_number_depends_on(told: App) -> None:
    found = origin(told, ("run", RUN), ("metric", "loss/text"), ("step", "100"))
    rows = {str(row[0]): row[1:] for row in found.table.rows}
    assert rows["loss/text"] == ["8 ± 0.1 nats/token (n 400)", ""]
    assert rows["checkpoint"] == ["not hashed", "/digits/100.pt"]
    assert rows["suite"][1] == "quick"
    assert rows["protocol.limit"] == ["1", ""]
    assert rows["provenance.device"] == ["cpu", ""]
    lines = found.commands.shown("http://evalsvc", found.query.address("csv"))
    assert lines["make the number again"] == "evalsvc retry digits@100 --suite quick"
    assert lines["lines of the suite"] == "tasks:\n- kind: loss\n  name: loss-0\n  data: /data.jsonl\n  limit: 1\n"
    assert found.protocols == [losses(100)[0].protocol.id]


def test_the_newest_value_unless_a_step_is_named(told: App) -> None:
    assert origin(told, ("run", RUN), ("metric", "loss/text")).title == "How loss/text of digits@350 was made"


def test_a_number_that_nothing_here_made(told: App) -> None:
    write(told.store, {"lower/a": [Point(5, 1.0, None, None)]}, run="other")
    for pairs, words in (
        ((("run", "other"), ("metric", "lower/a")), "variant of run 'other'"),
        ((*OF_TEXT, ("protocol", "0" * 16)), "has no value of loss/text by the protocol"),
        (
            (("run", RUN), ("metric", "loss/text"), ("step", "100"), ("protocol", "0" * 16)),
            "no evaluation of digits@100",
        ),
    ):
        with pytest.raises(UnknownName, match=words):
            origin(told, *pairs)


# The loss by image code

LOSSES = {"grid": [2, 3], "image_cell": {"start": [0, 1, 3, 5], "loss": [1.0, 2.0, 3.0, 2.5]}}
"""Two of six image codes have no target."""


def loss_map(app: App, content: object, groups: object = ("image_row", "image_cell"), task: str = "loss-0") -> Panel:
    data, form = json.dumps(content).encode(), "application/json"
    artifact = kept(app.settings, "loss_profile", "loss_profile.json", form, data, {"groups": groups})
    enter(app.store, submission(1000), suite("loss"))
    evaluate_whole(app.store, metric(1.0), artifacts=[artifact])
    with Client("http://evalsvc", transport=app.transport) as client:
        return LossMapQuery(evaluation=1, task=task).panel(client)


def test_cells_stand_in_the_rows_and_columns_of_the_image(app: App) -> None:
    shown = loss_map(app, LOSSES)
    assert shown.title == "Loss by image code: run-a@1000, loss-0"
    assert shown.table.columns == ["row", "0", "1", "2"]
    assert [list(row) for row in shown.table.rows] == [[0, 1.0, 2.0, None], [1, 3.0, None, 2.5]]
    assert shown.notes == ["blue-grey cells have no target"]
    points: Any = shown.spec
    assert points["datasets"]["points"][2] == {"row": 1, "column": 0, "loss": 3.0}


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


def test_a_map_is_rendered(app: App, child_process: None) -> None:
    spec = loss_map(app, LOSSES).spec
    assert spec is not None
    svg = vega.render(spec, "svg").decode()
    assert svg.count("aria-roledescription") < 20, "no label of each cell"
    assert "nats/token" in svg
