"""Chance accuracies of benchmarks: the r of centred accuracies (accuracy − r) / (1 − r).

Chance is above a uniform choice if one answer is more frequent than the others: always answering yes gets .62 of BoolQ.
The table has a version, which is part of the protocol of metrics that use the table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).parents[2] / "text_tasks" / "random_baselines.json"

SAME = 0.02
"""Maximum distance between the mean of right options / options and the table's; beyond it, the name belongs to another
benchmark."""


@dataclass(frozen=True)
class Baseline:
    value: float
    table: int | None
    """Version of the table that the value is from; None if it is the mean of right options / options."""


def random_baseline(benchmark: str, options: float) -> Baseline:
    """Return the chance accuracy of a benchmark. `options` is the mean of right options / options of the questions; 0
    if there are none."""
    version, rows = _table()
    row = rows.get(benchmark)
    if row is None or abs(row["options"] - options) > SAME:
        return Baseline(options, None)
    return Baseline(row["baseline"], version)


@cache
def _table() -> tuple[int, dict[str, dict[str, float]]]:
    """Return the version of the table and the rows by benchmark, with their `baseline` and `options`."""
    content = json.loads(TABLE.read_text())
    return content["version"], content["rows"]
