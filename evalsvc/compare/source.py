"""Where a result comes from: the file that `evalsvc run --output` wrote, or RUN@STEP[:VARIANT] of the service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from evalsvc.client import OVER, Client
from evalsvc.compare.result import Result
from evalsvc.errors import DeadlineExceeded, InvalidData, UnknownName, os_reason
from evalsvc.spec.names import CHECKPOINT, parse_checkpoint
from evalsvc.spec.protocol import Direction


@dataclass(frozen=True)
class Service:
    """Where RUN@STEP is looked up."""

    client: Client
    suite: str | None = None
    """Only this suite's values."""
    timeout: float = 3600.0
    """Seconds to wait for evaluations that are not over, of both sides together."""
    report: Callable[[dict[str, Any]], None] | None = None
    """Gets an evaluation that is waited for, each time it is looked at."""
    every: float = 5.0
    """Seconds between two looks."""


def read_result(name: str, service: Service, deadline: float | None = None) -> Result:
    """A result by its file, or by RUN@STEP[:VARIANT] from the service.

    Evaluations that are not over are waited for until `deadline`, by `time.monotonic`; without one they are not.

    Raises:
        UnknownName: there is no such file, run, step or suite.
        InvalidData: the file is not a result.
        DeadlineExceeded: evaluations were not over in time.
    """
    if CHECKPOINT.fullmatch(name) is None:
        return Result(name, _read_file(Path(name)))
    run, step, variant = parse_checkpoint(name)
    while True:
        document = service.client.results(run, step, variant=variant, suite=service.suite)
        pending = [evaluation["id"] for evaluation in document["evaluations"] if evaluation["state"] not in OVER]
        if deadline is None or not pending:
            return Result(name, document)
        for evaluation in pending:
            left = max(0.0, deadline - time.monotonic())
            try:
                service.client.wait(evaluation, every=service.every, timeout=left, report=service.report)
            except DeadlineExceeded as error:
                raise DeadlineExceeded(f"{name}: {error.message}; try again, or raise --timeout") from None


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UnknownName(
            f"there is no file {path}; write one by `evalsvc run SUITE --output {path}`, or name a checkpoint of the "
            "service, RUN@STEP"
        ) from None
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {os_reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path} is not JSON: {' '.join(str(error).split())}") from None
    try:
        _Document.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidData(
            f"{path} is no result of `evalsvc run --output`: {place}: {message[:1].lower()}{message[1:]}, found "
            f"{repr(first['input'])[:80]}; write the file anew by `evalsvc run SUITE --output {path}`"
        ) from None
    found: Mapping[str, Any] = document
    return found


def _check_number(value: float | str) -> float | str:
    float(value)
    return value


_Number = Annotated[float | str, AfterValidator(_check_number)]
"""A number, or the word for one that JSON cannot write."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Metric(_Strict):
    """A metric in the file of a result, as far as comparisons read it."""

    name: str
    value: _Number
    stderr: _Number | None
    n: int = Field(ge=0)
    unit: str
    direction: Direction
    protocol: str
    items: list[str] = Field(default=[], max_length=2)
    task: str | None = None


class _Row(_Strict):
    """What a result per item is matched by."""

    index: int | str | None = None
    benchmark: str | None = None


class _Error(_Strict):
    """Why a task has no values."""

    message: str


class _Document(_Strict):
    """The file of a result, as far as comparisons read it."""

    metrics: list[_Metric]
    protocols: dict[str, dict[str, Any]] | None = None
    items: dict[str, list[_Row]] | None = None
    errors: dict[str, _Error] | None = None
