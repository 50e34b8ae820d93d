"""Values of small evaluations with their errors and protocols, as `tests/golden/values/values.jsonl` has them.

A line has the kind of the task, the place of the evaluation among those of the kind, and one value.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalsvc.metrics.definitions import KINDS, Kind
from evalsvc.metrics.value_interval import with_intervals
from evalsvc.tasks.task import TaskResult

FILE = Path(__file__).parents[1] / "golden" / "values" / "values.jsonl"
COMMAND = "python tests/golden/values/make.py"
HOW = f"record the values again: {COMMAND}"

KEY = ("kind", "evaluation", "metric")
NUMBERS = ("value", "stderr", "low", "high")
"""Fields that may differ by rounding."""

ROUNDING = 0.01
"""Largest distance of a number from the recorded one, in standard errors; of an error, as a share of the error."""
OF_DRAWS = 0.1
"""The same of tasks that draw: on another processor, rounding turns a near tie between two codes."""
DRAWING = ("text_to_image", "completions")
RELATIVE = 1e-5
"""Largest distance as a share of the number, where this is more, or where there is no error."""
ABSOLUTE = 1e-9

Line = dict[str, Any]


def lines_of(kind: Kind, results: Sequence[TaskResult]) -> list[Line]:
    lines = []
    for place, result in enumerate(results):
        for metric in with_intervals(result.metrics, kind, result.items):
            numbers = dict(zip(NUMBERS, (metric.value, metric.stderr, *(metric.ends or (None, None))), strict=True))
            known = {"kind": kind, "evaluation": place, "metric": metric.name, "protocol": metric.protocol.id}
            lines.append({**known, **numbers, "n": metric.n, "groups": metric.groups})
    return lines


def recorded(kind: Kind | None = None) -> list[Line]:
    lines = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    return [line for line in lines if kind in (None, line["kind"])]


def record(lines: Sequence[Line]) -> None:
    ordered = sorted(lines, key=lambda line: KINDS.index(line["kind"]))
    FILE.write_text("".join(json.dumps(line) + "\n" for line in ordered))


def differences(before: Sequence[Line], now: Sequence[Line]) -> list[str]:
    """Return what differs from the record: moved values, other protocols, and metrics that only one side has."""
    known, found = ({_key(line): line for line in lines} for lines in (before, now))
    problems = list(moved(before, now))
    for key in known.keys() | found.keys():
        if key not in found:
            problems.append(f"{_named(key)} is recorded and was not returned")
        elif key not in known:
            problems.append(f"{_named(key)} is not recorded")
        elif found[key]["protocol"] != known[key]["protocol"]:
            problems.append(f"{_named(key)} has the protocol {found[key]['protocol']}, not {known[key]['protocol']}")
    return sorted(problems)


def moved(before: Sequence[Line], now: Sequence[Line]) -> Iterator[str]:
    """Yield the numbers that differ by more than rounding although the protocol is the recorded one."""
    known = {_key(line): line for line in before}
    for line in now:
        old = known.get(_key(line))
        if old is None or old["protocol"] != line["protocol"]:
            continue
        for name in (*NUMBERS, "n", "groups"):
            if name in old and not _is_equal(name, old, line):
                yield (
                    f"{_named(_key(line))}: {name} was {old[name]} and is {line.get(name)} under the same protocol, "
                    f"{old['protocol']}; raise the version of the estimator in the protocol (`ESTIMATOR` of the task, "
                    "or `version` of the metric)"
                )


def _is_equal(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    before, now = old[name], new.get(name)
    if name not in NUMBERS or before is None or now is None:
        return bool(before == now)
    if not math.isfinite(before):
        return str(before) == str(now)
    error = abs(before) if name == "stderr" else old["stderr"] or 0.0
    rounding = OF_DRAWS if old["kind"] in DRAWING else ROUNDING
    return abs(now - before) <= max(rounding * error, RELATIVE * abs(before), ABSOLUTE)


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in KEY)


def _named(key: tuple[Any, ...]) -> str:
    kind, evaluation, metric = key
    return f"{metric} ({kind}, evaluation {evaluation + 1})"
