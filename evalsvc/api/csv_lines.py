"""Tables as streamed CSV, which `pandas.read_csv` reads from a URL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from fastapi.responses import StreamingResponse

from evalsvc.api.middleware.threads import Threads
from evalsvc.files.csv_cells import csv_text
from evalsvc.spec.protocol import number_to_json, plain_json

LINES = 1000
"""Lines in each piece of a streamed answer."""


def csv_response(columns: Sequence[str], rows: Iterable[Sequence[object]], threads: Threads) -> StreamingResponse:
    """Return a CSV answer with a header and a line for each row.

    None becomes an empty cell, NaN and infinities become words, and lists and objects become JSON. A text that a
    spreadsheet would read as a formula gets a leading apostrophe. `rows` is read while the answer is sent, so check the
    request before you call this function.
    """
    return StreamingResponse(threads.stream(_pieces(columns, rows)), media_type="text/csv")


def _pieces(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield csv_text([columns])
    rest = iter(rows)
    while piece := [[_cell(value) for value in row] for row in islice(rest, LINES)]:
        yield csv_text(piece)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return number_to_json(value)
    if isinstance(value, (list, dict)):
        return json.dumps(plain_json(value), ensure_ascii=False)
    return value
