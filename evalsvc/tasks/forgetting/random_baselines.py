"""What a model that knows nothing gets right of a benchmark: the r of centred accuracies (accuracy − r) / (1 − r).

It is more than a uniform choice where one answer is more frequent than others: whoever always says yes has .62 of
BoolQ. The table has a version, which is part of the protocol of what is measured by it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).parents[2] / "text_tasks" / "random_baselines.json"

SAME = 0.02
"""How far the mean of right options / options may be from the table's: beyond it, another benchmark has the name."""


@dataclass(frozen=True)
class Baseline:
    value: float
    table: int | None
    """The version of the table that it is from; None: it is the mean of right options / options."""


def random_baseline(benchmark: str, options: float) -> Baseline:
    """`options` is the mean of right options / options of the questions that were asked; 0 where there are none."""
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
