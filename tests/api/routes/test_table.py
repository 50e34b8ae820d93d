"""The history as a table: what a notebook reads is what was measured, to the last bit and to what is no number."""

import io
import json
import math
from typing import Any

import anyio
import httpx2
import pandas as pd
import pytest
from app_in_process import App, refused
from compared_runs import put
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.api.routes import table
from evalsvc.store.history import long_table
from evalsvc.store.history.long_table import COLUMNS, cut_pages, find_series, read_page


@pytest.fixture
def measured(app: App) -> None:
    values = {0: math.nan, 25: 0.1 + 0.2, 50: math.inf, 75: -math.inf, 100: 1e-300}
    for step, number in values.items():
        path = f"/epoch_{step}.pt"
        enter(app.store, submission(step, uri=path, path=path, tokens_seen=1000 * step), suite())
        evaluate_whole(app.store, metric(number), metric(2.0, "loss/image", stderr=None, baseline=9.5))
    put(app.store, "run-b", 25, 1, 0.5)


def read_csv(app: App, **query: Any) -> pd.DataFrame:
    response = app.http.get("/v1/table", params={"format": "csv", **query})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    return pd.read_csv(io.StringIO(response.text))


def test_columns_are_the_lines(app: App, measured: None) -> None:
    columns = app.http.get("/v1/table").json()["columns"]
    table = read_csv(app)
    assert tuple(columns) == tuple(table.columns) == COLUMNS
    assert len(table) == 5 * 2 + 4
    numbers = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
    for name in COLUMNS:
        found = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in table[name]]
        assert found == [numbers.get(cell, cell) for cell in columns[name]], name
    table = read_csv(app, run="run-a", metric="loss/text")
    assert repr(list(map(float, table["value"]))) == repr([math.nan, 0.1 + 0.2, math.inf, -math.inf, 1e-300])
    row = table.iloc[1].to_dict()
    place = {"run": "run-a", "step": 25, "variant": "raw", "tokens": 25_000, "task": "loss-0", "evaluation": 2}
    assert {**place, "n": 8, "stderr": 0.1, "unit": "nats/token", "direction": "lower"}.items() <= row.items()


def test_no_cell_is_a_formula(app: App) -> None:
    """Whoever names a source or a metric would else run programs where the table is opened in a spreadsheet."""
    assert app.http.get("/v1/table?format=csv").text == ",".join(COLUMNS) + "\n", "an empty table has its head too"
    assert app.http.get("/v1/table").json() == {"columns": {name: [] for name in COLUMNS}}
    series = [{"metric": "a/b", "unit": "@SUM(A1)", "step": [1, 2], "value": [-0.5, "-Infinity"]}]
    body = {"source": "=cmd|' /C calc'!A0", "series": series}
    assert app.http.post("/v1/runs/run-a/metrics", json=body).is_success
    table = read_csv(app)
    assert list(table["source"]) == ["'=cmd|' /C calc'!A0"] * 2
    assert list(table["unit"]) == ["'@SUM(A1)"] * 2
    assert list(table["value"]) == [-0.5, -math.inf]
    assert app.http.get("/v1/table").json()["columns"]["unit"] == ["@SUM(A1)"] * 2, "JSON is as it was given"


def test_json_is_made_in_pieces(app: App, measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.6 million rows were one piece, and every other table waited for two minutes."""
    whole = app.http.get("/v1/table").json()
    monkeypatch.setattr(table, "LINES", 2)
    threads, sizes = app.app.state.state.threads, []
    run = threads.run

    async def measured_run(kind: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        result = await run(kind, function, *args, **kwargs)
        if kind == "stream" and result is not None:
            sizes.append(len(json.loads(f"[{result[0]}]")))
        return result

    monkeypatch.setattr(threads, "run", measured_run)
    assert app.http.get("/v1/table").json() == whole
    assert (set(sizes), sum(sizes)) == ({2}, 14)


def test_json_has_so_many_rows_and_csv_has_all(app: App, measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_VALUES", 13)
    refused(app.http.get("/v1/table"), 422, "invalid_request", "14 rows", "at most 13 rows", "format=csv")
    whole = app.http.get("/v1/table?format=csv").text
    assert whole.count("\n") == 15
    assert len(app.http.get("/v1/table?run=run-a").json()["columns"]["run"]) == 10
    for rows, series in ((1, 1000), (3, 2), (5, 1)):  # however it is cut into pages
        monkeypatch.setattr(long_table, "ROWS", rows)
        monkeypatch.setattr(long_table, "SERIES", series)
        assert app.http.get("/v1/table?format=csv").text == whole


def test_tables_of_a_caller_take_turns_and_those_of_others_do_not_wait(app: App, measured: None) -> None:
    """Else a caller with a hundred requests would have a hundred of the turns, and of the memory."""
    threads, answered = app.app.state.state.threads, []

    async def ask(host: str, done: anyio.Event) -> None:
        transport = httpx2.ASGITransport(app.app, client=(host, 1))
        async with httpx2.AsyncClient(transport=transport) as client:
            assert (await client.get("http://evalsvc/v1/table")).status_code == 200
        answered.append(host)
        done.set()

    async def ask_both() -> None:
        mine, others = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks, threads.turn("127.0.0.1"):
            tasks.start_soon(ask, "127.0.0.1", mine)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(ask, "192.0.2.1", others)
            with anyio.fail_after(30):
                await others.wait()

    app.portal.call(ask_both)
    assert answered == ["192.0.2.1", "127.0.0.1"]


def test_a_client_that_stops_reading_holds_no_connection(app: App) -> None:
    """Ninety such clients held every connection to the database, and the service answered nobody."""
    series = [{"metric": "a/b", "step": list(range(5000)), "value": [0.5] * 5000}]
    assert app.http.post("/v1/runs/run-a/metrics", json={"source": "x", "series": series}).is_success
    scope = {"type": "http", "method": "GET", "path": "/v1/table", "query_string": b"format=csv"}
    scope |= {"headers": [(b"host", b"evalsvc")], "client": ("127.0.0.1", 1)}

    async def stop_reading() -> int:
        reading, rows = anyio.Event(), 0

        async def receive() -> Any:
            await anyio.sleep_forever()

        async def send(message: Any) -> None:
            nonlocal rows
            rows += message.get("body", b"").count(b"\n")
            if rows > 1:
                reading.set()
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app.app, scope, receive, send)
            with anyio.fail_after(30):
                await reading.wait()
            held = app.store.engine.pool.checkedout()  # type: ignore[attr-defined]
            tasks.cancel_scope.cancel()
        assert rows < 5000
        return held

    assert app.portal.call(stop_reading) == 0


def test_what_is_written_meanwhile_moves_nothing(app: App, measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> list[tuple[Any, ...]]:
        with app.store.reading() as session:
            return [tuple(row) for page in pages for row in read_page(session, page)]

    monkeypatch.setattr(long_table, "ROWS", 3)
    with app.store.reading() as session:
        pages = cut_pages(session, find_series(session, ["run-a"], [], None)[0])
    before = set(read())
    path = "/epoch_60.pt"
    enter(app.store, submission(60, uri=path, path=path, tokens_seen=60_000), suite())
    evaluate_whole(app.store, metric(7.0))
    rows = read()
    assert len(rows) == len(set(rows))
    assert before <= set(rows)
    assert 60 in {row[1] for row in rows}
