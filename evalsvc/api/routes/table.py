"""The route of the long table: the history of any runs, for notebooks and spreadsheets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Annotated

from fastapi import Query
from fastapi.responses import Response, StreamingResponse

from evalsvc.api.csv_lines import csv_response
from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import document, or_text
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import TableQuery
from evalsvc.api.state import CurrentState, State
from evalsvc.spec.documents.history import Table
from evalsvc.store.history.long_table import COLUMNS, TableRun, cut_pages, find_series, read_page

router = router_of(prefix="/v1", tags=["table"], responses=PROBLEMS)

_CSV = (
    ",".join(COLUMNS) + "\n"
    "t2i-1b-pretrained,2500,raw,2621440000,loss,loss/image,6.31,0.02,400,80,nats/token,lower,9.704,9a3f0c1d2e4b5a69,40,\n"
)


@router.get(
    "/table",
    summary="Get the history of runs as a long table",
    description="The table has a row for each value, ordered by run, step, variant and metric. Read the table with "
    "`pandas.read_csv` from the URL with `format=csv`, or with `DataFrame` from the columns in JSON. NaN and "
    "infinities are words that pandas reads.",
    response_model=None,
    responses=or_text(
        document(200, "Columns of equal length, or CSV with a line for each value.", Table), "text/csv", _CSV
    ),
)
async def get_table(query: Annotated[TableQuery, Query()], state: CurrentState) -> Response:
    runs = await state.threads.run("read", _find, state, query)
    rows = _rows(state, runs)
    if query.format == "csv":
        return csv_response(COLUMNS, rows, state.threads)
    return StreamingResponse(state.threads.stream(_column_pieces(rows)), media_type="application/json")


def _find(state: State, query: TableQuery) -> list[TableRun]:
    with state.reading() as session:
        return find_series(session, query.run, query.metric, query.variant)


def _rows(state: State, runs: Iterable[TableRun]) -> Iterator[list[object]]:
    """Yield the rows. Each page has a new session, so a client that stops reading occupies no database connection."""
    for run in runs:
        with state.reading() as session:
            pages = cut_pages(session, run)
        for page in pages:
            with state.reading() as session:
                rows = read_page(session, page)
            yield from rows


def _column_pieces(rows: Iterable[list[object]]) -> Iterator[str]:
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    yield '{"columns":{'
    for index, (name, values) in enumerate(zip(COLUMNS, columns, strict=True)):
        yield f"{',' if index else ''}{json.dumps(name)}:{json.dumps(values, ensure_ascii=False)}"
    yield "}}"
