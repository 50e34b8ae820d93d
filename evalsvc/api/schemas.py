"""Bodies and parameters of requests. The error for an unknown field lists near names."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import Depends, Path, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from evalsvc.checkpoints.expression import is_expression
from evalsvc.checkpoints.reference import Spool
from evalsvc.errors import UnknownName
from evalsvc.metrics.intervals import LEVEL
from evalsvc.spec.documents.comparisons import Across
from evalsvc.spec.documents.fields import State
from evalsvc.spec.documents.runs import Plan, PlannedSuite
from evalsvc.spec.names import CHECKPOINT, MAX_STEP, NAME, NAMED, RUN
from evalsvc.store.pages import DEFAULT_LIMIT, MAX_LIMIT, MAX_VALUES, Filters, PageRequest

MAX_ID = 2**31 - 1

MAX_ENTRIES = 1000
"""The most entries of a list or an object in a field of a request. Each metric or pattern is compared with every metric
of a run."""

MAX_RUNS, MAX_HEADLINE, MAX_COMPARE_SECONDS, MAX_STRIP = 50, 20, 5, 8
"""The most runs, metrics, seconds for comparisons, and runs with strips in a request for headlines."""


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name[:160]!r} is not a name; use letters, digits, '.', '_' and '-', at most 128, a letter or digit first"
        )
    return name


def _plain(pattern: re.Pattern[str]) -> str:  # JSON schema does not support names of groups
    return "^" + re.sub(r"\(\?P<\w+>", "(", pattern.pattern) + "$"


Name = Annotated[str, AfterValidator(check_name), WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$"})]
"""The name of a run, a variant or a suite."""

RunPath = Annotated[Name, Path(description="The name of the run.")]
SuitePath = Annotated[Name, Path(description="The name of the suite.")]
ProtocolPath = Annotated[Name, Path(description="The id of the protocol.")]
CheckpointId = Annotated[int, Path(ge=1, le=MAX_ID, description="The id of the checkpoint.")]
EvaluationId = Annotated[int, Path(ge=1, le=MAX_ID, description="The id of the evaluation.")]
ArtifactId = Annotated[int, Path(ge=1, le=MAX_ID, description="The id of the artifact.")]
StepPath = Annotated[int, Path(ge=0, le=MAX_STEP, description="The training step of the checkpoint.")]

Step = Annotated[int, Field(strict=True, ge=0, le=MAX_STEP)]
"""A training step. 25.0, "25" and true are not valid."""


async def _raw_body(request: Request) -> bytes:
    return await request.body()


RawBody = Annotated[bytes, Depends(_raw_body)]
"""The raw body, for routes that parse the body in a thread instead of on the event loop."""

Priority = Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000)]
Names = Annotated[list[str], Field(max_length=MAX_ENTRIES)]
Fields = Annotated[dict[str, Any], Field(max_length=MAX_ENTRIES)]
TagName = Annotated[str, Field(max_length=128)]
TagText = Annotated[str, Field(max_length=500)]
From = Annotated[int | None, Field(alias="from", ge=0, le=MAX_STEP)]
To = Annotated[int | None, Field(alias="to", ge=0, le=MAX_STEP)]


class Input(BaseModel):
    """A body or the parameters of a request. Unknown fields and long lists are refused, before the entries are checked:
    each wrong entry would be an error of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check(cls, data: object) -> object:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key, value in data.items():
                if key not in known:
                    raise ValueError(UnknownName.among("field", str(key), known).message)
                if isinstance(value, (list, dict)) and len(value) > MAX_ENTRIES:
                    raise ValueError(f"{key} has {len(value):,} entries; send at most {MAX_ENTRIES:,}")
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
    """The training run, which is created with its first checkpoint. For a virtual checkpoint, the default is the run of
    the first checkpoint in the expression."""
    step: Step | None
    """The training step. Steps may come in any order. For a virtual checkpoint, the default is the highest step of the
    first checkpoint's run in the expression."""
    uri: Annotated[str, Field(min_length=1, max_length=4096)]
    """The weights: an absolute path or file:// uri of a complete file; s3://, gs:// or hf:// if the operator allows
    the scheme; `upload:SHA256` for a file or folder that was sent to `/v1/uploads`; or an expression over checkpoints
    of the service, such as `lerp(run@0, run@5000, 0.3)`. The folder of a LoRA adapter is added to its base."""
    variant: Name | None = None
    """The variant of the step's weights, such as `ema_0.9999`. The default is `raw`. A virtual checkpoint in a run with
    trained checkpoints gets a variant from its expression."""
    suites: Annotated[list[Name], Field(max_length=256)] | None = None
    """The suites to evaluate. By default, the suites that are due by the run's plan."""
    model: str | Fields | None = None
    """The model: `transformers`, a registered open_lm name, the path of a JSON file such as `config.json`, or fields.
    By default, the configuration file next to the weights."""
    layout: str | Fields | None = None
    """The vocabulary layout: the path of a file, or the fields. By default, every id is text."""
    tokens_seen: Step | None = None
    """The number of tokens trained on so far, for histories along tokens."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """The SHA-256 of the file, if the trainer knows the digest. Workers check the digest when they load the file."""
    spool: Spool = "none"
    """How the service keeps the weights until their evaluations have ended: `link` makes a hard link immediately, on
    the same file system; `copy` makes a copy in the background. A remote file can only be copied."""
    priority: Priority = 0
    """Evaluations with a higher priority are dispatched first."""
    tags: Annotated[dict[TagName, TagText], Field(max_length=100)] = {}
    """Labels of the checkpoint, which lists of checkpoints show."""
    replace: Annotated[bool, Field(strict=True)] = False
    """Replace another checkpoint at the same step and variant, and delete the values of the replaced checkpoint."""

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
    """The id of the checkpoint."""
    suite: Name
    """The name of the suite."""
    priority: Priority = 0
    """Evaluations with a higher priority are dispatched first."""


class PlannedSuiteInput(PlannedSuite, Input):
    suite: Name
    """The name of the suite."""


class PlanInput(Plan, Input):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"suites": [{"suite": "loss", "every": 500}], "when_behind": "newest"}]}
    )

    suites: Annotated[list[PlannedSuiteInput], Field(max_length=256)]  # type: ignore[assignment]
    """The suites of the run's checkpoints, with the steps at which each suite is due."""

    @model_validator(mode="after")
    def _bounds_what_it_refuses(self) -> PlanInput:
        if self.at_most != 1 and self.when_behind != "refuse":
            raise ValueError(f"at_most needs when_behind: refuse, found {self.when_behind!r}; leave at_most out")
        return self


class RunInput(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "t2i-1b-second"}]})

    name: Name
    """The new name of the run."""


class Keep(Input):
    last: Annotated[int, Field(strict=True, ge=1, le=MAX_STEP)] | None = None
    """Keep artifacts of this many steps: the highest steps with artifacts."""
    every: Annotated[int, Field(strict=True, ge=1, le=MAX_STEP)] | None = None
    """Keep artifacts of steps that are multiples of this number."""
    days: Annotated[float, Field(strict=True, gt=0, le=36_500)] | None = None
    """Keep artifacts of evaluations that ended within this many days."""
    best: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Keep artifacts of the steps at which this metric is best, in each of its series. All artifacts are kept while the
    metric has no values."""

    @model_validator(mode="after")
    def _keeps_something(self) -> Keep:
        if not self.model_dump(exclude_none=True):
            raise ValueError("the rule keeps nothing; give at least one of last, every, days, best")
        return self


class RetentionInput(Input):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"keep": {"last": 10, "every": 1000, "best": "coco/fid"}}]}
    )

    keep: Keep | None
    """The run's rule; null for the service's rule."""


class BaseInput(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"run": "text-1b", "step": 240_000}]})

    run: Name | None = None
    """The run of the base checkpoint. By default, the run in the path."""
    step: Step
    """The training step of the base checkpoint."""
    variant: Name = "raw"
    """The variant of the base checkpoint."""


class SummaryQuery(Input):
    metric: Names = []
    """A metric, `<task>/<metric>`, or a pattern such as `arc_*/acc`; repeat for several metrics; by default, all
    metrics."""
    variant: str | None = None
    """Only values of this variant of the weights."""


class HistoryQuery(SummaryQuery):
    x: Literal["step", "tokens"] = "step"
    """The axis: training steps, or tokens seen."""
    first: From = None
    """The lowest x."""
    last: To = None
    """The highest x, included."""
    points: Annotated[int | None, Field(ge=1, le=10_000)] = None
    """The most buckets of each series. With `points`, the answer has buckets instead of values."""
    limit: Annotated[int | None, Field(ge=1, le=MAX_VALUES)] = None
    """The most values of a page, over all series. By default, all values, which may be 200,000."""
    cursor: str | None = None
    """`next_cursor` of the page before, from a request with the same parameters."""

    @model_validator(mode="after")
    def _has_one_form(self) -> HistoryQuery:
        if self.points is not None and (self.limit is not None or self.cursor is not None):
            raise ValueError("points gives whole series in buckets, without pages; leave limit and cursor out")
        if self.cursor is not None and self.limit is None:
            raise ValueError("cursor is given without limit; give the limit of the page too")
        return self


class HeadlinesQuery(Input):
    run: Annotated[list[str], Field(min_length=1, max_length=MAX_RUNS)]
    """A run; repeat for several runs."""
    metric: Annotated[list[str], Field(max_length=MAX_HEADLINE)] = []
    """A metric in place of the headline of each run; repeat for several. A run that lacks the metric leaves it out."""
    points: Annotated[int | None, Field(ge=1, le=200)] = None
    """The most values of each series along training, with the first and the last one. By default, none."""
    last: To = None
    """The highest step: values of later steps are left out."""
    strip: bool = False
    """Also name the steps whose values are within the noise of the best one, for a table of steps. At most 8 runs."""
    compare: Annotated[float, Field(ge=0, le=MAX_COMPARE_SECONDS, allow_inf_nan=False)] = 0.0
    """Seconds for comparing the newest values with the best ones and with those of the base. Verdicts that the service
    has kept from earlier requests take no time; without more time, they are all."""

    @model_validator(mode="after")
    def _bounds_the_strip(self) -> HeadlinesQuery:
        if self.strip and len(self.run) > MAX_STRIP:
            raise ValueError(f"strip is for at most {MAX_STRIP} runs, found {len(self.run)}; ask for fewer at a time")
        return self


NamedCheckpoint = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"{_plain(CHECKPOINT)}|{_plain(NAMED)}"})]
NamedRun = Annotated[str, WithJsonSchema({"type": "string", "pattern": _plain(RUN)})]


class NamedQuery(Input):
    name: NamedCheckpoint
    """RUN@best, RUN@best:METRIC, RUN@newest or RUN@base, each with or without :VARIANT."""


class ComparedQuery(Input):
    metric: Names = []
    """A metric, or a pattern such as `arc_*/acc`; repeat for several metrics; by default, all metrics."""
    task: Names = []
    """Only metrics of this task; repeat for several tasks."""
    suite: str | None = None
    """Only values of this suite."""
    level: Annotated[float, Field(allow_inf_nan=False)] = LEVEL
    """The probability with which the interval of a difference holds the true difference; of runs, see `band` too."""
    force: bool = False
    """Also compare values of different protocols, without pairing."""
    across: Annotated[list[Across], Field(max_length=2)] = []
    """Differences across which values are compared with pairing: samples of two seeds, or external images and
    sampled ones."""


class CompareQuery(ComparedQuery):
    a: NamedCheckpoint
    """The first checkpoint, RUN@STEP or RUN@STEP:VARIANT."""
    b: NamedCheckpoint
    """The checkpoint that is compared with the first one, RUN@STEP or RUN@STEP:VARIANT."""
    flipped: Annotated[int, Field(ge=0, le=10_000)] = 0
    """The most items to list that only one side gets right, for each side."""
    family: Literal["none", "holm"] = "none"
    """The correction of verdicts for the number of compared metrics: none, or by Holm."""


class CurvesQuery(ComparedQuery):
    a: NamedRun
    """The first run, RUN or RUN:VARIANT."""
    b: NamedRun | None = None
    """The run that is compared with the first run, at the steps of both runs. By default, the first run's base."""
    band: Literal["pointwise", "simultaneous"] = "pointwise"
    """The intervals in the answer: for each step separately, or with `simultaneous` for all steps together, corrected
    by Bonferroni."""


class TableQuery(SummaryQuery):
    run: Names = []
    """A run; repeat for several runs; by default, all runs."""
    format: Literal["json", "csv"] = "json"
    """Columns in JSON, or CSV with a line for each value."""


class ItemsQuery(Input):
    task: str | None = None
    """Only items of this task."""
    benchmark: str | None = None
    """Only items of this benchmark, such as `arc_easy`."""
    columns: Names = []
    """Only this key of the items; repeat for several keys; by default, all keys."""
    format: Literal["json", "csv"] = "json"
    """Objects in JSON, or CSV with a line for each item."""


class PageQuery(Input):
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
    """The most rows on the page."""
    cursor: str | None = None
    """`next_cursor` of the page before, from a request with the same filters. By default, the first page."""

    def page(self) -> PageRequest:
        return PageRequest(self.limit, self.cursor)


class StepsQuery(PageQuery):
    run: str | None = None
    """Only this run's checkpoints."""
    state: State | None = None
    """Only evaluations in this state, or checkpoints that have one."""
    first: From = None
    """The lowest step of the checkpoints."""
    last: To = None
    """The highest step of the checkpoints."""


class CheckpointsQuery(StepsQuery):
    variant: str | None = None
    """Only checkpoints of this variant of the weights."""

    def filters(self) -> Filters:
        return Filters(self.run, self.variant, None, self.state, self.first, self.last)


class EvaluationsQuery(StepsQuery):
    suite: str | None = None
    """Only evaluations by this suite."""

    def filters(self) -> Filters:
        return Filters(self.run, None, self.suite, self.state, self.first, self.last)


class ArtifactsQuery(PageQuery):
    kind: str | None = None
    """Only artifacts of this kind, such as `grid`."""


class RunArtifactsQuery(ArtifactsQuery):
    step: Annotated[int | None, Field(ge=0, le=MAX_STEP)] = None
    """Only artifacts of the checkpoints at this step."""


class ProtocolsQuery(PageQuery):
    id: Name | None = None
    """Only the protocol with this id."""
    run: str | None = None
    """Only protocols by which this run has values."""
    metric: Annotated[list[str], Field(default_factory=list, max_length=MAX_ENTRIES)]
    """Only protocols of a metric, or of a pattern such as `arc_*/acc`; repeat for several metrics."""
