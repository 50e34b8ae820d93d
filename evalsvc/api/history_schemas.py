"""What the routes of the history answer with, as JSON schemas with examples."""

from __future__ import annotations

from typing import Any

from evalsvc.api.json_answer import answer
from evalsvc.api.json_schema import COUNT, FIELDS, FINITE, NUMBER, TEXT, Schema, alike, array, by_name, closed, or_null
from evalsvc.api.response_schemas import DIRECTION

_HEAD: dict[str, Schema] = {
    **alike(TEXT, "metric", "variant", "protocol", "unit"),
    "direction": DIRECTION,
    "baseline": or_null(NUMBER),
    "differs": FIELDS,
}

_VALUES = closed(
    **_HEAD,
    x=array(COUNT),
    value=array(NUMBER),
    stderr=array(or_null(FINITE)),
    n=array(or_null(COUNT)),
    groups=or_null(array(or_null(COUNT))),
    omitted=COUNT,
    **{"import": or_null(array(or_null(COUNT)))},
)

_BUCKETS = closed(
    **_HEAD,
    x=array(COUNT),
    last=array(NUMBER),
    **alike(array(or_null(FINITE)), "min", "max", "mean"),
    **alike(array(COUNT), "count", "nan", "positive_infinity", "negative_infinity", "imported"),
    omitted=COUNT,
)

_IMPORTS = by_name(closed(source=TEXT, created_at=TEXT))

_WHAT: dict[str, Schema] = {
    "run": TEXT,
    "x": {"type": "string", "enum": ["step", "tokens"]},
    "names": array(closed(name=TEXT, unit=TEXT, direction=DIRECTION)),
}

_POINT = closed(
    step=COUNT,
    value=NUMBER,
    stderr=or_null(FINITE),
    **alike(or_null(COUNT), "n", "groups", "import"),
)

_EXAMPLE_HEAD = {
    "metric": "loss/image",
    "variant": "raw",
    "protocol": "9a3f0c1d2e4b5a69",
    "unit": "nats/token",
    "direction": "lower",
    "baseline": 9.704,
    "differs": {"sampling.guidance_scale": 3.0},
}

_EXAMPLE_COUNTS = {"stderr": 0.02, "n": 400, "groups": 80}

_EXAMPLE_NAMES = [{"name": "loss/image", "unit": "nats/token", "direction": "lower"}]

_EXAMPLE_IMPORTS = {"1": {"source": "spreadsheet of 2025", "created_at": "2026-02-03T10:11:12.131+00:00"}}


_VALUES_EXAMPLE = {
    "run": "t2i-1b-pretrained",
    "x": "step",
    "series": [
        {
            **_EXAMPLE_HEAD,
            "x": [0, 2500],
            "value": ["NaN", 6.31],
            "stderr": [None, 0.02],
            "n": [400, 400],
            "groups": [None, 80],
            "import": [1, None],
            "omitted": 0,
        }
    ],
    "names": _EXAMPLE_NAMES,
    "imports": _EXAMPLE_IMPORTS,
    "next": None,
}

_BUCKETS_EXAMPLE = {
    "run": "t2i-1b-pretrained",
    "x": "step",
    "sampled": True,
    "start": 0,
    "width": 2000,
    "series": [
        {
            **_EXAMPLE_HEAD,
            "x": [1500, 3500],
            "last": [6.54, 6.31],
            "min": [6.54, 6.31],
            "max": [9.7, 6.48],
            "mean": [7.21, 6.4],
            "count": [4, 4],
            "nan": [1, 0],
            "positive_infinity": [0, 0],
            "negative_infinity": [0, 0],
            "imported": [1, 0],
            "omitted": 0,
        }
    ],
    "names": _EXAMPLE_NAMES,
}

_EITHER = {
    "anyOf": [
        closed(**_WHAT, series=array(_VALUES), imports=_IMPORTS, next=or_null(TEXT)),
        closed(
            **_WHAT,
            sampled={"type": "boolean", "const": True},
            start=COUNT,
            width={"type": "integer", "minimum": 1},
            series=array(_BUCKETS),
        ),
    ]
}

HISTORY = answer(
    200,
    "Columns ordered by x.",
    _EITHER,
    examples={"values": {"value": _VALUES_EXAMPLE}, "buckets": {"value": _BUCKETS_EXAMPLE}},
)

SUMMARY = answer(
    200,
    "A series per metric, variant and protocol.",
    closed(
        run=TEXT,
        series=array(closed(**_HEAD, count=COUNT, **alike(or_null(_POINT), "latest", "best"))),
        imports=_IMPORTS,
    ),
    {
        "run": "t2i-1b-pretrained",
        "series": [
            {
                **_EXAMPLE_HEAD,
                "count": 9,
                "latest": {"step": 4000, "value": 6.31, **_EXAMPLE_COUNTS, "import": None},
                "best": {"step": 3500, "value": 6.3, **_EXAMPLE_COUNTS, "import": None},
            }
        ],
        "imports": {},
    },
)

CONDITIONAL: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is what `If-None-Match` says that you have: the `ETag` of an earlier answer."}
}

IMPORTED_SCHEMA = closed(
    run=TEXT, **alike(COUNT, "series", "new", "replaced", "unchanged"), **{"import": or_null(COUNT)}
)

_IMPORTED_EXAMPLE = {"run": "t2i-1b-pretrained", "import": 1, "series": 1, "new": 3, "replaced": 0, "unchanged": 0}

_UNCHANGED_EXAMPLE = {**_IMPORTED_EXAMPLE, "import": None, "new": 0, "unchanged": 3}

IMPORTED = answer(201, "Values were entered.", IMPORTED_SCHEMA, _IMPORTED_EXAMPLE) | answer(
    200, "All of them were there already.", IMPORTED_SCHEMA, _UNCHANGED_EXAMPLE
)
