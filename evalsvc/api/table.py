"""The history of any runs as one long table: what notebooks and spreadsheets want."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse

from evalsvc.api.csv_lines import csv_response
from evalsvc.api.document import answer, or_csv
from evalsvc.api.errors import PROBLEMS
from evalsvc.api.response_schemas import TABLE
from evalsvc.api.schemas import TableQuery
from evalsvc.api.state import CurrentState, State
from evalsvc.store.table import COLUMNS, find_series, read_table

router = APIRouter(prefix="/v1", tags=["table"], responses=PROBLEMS)

_TABLE = {"columns": {"run": ["pretrained"], "step": [0], "metric": ["pairs/text"], "value": [5.17], "stderr": [0.03]}}


@router.get(
    "/table",
    summary="The history of any runs as one long table",
    description="A row per value, by run, step, variant and metric: `pandas.read_csv` of the address with "
    "`format=csv`, or `DataFrame` of the columns. NaN and infinities are words, as pandas reads them.",
    response_model=None,
    responses=or_csv(answer(200, "Columns of equal length; as CSV, a line per value.", TABLE, _TABLE)),
)
def get_table(query: Annotated[TableQuery, Query()], state: CurrentState) -> Response:
    with state.reading() as session:
        series = find_series(session, query.run, query.metric, query.variant)
    rows = _stream(state, series)
    if query.format == "csv":
        return csv_response(COLUMNS, rows)
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    return StreamingResponse(_column_pieces(columns), media_type="application/json")


def _stream(state: State, series: list[int]) -> Iterator[list[Any]]:
    """In a session of its own: an answer is sent after its request's is closed."""
    with state.reading() as session:
        yield from read_table(session, series)


def _column_pieces(columns: list[tuple[Any, ...]]) -> Iterator[str]:
    yield '{"columns":{'
    for place, (name, values) in enumerate(zip(COLUMNS, columns, strict=True)):
        yield f"{',' if place else ''}{json.dumps(name)}:{json.dumps(values, ensure_ascii=False)}"
    yield "}}"
