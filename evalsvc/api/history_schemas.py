"""What the routes of the history answer with, as JSON schemas with examples."""

from __future__ import annotations

from typing import Any

from evalsvc.api.json_schema import COUNT, FINITE, NUMBER, TEXT, Schema, array, by_name, closed, one_of, or_null

DIRECTION = one_of("lower", "higher", "none")

_HEAD: dict[str, Schema] = {
    "metric": TEXT,
    "variant": TEXT,
    "protocol": TEXT,
    "unit": TEXT,
    "direction": DIRECTION,
    "baseline": or_null(NUMBER),
    "differs": {"type": "object"},
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
    min=array(or_null(FINITE)),
    max=array(or_null(FINITE)),
    mean=array(or_null(FINITE)),
    count=array(COUNT),
    nan=array(COUNT),
    positive_infinity=array(COUNT),
    negative_infinity=array(COUNT),
    imported=array(COUNT),
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
    n=or_null(COUNT),
    groups=or_null(COUNT),
    **{"import": or_null(COUNT)},
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


def _examples(**values: Any) -> Schema:
    return {name: {"value": value} for name, value in values.items()}


HISTORY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Columns ordered by x.",
        "content": {
            "application/json": {
                "schema": {
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
                },
                "examples": _examples(
                    values={
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
                    },
                    buckets={
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
                    },
                ),
            }
        },
    }
}

SUMMARY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A series per metric, variant and protocol.",
        "content": {
            "application/json": {
                "schema": closed(
                    run=TEXT,
                    series=array(closed(**_HEAD, count=COUNT, latest=or_null(_POINT), best=or_null(_POINT))),
                    imports=_IMPORTS,
                ),
                "example": {
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
            }
        },
    }
}

CONDITIONAL: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is what `If-None-Match` says that you have: the `ETag` of an earlier answer."}
}

IMPORTED_SCHEMA = closed(
    run=TEXT,
    series=COUNT,
    new=COUNT,
    replaced=COUNT,
    unchanged=COUNT,
    **{"import": or_null(COUNT)},
)

_IMPORTED_EXAMPLE = {"run": "t2i-1b-pretrained", "import": 1, "series": 1, "new": 3, "replaced": 0, "unchanged": 0}

IMPORTED: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {"application/json": {"schema": IMPORTED_SCHEMA, "example": example}},
    }
    for status, description, example in (
        (201, "Values were entered.", _IMPORTED_EXAMPLE),
        (200, "All of them were there already.", {**_IMPORTED_EXAMPLE, "import": None, "new": 0, "unchanged": 3}),
    )
}
