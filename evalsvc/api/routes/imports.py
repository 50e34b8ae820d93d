"""The route that imports values which other programs measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from evalsvc.api.answers import JsonAnswer, answer
from evalsvc.api.errors import joined, shown
from evalsvc.api.middleware.access import needs
from evalsvc.api.middleware.bodies import MAX_IMPORT, MAX_IMPORT_VALUES, check_storable, parse_json
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import MAX_ENTRIES, MAX_ID, Fields, Name, RawBody, RunPath
from evalsvc.api.state import CurrentState, State
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.history import ImportOutcome
from evalsvc.spec.names import MAX_STEP
from evalsvc.spec.protocol import Direction, Protocol
from evalsvc.spec.visible_text import check_visible
from evalsvc.store.history.imports import Imported, import_values

router = router_of(prefix="/v1", tags=["history"])

MAX_SERIES = 1_000
"""The most series of an import. The database is locked for a millisecond for each of them."""

MAX_PROTOCOL = 100_000


def _short(protocol: dict[str, Any] | str) -> dict[str, Any] | str:
    if (size := len(json.dumps(protocol))) > MAX_PROTOCOL:
        raise ValueError(f"the protocol has {size:,} characters as JSON; send at most {MAX_PROTOCOL:,}")
    return protocol


Text = Annotated[
    str, Field(min_length=1, max_length=256), AfterValidator(check_storable), AfterValidator(check_visible)
]

FIRST_ERROR = Field(fail_fast=True)
"""Constraint of columns: each wrong value would be an error of its own, which takes more memory than the value."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
StepOfValue = Annotated[int, Field(ge=0, le=MAX_STEP)]
SizeOfValue = Annotated[int, Field(ge=1, le=MAX_ID)]


class _Strict(BaseModel):
    """A model without conversions: "1" is no number. Pydantic checks long columns faster than `schemas.Input`, which
    walks over all values in Python."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, data: object) -> object:
        if isinstance(data, dict) and len(data) > MAX_ENTRIES:
            raise ValueError(f"an object has {len(data):,} fields; send at most {MAX_ENTRIES:,}")
        return data


class ImportedSeries(_Strict):
    metric: Text
    """The name of the metric, `<task>/<metric>`."""
    step: Annotated[list[StepOfValue], Field(min_length=1, fail_fast=True)]
    """The steps of the values, in any order, without duplicates."""
    value: Annotated[list[Finite | Word], FIRST_ERROR]
    """The values, one for each step."""
    stderr: Annotated[list[Finite | None], FIRST_ERROR] | None = None
    """The standard errors, one for each step; null if unknown."""
    n: Annotated[list[SizeOfValue | None], FIRST_ERROR] | SizeOfValue | None = None
    """The number of items behind each value: a list, a number for all values, or null if unknown."""
    unit: Annotated[str, Field(max_length=64), AfterValidator(check_storable), AfterValidator(check_visible)] = ""
    """The unit of the values; empty for values without a unit."""
    direction: Direction = "none"
    """Whether lower or higher values are better, or neither."""
    variant: Name = "raw"
    """The variant of the weights."""
    protocol: Annotated[Fields | Text, AfterValidator(_short), AfterValidator(check_storable)] = "not stated"
    """The protocol of the values: a text, which never equals a protocol of the service; or the content of a protocol,
    which puts the values into the same series as values that the service measured by this protocol."""
    baseline: Finite | None = None
    """The value of a model that knows nothing."""


class ImportInput(_Strict):
    source: Text
    """A description of the source of the values, for readers of the history."""
    series: Annotated[list[ImportedSeries], Field(min_length=1, max_length=MAX_SERIES, fail_fast=True)]
    """The values by series."""
    replace: bool = False
    """Replace existing values at the same steps, including measured values. Evaluations keep their own results."""


_EXAMPLE = {
    "source": "spreadsheet of 2025, by jane",
    "series": [
        {
            "metric": "coco/fid",
            "unit": "",
            "direction": "lower",
            "protocol": "torch-fidelity 0.3, 30,000 captions of val2014, seed not known",
            "step": [1000, 2000, 3000],
            "value": [48.1, 31.7, "NaN"],
            "n": 30000,
        }
    ],
}


_SCHEMA: dict[str, Any] = ImportInput.model_json_schema()
# Without references, since a request body in OpenAPI has no definitions.
_SCHEMA["properties"]["series"]["items"] = _SCHEMA.pop("$defs")["ImportedSeries"]


@router.post(
    "/runs/{run}/metrics",
    summary="Import values that other programs measured",
    description="The service imports all values of the body, or none, and marks the values as imported. A repeated "
    "import changes nothing. A step with another value, measured or imported, is a conflict unless `replace` is true. "
    "Steps may come in any order. A later evaluation by the same protocol replaces imported values.",
    status_code=201,
    responses={
        201: answer(ImportOutcome, "Values were imported."),
        200: answer(ImportOutcome, "The run already has all values."),
    },
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA, "example": _EXAMPLE}}}
    },
)
@needs("submit", body=MAX_IMPORT)
async def post_metrics(run: RunPath, body: RawBody, request: Request, state: CurrentState) -> JsonAnswer:
    content_type = request.headers.get("content-type", "")
    if "json" not in content_type:
        raise InvalidRequest(
            f"the body must be JSON, found {content_type or 'no content type'}; send Content-Type: application/json"
        )
    return await state.threads.run("import", _import, run, body, state)


def _import(run: str, body: bytes, state: State) -> JsonAnswer:
    given = parse_import(body)
    series = [_imported(index, item) for index, item in enumerate(given.series)]
    indexes: dict[tuple[str, str, str], int] = {}
    for index, item in enumerate(series):
        key = (item.metric, item.variant, item.protocol.id)
        if key in indexes:
            raise InvalidRequest(
                f"series.{index} and series.{indexes[key]} are the same series: {item.metric}, variant "
                f"{item.variant!r}, by one protocol; send their values as one series"
            )
        indexes[key] = index
    with state.writing() as session:
        done = import_values(session, run, given.source, series, given.replace)
    return JsonAnswer(done, 200 if done.import_ is None else 201)


def parse_import(body: bytes) -> ImportInput:
    try:
        return ImportInput.model_validate(parse_json(body, MAX_IMPORT_VALUES))
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    except ValidationError as error:
        findings = dict.fromkeys(_finding(item) for item in error.errors(include_url=False))
        raise InvalidRequest(joined(list(findings))) from None


def _finding(item: ErrorDetails) -> str:
    location = list(item["loc"])
    if location[2:3] == ["value"] and len(location) > 4:
        location = location[:4]
        message = f"a value is a finite number or one of {', '.join(get_args(Word))}"
    elif location[2:3] == ["n"]:
        location = [part for part in location if part in location[:3] or isinstance(part, int)]
        message = "n is a whole number from 1 on, or a list of such numbers and nulls"
    elif item["type"] == "extra_forbidden":
        return f"{_dotted(location)}: there is no such field; leave the field out"
    elif item["type"] == "model_type":
        message = "input should be an object"
    elif item["type"] == "missing":
        return f"{_dotted(location)} is missing"
    else:
        message = item["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
    return f"{_dotted(location) or 'the body'}: {message}, found {shown(item['input'])}"


def _dotted(location: Sequence[int | str]) -> str:  # without the names of the types that pydantic tried
    return ".".join(str(part) for part in location if isinstance(part, int) or str(part).isidentifier())


def _imported(index: int, item: ImportedSeries) -> Imported:
    size = len(item.step)
    stderr = [None] * size if item.stderr is None else item.stderr
    n = item.n if isinstance(item.n, list) else [item.n] * size
    for name, column in (("value", item.value), ("stderr", stderr), ("n", n)):
        if len(column) != size:
            raise InvalidRequest(
                f"series.{index}: step has {size} entries and {name} has {len(column)}; give an entry for each step"
            )
    if len(set(item.step)) < size:
        step, _ = Counter(item.step).most_common(1)[0]
        places = ", ".join(str(position) for position, other in enumerate(item.step) if other == step)
        raise InvalidRequest(
            f"series.{index}.step: step {step} is repeated at the positions {places}; keep one of them"
        )
    content = {"stated": item.protocol} if isinstance(item.protocol, str) else item.protocol
    return Imported(
        metric=item.metric,
        unit=item.unit,
        direction=item.direction,
        protocol=Protocol(content),
        step=item.step,
        value=item.value,
        stderr=stderr,
        n=n,
        variant=item.variant,
        baseline=item.baseline,
    )
