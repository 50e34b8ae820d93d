"""What the routes of the history answer with, as JSON schemas with examples."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

WORDS = ["NaN", "Infinity", "-Infinity"]
"""Numbers that JSON has no words for."""


def _object(**properties: Schema) -> Schema:
    """An object that has these properties and no others."""
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FINITE: Schema = {"type": "number"}
_NUMBER: Schema = {"anyOf": [{"type": "number"}, {"type": "string", "enum": WORDS}]}
_DIRECTION: Schema = {"type": "string", "enum": ["lower", "higher", "none"]}

_HEAD: dict[str, Schema] = {
    "metric": _TEXT,
    "variant": _TEXT,
    "protocol": _TEXT,
    "unit": _TEXT,
    "direction": _DIRECTION,
    "baseline": _or_null(_NUMBER),
    "differs": {"type": "object"},
}

_VALUES = _object(
    **_HEAD,
    x=_array(_COUNT),
    value=_array(_NUMBER),
    stderr=_array(_or_null(_FINITE)),
    n=_array(_or_null(_COUNT)),
    omitted=_COUNT,
    **{"import": _or_null(_array(_or_null(_COUNT)))},
)

_BUCKETS = _object(
    **_HEAD,
    x=_array(_COUNT),
    last=_array(_NUMBER),
    min=_array(_or_null(_FINITE)),
    max=_array(_or_null(_FINITE)),
    mean=_array(_or_null(_FINITE)),
    count=_array(_COUNT),
    nan=_array(_COUNT),
    positive_infinity=_array(_COUNT),
    negative_infinity=_array(_COUNT),
    imported=_array(_COUNT),
    omitted=_COUNT,
)

_IMPORTS: Schema = {"type": "object", "additionalProperties": _object(source=_TEXT, created_at=_TEXT)}

_WHAT: dict[str, Schema] = {
    "run": _TEXT,
    "x": {"type": "string", "enum": ["step", "tokens"]},
    "names": _array(_object(name=_TEXT, unit=_TEXT, direction=_DIRECTION)),
}

_POINT = _object(
    step=_COUNT,
    value=_NUMBER,
    stderr=_or_null(_FINITE),
    n=_or_null(_COUNT),
    **{"import": _or_null(_COUNT)},
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
                        _object(**_WHAT, series=_array(_VALUES), imports=_IMPORTS, next=_or_null(_TEXT)),
                        _object(
                            **_WHAT,
                            sampled={"type": "boolean", "const": True},
                            start=_COUNT,
                            width={"type": "integer", "minimum": 1},
                            series=_array(_BUCKETS),
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
                "schema": _object(
                    run=_TEXT,
                    series=_array(_object(**_HEAD, count=_COUNT, latest=_or_null(_POINT), best=_or_null(_POINT))),
                    imports=_IMPORTS,
                ),
                "example": {
                    "run": "t2i-1b-pretrained",
                    "series": [
                        {
                            **_EXAMPLE_HEAD,
                            "count": 9,
                            "latest": {"step": 4000, "value": 6.31, "stderr": 0.02, "n": 400, "import": None},
                            "best": {"step": 3500, "value": 6.3, "stderr": 0.02, "n": 400, "import": None},
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

IMPORTED_SCHEMA = _object(
    run=_TEXT,
    series=_COUNT,
    new=_COUNT,
    replaced=_COUNT,
    unchanged=_COUNT,
    **{"import": _or_null(_COUNT)},
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
