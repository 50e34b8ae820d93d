"""The bodies and parameters that requests carry. Unknown fields are refused, with their near misses."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from fastapi import Depends, Path, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from evalsvc.checkpoints.expression_parser import is_expression
from evalsvc.checkpoints.reference import Spool
from evalsvc.errors import UnknownName
from evalsvc.metrics.intervals import LEVEL
from evalsvc.spec.names import CHECKPOINT, MAX_STEP, NAME, RUN

MAX_ID = 2**31 - 1


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name[:160]!r} is not a name; use letters, digits, '.', '_' and '-', at most 128, a letter or digit first"
        )
    return name


def _plain(pattern: re.Pattern[str]) -> str:
    """Return a pattern for JSON schema, which has no named groups."""
    return "^" + re.sub(r"\(\?P<\w+>", "(", pattern.pattern) + "$"


Name = Annotated[str, AfterValidator(_check_name), WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$"})]
"""Of a run, a variant or a suite."""

Id = Annotated[int, Path(ge=1, le=MAX_ID)]

Step = Annotated[int, Field(strict=True, ge=0, le=MAX_STEP)]
"""Strict: 25.0, "25" and true are not steps."""


async def _raw_body(request: Request) -> bytes:
    return await request.body()


RawBody = Annotated[bytes, Depends(_raw_body)]
"""As it was sent, for routes that read it in their own thread: the framework would do it in the one of all requests."""

Priority = Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000)]


class Input(BaseModel):
    """What a request carries: known fields only, and nothing that the database could not keep."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check(cls, data: object) -> object:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise ValueError(UnknownName.among("field", str(key), known).message)
        check_storable(data)
        return data


class CheckpointInput(Input):
    model_config = ConfigDict(
        json_schema_extra={
            "required": ["uri"],
            "examples": [
                {
                    "run": "t2i-1b-pretrained",
                    "step": 2500,
                    "uri": "/checkpoints/t2i-1b-pretrained/checkpoints/epoch_25.pt",
                    "layout": {"preset": "image-then-special", "text_size": 50432, "codebook_size": 16384},
                    "tokens_seen": 2_621_440_000,
                    "tags": {"lr": "3e-4"},
                }
            ],
        }
    )

    run: Name | None
    """The training run; it begins with its first checkpoint. Only a virtual checkpoint has a default: the run of the
    first checkpoint in its expression."""
    step: Step | None
    """The training step. Steps may come in any order. Only a virtual checkpoint has a default: the last step of that
    run in its expression."""
    uri: Annotated[str, Field(min_length=1, max_length=4096)]
    """An absolute path or file:// uri of the weights, complete before it is posted; s3://, gs:// or hf:// where the
    operator allows it; or an expression over checkpoints of the service, such as `lerp(run@0, run@5000, 0.3)`."""
    variant: Name | None = None
    """Which weights of the step: `ema_0.9999`, … [`raw`; of a virtual checkpoint in a run that has others, a name of
    its own]."""
    suites: list[Name] | None = None
    """The suites to evaluate; without it, those that the run's plan has due."""
    model: str | dict[str, Any] | None = None
    """The open_lm model: a registered name, the path of its JSON, or its fields; without it, what lies beside the
    weights."""
    layout: str | dict[str, Any] | None = None
    """The vocabulary layout: the path of its file, or its fields; without it, every id is text."""
    tokens_seen: Step | None = None
    """Tokens trained on so far, for histories along tokens."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """Digest of the file, where the trainer knows it; a worker checks it while it loads."""
    spool: Spool = "none"
    """Keep the weights until they are evaluated: `link` (at once, same file system), `copy` (in the background; of what
    lies elsewhere, that alone)."""
    priority: Priority = 0
    """Higher first."""
    tags: dict[str, str] = {}
    """Anything worth keeping, as strings."""
    replace: Annotated[bool, Field(strict=True)] = False
    """Put this checkpoint in the place of another one at the same step and variant, and drop that one's values."""

    @model_validator(mode="before")
    @classmethod
    def _leave_place_open(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("uri"), str) and is_expression(data["uri"]):
            return {"run": None, "step": None, **data}
        return data

    @model_validator(mode="after")
    def _has_its_place(self) -> CheckpointInput:
        for name, kind in {"run": "string", "step": "integer"}.items():
            if getattr(self, name) is None and not is_expression(self.uri):
                raise ValueError(f"{name}: input should be a valid {kind}, found None")
        return self


class EvaluationInput(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"checkpoint": 17, "suite": "loss"}]})

    checkpoint: Annotated[int, Field(strict=True, ge=1, le=MAX_ID)]
    """The checkpoint's id."""
    suite: Name
    priority: Priority = 0
    """Higher first."""


class PlannedSuiteInput(Input):
    suite: Name
    every: Annotated[int, Field(strict=True, ge=1, le=MAX_STEP)]
    """The suite is due when the step is a multiple of this."""
    first: Step | None = None
    """Not before this step."""
    last: Step | None = None
    """Not after this step."""


class PlanInput(Input):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"suites": [{"suite": "loss", "every": 500}], "when_behind": "newest"}]}
    )

    suites: Annotated[list[PlannedSuiteInput], Field(max_length=256)]
    when_behind: Literal["all", "newest"] = "all"
    """`newest`: a checkpoint drops what older ones of its run still wait for by the plan."""


class RunInput(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "t2i-1b-second"}]})

    name: Name
    """What the run is called from now on."""


class Keep(Input):
    last: Annotated[int, Field(strict=True, ge=1, le=MAX_STEP)] | None = None
    """So many steps, the highest that have artifacts."""
    every: Annotated[int, Field(strict=True, ge=1, le=MAX_STEP)] | None = None
    """Steps that are multiples of this."""
    days: Annotated[float, Field(strict=True, gt=0, le=36_500)] | None = None
    """What was evaluated in so many days."""
    best: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The steps at which this metric is best, in each of its series; as long as it has no values, all is kept."""

    @model_validator(mode="after")
    def _keeps_something(self) -> Keep:
        if not self.model_dump(exclude_none=True):
            raise ValueError("it keeps nothing; give one of last, every, days, best")
        return self


class RetentionInput(Input):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"keep": {"last": 10, "every": 1000, "best": "coco/fid"}}]}
    )

    keep: Keep | None
    """What is kept; null: what the service's own rule says."""


class BaseInput(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"run": "text-1b", "step": 240_000}]})

    run: Name | None = None
    """The run whose checkpoint it is [this run]."""
    step: Step
    variant: Name = "raw"


class SummaryQuery(Input):
    name: list[str] = []
    """A metric, `<task>/<metric>`, or a pattern such as `arc_*/acc`; repeat it for several; without it, all."""
    variant: str | None = None
    """Only these weights."""


class HistoryQuery(SummaryQuery):
    x: Literal["step", "tokens"] = "step"
    """Along training steps or tokens."""
    first: Annotated[int | None, Field(alias="from", ge=0, le=MAX_STEP)] = None
    """Only from this x on."""
    last: Annotated[int | None, Field(alias="to", ge=0, le=MAX_STEP)] = None
    """Only up to this x, which is still in."""
    points: Annotated[int | None, Field(ge=1, le=10_000)] = None
    """In at most so many buckets a series, instead of every value."""
    limit: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """At most so many values, over all series; `next` of the answer is the cursor of the rest."""
    cursor: Annotated[str | None, Field(max_length=256)] = None
    """`next` of the page before."""

    @model_validator(mode="after")
    def _has_one_form(self) -> HistoryQuery:
        if self.points is not None and (self.limit is not None or self.cursor is not None):
            raise ValueError("points gives the whole of every series in buckets; leave limit and cursor out")
        if self.cursor is not None and self.limit is None:
            raise ValueError("a cursor needs the limit of the next page; give both")
        return self


# Python's names of groups are not JSON schema's.
NamedCheckpoint = Annotated[str, WithJsonSchema({"type": "string", "pattern": _plain(CHECKPOINT)})]

NamedRun = Annotated[str, WithJsonSchema({"type": "string", "pattern": _plain(RUN)})]


class CompareQuery(Input):
    a: NamedCheckpoint
    """A checkpoint of the service, RUN@STEP or RUN@STEP:VARIANT."""
    b: NamedCheckpoint
    """What is compared with it, given likewise."""
    metric: list[str] = []
    """A metric, or a pattern such as `arc_*/acc`; repeat it for several; without it, all."""
    task: list[str] = []
    """Only what this task measured; repeat it for several."""
    suite: str | None = None
    """Only this suite's values."""
    level: float = LEVEL
    """How often the interval of a difference holds the truth."""
    force: bool = False
    """Compare what was measured by different protocols, too; unpaired."""
    flipped: Annotated[int, Field(ge=0, le=10_000)] = 0
    """How many of the items that only one side gets right are named, of each side."""
    family: Literal["none", "holm"] = "none"
    """What verdicts hold for: each metric by itself, or (`holm`) all metrics of the comparison together."""


class CurvesQuery(Input):
    a: NamedRun
    """A run, RUN or RUN:VARIANT."""
    b: NamedRun | None = None
    """The run that is compared with it at the steps that both have; without it, a is compared with its base."""
    metric: list[str] = []
    """A metric, or a pattern such as `*/text`; repeat it for several; without it, all."""
    task: list[str] = []
    """Only what this task measured; repeat it for several."""
    suite: str | None = None
    """Only this suite's values."""
    level: float = LEVEL
    """How often an interval holds the truth: at its own step, or all of them at once; see `band`."""
    band: Literal["pointwise", "simultaneous"] = "pointwise"
    """The intervals that are shown; `simultaneous`: those that hold the truth at all steps at once, by Bonferroni."""
    force: bool = False
    """Compare what was measured by different protocols, too; unpaired."""


class TableQuery(Input):
    run: list[str] = []
    """A run; repeat it for several; without it, all."""
    metric: list[str] = []
    """A metric, or a pattern such as `arc_*/acc`; repeat it for several; without it, all."""
    variant: str | None = None
    """Only these weights."""
    format: Literal["json", "csv"] = "json"
    """Columns in JSON, or a line per value."""


class ItemsQuery(Input):
    task: str | None = None
    """Only of this task."""
    benchmark: str | None = None
    """Only of this benchmark, e.g. arc_easy."""
    columns: list[str] = []
    """Only these keys of the items; repeat it for several; without it, all."""
    format: Literal["json", "csv"] = "json"
    """Objects in JSON, or a line per item."""


def check_storable(data: object) -> None:
    """Refuse what is legal in Python's JSON but not in a database's: NaN, NUL, halves of surrogate pairs."""
    rest = [data]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            rest.extend(item)
            rest.extend(item.values())
        elif isinstance(item, list):
            rest.extend(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"the number {item} is not allowed; leave the field out")
        elif isinstance(item, str) and ("\0" in item or any("\ud800" <= char <= "\udfff" for char in item)):
            raise ValueError(f"the text {item[:80]!r} has a character that cannot be stored")
