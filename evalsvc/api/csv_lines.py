"""Tables as CSV, streamed: `pandas.read_csv` of the address reads them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from fastapi.responses import StreamingResponse

from evalsvc.api.middleware.threads import Threads
from evalsvc.files.csv_cells import plain_cell
from evalsvc.spec.protocol import number_to_json, plain_json

LINES = 1000
"""In a piece of the answer."""


def csv_response(columns: Sequence[str], rows: Iterable[Sequence[object]], threads: Threads) -> StreamingResponse:
    """A head and a line per row. What is None is empty, NaN and infinities are words, and lists and objects JSON.
    Text that a spreadsheet would take for a formula begins with an apostrophe.

    `rows` is read while the answer is sent, so what can be wrong must be found before.
    """
    return StreamingResponse(threads.stream(_pieces(columns, rows)), media_type="text/csv")


def _pieces(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield _lines([[plain_cell(name) for name in columns]])
    rest = iter(rows)
    while piece := [[_cell(value) for value in row] for row in islice(rest, LINES)]:
        yield _lines(piece)


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return number_to_json(value)
    if isinstance(value, (list, dict)):
        return json.dumps(plain_json(value), ensure_ascii=False)
    return plain_cell(value)
