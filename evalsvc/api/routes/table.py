"""The route of the long table: the history of any runs, for notebooks and spreadsheets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse

from evalsvc.api.answers import LINES, answer, csv_response, or_text
from evalsvc.api.middleware.access import caller_key, needs
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import TableQuery
from evalsvc.api.state import CurrentState, State
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents.history import Table
from evalsvc.store.history.long_table import COLUMNS, TableRun, count_rows, cut_pages, find_series, read_page
from evalsvc.store.pages import MAX_VALUES

router = router_of(prefix="/v1", tags=["table"])

_CSV = (
    ",".join(COLUMNS) + "\n"
    "t2i-1b-pretrained,2500,raw,2621440000,loss,loss/image,6.31,0.02,400,80,nats/token,lower,9.704,9a3f0c1d2e4b5a69,40,\n"
)


@router.get(
    "/table",
    summary="Get the history of runs as a long table",
    description="The table has a row for each value, ordered by run, step, variant and metric. Read the table with "
    "`pandas.read_csv` from the URL with `format=csv`, or with `DataFrame` from the columns in JSON, which has at most "
    "200,000 rows. NaN and infinities are words that pandas reads.",
    responses={
        200: answer(Table, "Columns of equal length, or CSV with a line for each value.", **or_text("text/csv", _CSV))
    },
)
@needs("read")
async def get_table(query: Annotated[TableQuery, Query()], request: Request, state: CurrentState) -> Response:
    runs = await state.threads.run("read", _find, state, query)
    rows = _rows(state, runs)
    if query.format == "csv":
        return csv_response(COLUMNS, rows, state.threads)
    async with state.threads.turn(caller_key(request.scope)):
        pieces = [piece async for piece in state.threads.stream(_column_pieces(rows))]
    return StreamingResponse(_json(pieces), media_type="application/json")


def _find(state: State, query: TableQuery) -> list[TableRun]:
    with state.reading() as session:
        runs = find_series(session, query.run, query.metric, query.variant)
        if query.format == "json" and (number := count_rows(session, runs)) > MAX_VALUES:
            raise InvalidRequest(
                f"the table has {number:,} rows, and JSON has at most {MAX_VALUES:,} rows; ask for CSV with "
                "format=csv, or for fewer runs or metrics"
            )
        return runs


def _rows(state: State, runs: Iterable[TableRun]) -> Iterator[list[object]]:
    """Yield the rows. Each page has a new session, so a client that stops reading occupies no database connection."""
    for run in runs:
        with state.reading() as session:
            pages = cut_pages(session, run)
        for page in pages:
            with state.reading() as session:
                rows = read_page(session, page)
            yield from rows


def _column_pieces(rows: Iterator[list[object]]) -> Iterator[list[str]]:
    while some_rows := list(islice(rows, LINES)):
        yield [json.dumps(values, ensure_ascii=False)[1:-1] for values in zip(*some_rows, strict=True)]


async def _json(pieces: Sequence[Sequence[str]]) -> AsyncIterator[str]:
    yield '{"columns":{'
    for index, name in enumerate(COLUMNS):
        yield f"{',' if index else ''}{json.dumps(name)}:[{', '.join(piece[index] for piece in pieces)}]"
    yield "}}"
