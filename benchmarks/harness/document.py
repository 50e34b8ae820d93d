"""The document of the harness: a result that `evalsvc gate` reads, with the times behind it and the machine card.

`document.schema.json` is its JSON schema, written by `python benchmarks/bench.py --schema`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from evalsvc.files.atomic import write_whole
from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.fields import Digest, Text
from evalsvc.spec.documents.results import ResultDocument, TaskMetric

SCHEMA = Path(__file__).with_name("document.schema.json")

FORMAT = "evalsvc-bench/1"
"""Version of the document. Fields may be added within a version."""

LEVELS = 3
"""Levels of a written document whose members have a line each: the fields, tasks in a field, rows of a task."""


class Machine(Document):
    """What the numbers were measured on."""

    processor: Annotated[str, Field(examples=["AMD EPYC 9R14"])]
    cores: Annotated[int, Field(ge=1, examples=[2])]
    threads: Annotated[int, Field(ge=1, examples=[1])]
    """CPU threads of each process that evaluates."""
    memory_gib: Annotated[float, Field(examples=[15.6])]
    system: Annotated[str, Field(examples=["Linux-6.1"])]
    python: Annotated[str, Field(examples=["3.12.3"])]
    packages: Annotated[dict[str, str], Field(examples=[{"torch": "2.13.0"}])]
    """Versions of packages that move times or values."""
    load: Annotated[float, Field(examples=[0.4])]
    """Mean number of running processes in the minute before the measurement."""


class Code(Document):
    """Commit of the measured code."""

    commit: Annotated[str, Field(examples=["5f0c…"])]
    """Full id; empty outside of a repository."""
    changed: bool
    """Whether files of the checkout differ from the commit."""


class Times(Document):
    """Seconds of each turn: the median of the calls in the turn."""

    cpu: Annotated[list[float], Field(examples=[[0.41, 0.4]])]
    """Processor time of the process, of all of its threads."""
    wall: Annotated[list[float], Field(examples=[[0.42, 0.41]])]


class Ratio(Document):
    """Time of the candidate over the time of the baseline's code, over turns; above 1 is slower."""

    median: Annotated[float, Field(examples=[1.01])]
    """Median of the ratios of the turns."""
    mean: Annotated[float, Field(examples=[1.008])]
    """Geometric mean of the ratios of the turns."""
    low: Annotated[float | None, Field(examples=[0.99])]
    """Lower end of the interval of the geometric mean over the turns within this run, by Student's t over the
    logarithms, guarded against skew. What differs between runs of equal code is not in it."""
    high: Annotated[float | None, Field(examples=[1.03])]
    level: Annotated[float, Field(examples=[0.95])]
    turns: Annotated[int, Field(ge=1, examples=[12])]


class TimedTask(Document):
    """A task whose evaluation was timed, on both sides in turns."""

    name: Annotated[str, Field(examples=["speed-loss"])]
    task: Annotated[dict[str, object], Field(examples=[{"kind": "loss"}])]
    candidate: Times
    baseline: Times | None
    """Times of the baseline's code in the same run; null if that code cannot run the task, or there is none."""
    problem: Annotated[str, Field(examples=[""])]
    """Why there is no baseline; empty if there is one."""
    cpu: Ratio | None
    """Ratio of processor times; null without a baseline."""
    wall: Ratio | None


class Seeds(Document):
    """A metric under several seeds."""

    values: Annotated[dict[str, float], Field(examples=[{"0": 0.91, "1": 0.93, "2": 0.92}])]
    """Value by seed."""
    median: Annotated[float, Field(examples=[0.92])]
    deviation: Annotated[float, Field(examples=[0.01])]
    """Standard deviation between the seeds, which is of the draws alone: the images and prompts are the same."""


class BenchSuite(Document):
    """The suite of the harness."""

    name: Annotated[str, Field(examples=["quick"])]
    digest: Digest
    headline: Annotated[list[str], Field(examples=[["pairs/image"]])]


class BenchDocument(ResultDocument):
    """What the harness measured. `evalsvc gate` reads the fields of a result, which are those of `evalsvc run`."""

    format: Annotated[str, Field(examples=[FORMAT])]
    run: Annotated[str, Field(examples=["3f9c0a12"])]
    """Random id, which is part of the protocol of times: times of two runs are never compared."""
    time: Annotated[str, Field(examples=["2026-11-28T04:31:00Z"])]
    seconds: Annotated[float, Field(examples=[96.2])]
    """Duration of the whole measurement."""
    suite: BenchSuite
    machine: Machine
    code: Code
    baseline_code: Text
    """Commit or folder of the code whose times are the baseline; empty if there is none."""
    timed: Annotated[list[TimedTask], Field(examples=[[]])]
    seeds: Annotated[dict[str, Seeds], Field(examples=[{}])]
    """Metrics of tasks that draw, under several seeds."""
    drill: Annotated[str, Field(examples=[""])]
    """What was made worse on purpose; empty in a measurement that counts."""


def schema() -> dict[str, Any]:
    """Return the JSON schema of the document."""
    return BenchDocument.model_json_schema(mode="serialization")


def between_seeds(result: ResultDocument, seeded: Mapping[str, Mapping[int, str]]) -> dict[str, Seeds]:
    """Return the metrics that several seeds have, by the name under the first; see `Bench.seeded`."""
    values = {metric.name: float(metric.value) for metric in result.metrics}
    spreads = {}
    for task, names in seeded.items():
        for name in (name for name in values if name.startswith(f"{task}/")):
            by_seed = {str(seed): values.get(other + name[len(task) :]) for seed, other in names.items()}
            known = {seed: value for seed, value in by_seed.items() if value is not None}
            if len(known) > 1:
                numbers = list(known.values())
                spreads[name] = Seeds(
                    values=known, median=statistics.median(numbers), deviation=statistics.stdev(numbers)
                )
    return spreads


def trimmed(result: ResultDocument) -> ResultDocument:
    """Return the metrics of a result with their protocols, and the results per item that metrics are made of."""
    keys: dict[str, set[str]] = {}
    for metric in result.metrics:
        named = (*metric.items, metric.grouped_by) if metric.items else ()
        keys.setdefault(metric.task or "", {"benchmark", "index"}).update(name for name in named if name)
    items = {
        task: [{key: value for key, value in row.items() if key in keys.get(task, ())} for row in rows]
        for task, rows in result.items.items()
        if _has_items(result.metrics, task)
    }
    return ResultDocument(metrics=result.metrics, protocols=result.protocols, items=items, errors=result.errors)


def joined(quality: ResultDocument, times: ResultDocument) -> ResultDocument:
    """Return a result with the values of both; their tasks differ."""
    return quality.model_copy(
        update={
            "metrics": [*quality.metrics, *times.metrics],
            "protocols": {**quality.protocols, **times.protocols},
            "items": {**quality.items, **times.items},
        }
    )


def write(path: Path, document: Document) -> None:
    """Write a document as JSON, whole or not at all.

    Raises:
        OSError: no space, no permission.
    """
    write_whole(path, (_lines(document.model_dump(), LEVELS) + "\n").encode(), mode=0o644)


def _lines(value: object, levels: int) -> str:
    """Return JSON with a line for each member of the outer levels: a changed value is then one line of a review."""
    if levels and isinstance(value, dict):
        members = [f"{json.dumps(key)}:{_lines(value[key], levels - 1)}" for key in sorted(value)]
        return "{" + ",\n".join(members) + "}"
    if levels and isinstance(value, list):
        return "[" + ",\n".join(_lines(member, levels - 1) for member in value) + "]"
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _has_items(metrics: list[TaskMetric], task: str) -> bool:
    return any(metric.items and metric.task == task for metric in metrics)


EMPTY = ResultDocument(metrics=[])
"""A result without values."""
