"""What a cell of the simulation is: one number or one test, on one kind of data, at one size, and what it must hold."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

import numpy as np

COVERAGE = 0.92, 0.98
"""Bounds of the coverage of an interval of level 0.95."""

ALARMS = 1.5
"""False alarms may be so many times the nominal rate."""

BIAS = 0.5
"""The bias may be so many standard errors."""

SIMULATED = 3.0
"""Monte-Carlo errors by which a simulated rate may be outside its bounds: of some hundred cells none is by chance."""

CHUNK = 250
"""Repetitions that are computed together: what two processes share."""

QUICK = 0.1
"""The share of the repetitions that `--quick` makes."""

FEWEST = 100
"""Repetitions of a cell at least, whatever the share."""


class Draw(NamedTuple):
    """What the product says of one simulated data set."""

    value: float | None = None
    """The estimate."""
    stderr: float | None = None
    low: float | None = None
    """The lower end of the interval; None: the product gives no interval."""
    high: float | None = None
    truth: float | None = None
    """What the interval must hold; None: the mean of `value` over all repetitions."""
    alarm: bool | None = None
    """Whether a test finds a difference that does not exist; None: the product gives no verdict."""
    verdict: str = ""
    """Of a cell that counts verdicts."""


Generator = np.random.Generator
Simulation = Callable[[Generator], Draw]


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    family: str
    """What is estimated or tested, and by which function of the product."""
    data: str
    n: str
    draw: Simulation
    reps: int = 4_000
    nominal: float | None = None
    """The nominal rate of false alarms; None: there is no test."""
    claims: bool = True
    """Whether the product may say anything at this size; else it must give neither an interval nor a verdict."""
    before: str = ""
    """The same figure before the estimators were mended; of the audit, not simulated here."""
    accepted: str = ""
    """Why the cell may be outside its bounds; it is printed, and does not fail."""
    quick: bool = True
    """Whether `--quick` has the cell."""

    @property
    def name(self) -> str:
        return f"{self.family} | {self.data} | {self.n}"

    def simulate(self, chunk: int, reps: int) -> list[Draw]:
        """Repetitions of one chunk; they depend on the cell's name and the chunk alone."""
        random = np.random.default_rng([crc32(self.name.encode()), chunk])
        return [self.draw(random) for _ in range(reps)]


class Rate(NamedTuple):
    """A share with its Monte-Carlo error."""

    value: float
    error: float

    @classmethod
    def of(cls, hits: Sequence[bool]) -> Rate:
        n, k = len(hits), sum(hits)
        smoothed = (k + 1) / (n + 2)
        return cls(k / n, math.sqrt(smoothed * (1 - smoothed) / n))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __str__(self) -> str:
        digits = 3 if self.error >= 0.0005 else 5
        return f"{self.value:.{digits}f}±{self.error:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """What was simulated of a cell."""

    cell: Cell
    draws: Sequence[Draw]
    seconds: float

    @cached_property
    def claims(self) -> float:
        """The share of repetitions with an interval or a verdict."""
        return sum(draw.low is not None or draw.alarm is not None for draw in self.draws) / len(self.draws)

    @cached_property
    def truth(self) -> float | None:
        """The mean estimate, where no draw names the truth."""
        values = [draw.value for draw in self.draws if draw.value is not None]
        return statistics.fmean(values) if values else None

    @cached_property
    def coverage(self) -> Rate | None:
        found = [
            draw.low <= truth <= draw.high
            for draw in self.draws
            if draw.low is not None
            and draw.high is not None
            and (truth := self.truth if draw.truth is None else draw.truth) is not None
        ]
        return Rate.of(found) if found else None

    @cached_property
    def alarms(self) -> Rate | None:
        found = [draw.alarm for draw in self.draws if draw.alarm is not None]
        return Rate.of(found) if found else None

    @cached_property
    def bias(self) -> Rate | None:
        """The mean error of the estimate, in its mean standard error."""
        pairs = [
            (draw.value - draw.truth, draw.stderr)
            for draw in self.draws
            if draw.value is not None and draw.truth is not None and draw.stderr is not None
        ]
        if len(pairs) < 2 or not (scale := statistics.fmean(stderr for _, stderr in pairs)):
            return None
        errors = [error for error, _ in pairs]
        return Rate(statistics.fmean(errors) / scale, statistics.stdev(errors) / math.sqrt(len(errors)) / scale)

    @cached_property
    def spread(self) -> float | None:
        """The mean standard error over the standard deviation of the estimate's error."""
        found = [
            (draw.value - (draw.truth or 0.0), draw.stderr)
            for draw in self.draws
            if draw.value is not None and draw.stderr is not None
        ]
        if len(found) < 2 or not (deviation := statistics.stdev(error for error, _ in found)):
            return None
        return statistics.fmean(stderr for _, stderr in found) / deviation

    @cached_property
    def verdicts(self) -> dict[str, float]:
        counts = Counter(draw.verdict for draw in self.draws if draw.verdict)
        return {verdict: count / len(self.draws) for verdict, count in counts.most_common()}

    @property
    def problems(self) -> list[str]:
        """In which ways the cell is outside its bounds."""
        if not self.cell.claims:
            return [f"{self.claims:.3f} of the data sets are judged"] if self.claims else []
        if not self.claims:
            return [] if self.verdicts and self.cell.nominal is None else ["no data set is judged"]
        return [*self._coverage_problems(), *self._alarm_problems(), *self._bias_problems()]

    def _coverage_problems(self) -> list[str]:
        low, high = COVERAGE
        if self.coverage is None:
            return []
        allowed = SIMULATED * self.coverage.error
        if self.coverage.value < low - allowed:
            return [f"coverage {self.coverage} is below {low}"]
        if self.coverage.value > high + allowed:
            return [f"coverage {self.coverage} is above {high}"]
        return []

    def _alarm_problems(self) -> list[str]:
        if self.alarms is None or self.cell.nominal is None:
            return []
        most = ALARMS * self.cell.nominal
        allowed = SIMULATED * math.sqrt(most * (1 - most) / len(self.draws))
        found = self.alarms.value > most + allowed
        return [f"false alarms {self.alarms} are above {ALARMS} × {self.cell.nominal}"] if found else []

    def _bias_problems(self) -> list[str]:
        if self.bias is None or abs(self.bias.value) <= BIAS + SIMULATED * self.bias.error:
            return []
        return [f"bias {self.bias} is above {BIAS} standard errors"]
