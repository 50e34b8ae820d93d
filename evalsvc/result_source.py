"""Where a result comes from: the file that `evalsvc run --output` wrote, or RUN@STEP[:VARIANT] of the service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalsvc.client import OVER, Client
from evalsvc.errors import DeadlineExceeded, InvalidData, UnknownName
from evalsvc.result import CHECKPOINT, Metric, Result, number


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
    checkpoint = CHECKPOINT.fullmatch(name)
    if checkpoint is None:
        return Result(name, _read_file(Path(name)))
    run, step, variant = checkpoint["run"], int(checkpoint["step"]), checkpoint["variant"] or "raw"
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
        raise InvalidData(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path} is not JSON: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not _has_metrics(document.get("metrics")):
        raise InvalidData(f"{path} is no result of `evalsvc run --output`: its `metrics` are missing or no metrics")
    protocols = document.get("protocols") or {}
    if not isinstance(protocols, dict) or not all(isinstance(content, dict) for content in protocols.values()):
        raise InvalidData(f"{path} is no result of `evalsvc run --output`: its `protocols` are not objects by id")
    return document


def _has_metrics(metrics: Any) -> bool:
    return isinstance(metrics, list) and all(isinstance(metric, dict) and _is_metric(metric) for metric in metrics)


def _is_metric(metric: Metric) -> bool:
    if not metric.keys() >= {"name", "value", "stderr", "n", "unit", "direction", "protocol"}:
        return False
    try:
        return bool([number(metric["value"]), number(metric["stderr"] or 0)])
    except (TypeError, ValueError):
        return False
