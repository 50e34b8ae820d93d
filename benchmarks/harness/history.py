"""The history: what the harness measured, by commit, in a file of JSON lines that CI keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from evalsvc.errors import InvalidData, os_reason
from evalsvc.files.atomic import write_whole
from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.fields import Count, Direction, Number
from harness.document import BenchDocument, Ratio

MOST = 2000
"""Largest number of entries that the file keeps; the oldest go first."""

MAX_BYTES = 64 << 20
"""Largest size of the file in bytes."""


class Value(Document):
    """A value of quality at a commit."""

    value: Annotated[Number, Field(examples=[1.76])]
    stderr: Annotated[Number | None, Field(examples=[0.01])]
    low: Annotated[float | None, Field(examples=[1.74])] = None
    """Lower end of the interval of 95 %; null if the value has no interval."""
    high: Annotated[float | None, Field(examples=[1.78])] = None
    n: Count
    unit: Annotated[str, Field(examples=["nats/token"])]
    direction: Direction
    protocol: Annotated[str, Field(examples=["9a3f0c1d2e4b5a69"])]


class Entry(Document):
    """A measurement of a commit by a suite."""

    commit: Annotated[str, Field(examples=["5f0c…"])]
    time: Annotated[str, Field(examples=["2026-11-28T04:31:00Z"])]
    suite: Annotated[str, Field(examples=["quick"])]
    baseline_code: Annotated[str, Field(examples=["f293…"])]
    """Commit whose code the ratios are against."""
    processor: Annotated[str, Field(examples=["AMD EPYC 9R14"])]
    ratios: Annotated[dict[str, Ratio], Field(examples=[{}])]
    """Ratio of processor times, by timed task."""
    values: Annotated[dict[str, Value], Field(examples=[{}])]
    """Values of quality, by metric."""


def entry_of(document: BenchDocument) -> Entry:
    """Return the entry of a measurement, without its items and turns."""
    times = {timed.name for timed in document.timed}
    values = {
        metric.name: Value(
            value=metric.value,
            stderr=metric.stderr,
            low=metric.low,
            high=metric.high,
            n=metric.n,
            unit=metric.unit,
            direction=metric.direction,
            protocol=metric.protocol,
        )
        for metric in document.metrics
        if metric.task not in times
    }
    return Entry(
        commit=document.code.commit,
        time=document.time,
        suite=document.suite.name,
        baseline_code=document.baseline_code,
        processor=document.machine.processor,
        ratios={timed.name: timed.cpu for timed in document.timed if timed.cpu is not None},
        values=values,
    )


def read_history(path: Path) -> list[Entry]:
    """Return the entries of a history, oldest first; none if the file does not exist yet.

    Raises:
        InvalidData: the file cannot be read, or a line is no entry; the message has the line's number.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidData(f"--history {path} cannot be read: {os_reason(error)}; name another file") from None
    if len(content) > MAX_BYTES:
        raise InvalidData(f"--history {path} has more than {MAX_BYTES:,} bytes; name another file")
    return [_read_line(path, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]


def append(path: Path, entry: Entry) -> list[Entry]:
    """Add an entry to the file, in place of an earlier one of the same commit and suite, and return all entries.

    Raises:
        InvalidData: the file is no history; the file is then unchanged.
        OSError: the file cannot be written.
    """
    kept = [old for old in read_history(path) if (old.commit, old.suite) != (entry.commit, entry.suite)]
    entries = [*kept, entry][-MOST:]
    lines = [json.dumps(each.model_dump(), sort_keys=True, separators=(",", ":")) + "\n" for each in entries]
    write_whole(path, "".join(lines).encode(), mode=0o644)
    return entries


def of_suite(entries: Sequence[Entry], suite: str) -> list[Entry]:
    """Return the entries of a suite, with the ratios of those only that are against the code of the newest."""
    chosen = [entry for entry in entries if entry.suite == suite]
    against = chosen[-1].baseline_code if chosen else ""
    return [entry if entry.baseline_code == against else entry.model_copy(update={"ratios": {}}) for entry in chosen]


def _read_line(path: Path, number: int, line: bytes) -> Entry:
    try:
        return Entry.model_validate(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise InvalidData(
            f"--history {path}, line {number} is no entry: {str(error)[:200]}; remove the line, or name another file"
        ) from None
