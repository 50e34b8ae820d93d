"""The bodies and parameters of requests. Unknown fields are refused with near misses."""

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
from evalsvc.spec.documents.runs import WhenBehind
from evalsvc.spec.names import CHECKPOINT, MAX_STEP, NAME, RUN

MAX_ID = 2**31 - 1

MAX_METRICS = 1000
"""Metrics and patterns in a request: each is compared with every metric of a run."""


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
"""The name of a run, a variant or a suite."""

Id = Annotated[int, Path(ge=1, le=MAX_ID)]

Step = Annotated[int, Field(strict=True, ge=0, le=MAX_STEP)]
"""A training step. Strict: 25.0, "25" and true are no steps."""


async def _raw_body(request: Request) -> bytes:
    return await request.body()


RawBody = Annotated[bytes, Depends(_raw_body)]
"""The body as it was sent, for routes that parse the body in their own thread and not on the event loop."""

Priority = Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000)]


class Input(BaseModel):
    """The body or the parameters of a request: known fields, with values that a database can store."""

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
    """The training run, which begins with its first checkpoint. A virtual checkpoint has a default: the run of the
    first checkpoint in its expression."""
    step: Step | None
    """The training step. Steps may come in any order. A virtual checkpoint has a default: the last step of its run in
    its expression."""
    uri: Annotated[str, Field(min_length=1, max_length=4096)]
    """An absolute path or file:// uri of the weights, complete before it is posted; s3://, gs:// or hf:// where the
    operator allows it; `upload:SHA256` for a file that was sent to `/v1/uploads`; or an expression over checkpoints of
    the service, such as `lerp(run@0, run@5000, 0.3)`."""
    variant: Name | None = None
    """The variant of the step's weights, such as `ema_0.9999` [`raw`; a virtual checkpoint in a run with trained
    checkpoints gets a variant of its own]."""
    suites: list[Name] | None = None
    """The suites to evaluate. By default, the suites that are due by the run's plan."""
    model: str | dict[str, Any] | None = None
    """The open_lm model: a registered name, the path of a JSON file, or the fields. By default, the configuration file
    next to the weights."""
    layout: str | dict[str, Any] | None = None
    """The vocabulary layout: the path of a file, or the fields. By default, every id is text."""
    tokens_seen: Step | None = None
    """The number of tokens trained on so far, for histories along tokens."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """SHA-256 of the file, if the trainer knows the digest. A worker checks the digest when it loads the file."""
    spool: Spool = "none"
    """Keep the weights until they are evaluated: `link` makes a hard link immediately, on the same file system; `copy`
    makes a copy in the background. A remote file can only be copied."""
    priority: Priority = 0
    """Evaluations with a higher priority are dispatched first."""
    tags: dict[str, str] = {}
    """Labels of the checkpoint, as strings."""
    replace: Annotated[bool, Field(strict=True)] = False
    """Replace another checkpoint at the same step and variant, and drop the values of the replaced checkpoint."""

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
    """Evaluations with a higher priority are dispatched first."""


class PlannedSuiteInput(Input):
    suite: Name
    every: Annotated[int, Field(strict=True, ge=1, le=MAX_STEP)]
    """The suite is due at steps that are multiples of this number."""
    first: Step | None = None
    """The first step at which the suite can be due."""
    last: Step | None = None
    """The last step at which the suite can be due."""


class PlanInput(Input):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"suites": [{"suite": "loss", "every": 500}], "when_behind": "newest"}]}
    )

    suites: Annotated[list[PlannedSuiteInput], Field(max_length=256)]
    when_behind: WhenBehind = "all"
    """`newest`: a checkpoint drops what older ones of its run still wait for by the plan. `refuse`: a checkpoint is
    refused (429, with `Retry-After`) while `at_most` other steps of its run have evaluations that are not over."""
    at_most: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    """How many steps of the run may have evaluations that are not over; for `when_behind: refuse` alone."""

    @model_validator(mode="after")
    def _bounds_what_it_refuses(self) -> PlanInput:
        if self.at_most != 1 and self.when_behind != "refuse":
            raise ValueError(f"at_most is for when_behind: refuse, found {self.when_behind!r}; leave at_most out")
        return self


class RunInput(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "t2i-1b-second"}]})

    name: Name
    """The new name of the run."""


class Keep(Input):
    last: Annotated[int, Field(strict=True, ge=1, le=MAX_STEP)] | None = None
    """Keep artifacts of this many steps, the highest ones that have artifacts."""
    every: Annotated[int, Field(strict=True, ge=1, le=MAX_STEP)] | None = None
    """Keep artifacts of steps that are multiples of this number."""
    days: Annotated[float, Field(strict=True, gt=0, le=36_500)] | None = None
    """Keep artifacts of evaluations of the last days, this many."""
    best: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Keep artifacts of the steps at which this metric is best in each of its series. While the metric has no values,
    all artifacts are kept."""

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
    """The run's rule; null for the service's own rule."""


class BaseInput(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"run": "text-1b", "step": 240_000}]})

    run: Name | None = None
    """The run of the base checkpoint [the run in the address]."""
    step: Step
    variant: Name = "raw"


class SummaryQuery(Input):
    metric: Annotated[list[str], Field(max_length=MAX_METRICS)] = []
    """A metric, `<task>/<metric>`, or a pattern such as `arc_*/acc`; repeat for several; by default, all metrics."""
    name: Annotated[list[str], Field(max_length=MAX_METRICS, deprecated=True)] = []
    """The older name of `metric`, removed in the next version."""
    variant: str | None = None
    """Only values of this variant of the weights."""

    @model_validator(mode="before")
    @classmethod
    def _read_older_name(cls, data: object) -> object:
        """Take `name` for `metric`, so that nothing else reads the deprecated field."""
        if isinstance(data, dict) and "name" in data:
            if "metric" in data:
                raise ValueError("metric and name are both given; give metric alone, name is its older name")
            return {("metric" if key == "name" else key): value for key, value in data.items()}
        return data


class HistoryQuery(SummaryQuery):
    x: Literal["step", "tokens"] = "step"
    """The axis: training steps, or tokens seen."""
    first: Annotated[int | None, Field(alias="from", ge=0, le=MAX_STEP)] = None
    """The lowest x."""
    last: Annotated[int | None, Field(alias="to", ge=0, le=MAX_STEP)] = None
    """The highest x, included."""
    points: Annotated[int | None, Field(ge=1, le=10_000)] = None
    """The most buckets of each series. The answer then has buckets in place of values."""
    limit: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """The most values of the answer, over all series. By default, all values."""
    cursor: str | None = None
    """`next_cursor` of the page before, which was asked for with the same parameters."""

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
    """The first checkpoint, RUN@STEP or RUN@STEP:VARIANT."""
    b: NamedCheckpoint
    """The checkpoint that is compared with the first one, RUN@STEP or RUN@STEP:VARIANT."""
    metric: list[str] = []
    """A metric, or a pattern such as `arc_*/acc`; repeat for several metrics; by default, all metrics."""
    task: list[str] = []
    """Only metrics of this task; repeat for several tasks."""
    suite: str | None = None
    """Only values of this suite."""
    level: float = LEVEL
    """The probability with which the interval of a difference holds the true difference."""
    force: bool = False
    """Also compare values of different protocols, without pairing."""
    flipped: Annotated[int, Field(ge=0, le=10_000)] = 0
    """The most items to name, for each side, that only that side gets right."""
    family: Literal["none", "holm"] = "none"
    """The scope of verdicts: each metric by itself, or with `holm` all metrics of the comparison together."""


class CurvesQuery(Input):
    a: NamedRun
    """The first run, RUN or RUN:VARIANT."""
    b: NamedRun | None = None
    """The run that is compared with the first run, at the steps that both have. By default, the first run's base."""
    metric: list[str] = []
    """A metric, or a pattern such as `*/text`; repeat for several metrics; by default, all metrics."""
    task: list[str] = []
    """Only metrics of this task; repeat for several tasks."""
    suite: str | None = None
    """Only values of this suite."""
    level: float = LEVEL
    """The probability with which intervals hold the true difference: at each step, or at all steps together; see
    `band`."""
    band: Literal["pointwise", "simultaneous"] = "pointwise"
    """The intervals of the answer: for each step by itself, or with `simultaneous` for all steps together, by
    Bonferroni."""
    force: bool = False
    """Also compare values of different protocols, without pairing."""


class TableQuery(Input):
    run: list[str] = []
    """A run; repeat for several runs; by default, all runs."""
    metric: list[str] = []
    """A metric, or a pattern such as `arc_*/acc`; repeat for several metrics; by default, all metrics."""
    variant: str | None = None
    """Only values of this variant of the weights."""
    format: Literal["json", "csv"] = "json"
    """Columns in JSON, or CSV with a line for each value."""


class ItemsQuery(Input):
    task: str | None = None
    """Only items of this task."""
    benchmark: str | None = None
    """Only items of this benchmark, such as `arc_easy`."""
    columns: list[str] = []
    """A key of the items; repeat for several keys; by default, all keys."""
    format: Literal["json", "csv"] = "json"
    """Objects in JSON, or CSV with a line for each item."""


def check_storable(data: object) -> None:
    """Raise ValueError for JSON that no database stores: NaN, infinities, NUL, halves of surrogate pairs."""
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
