"""Metrics and steps that `evalsvc history` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from evalsvc.cli.options import Format
from evalsvc.client import Client
from evalsvc.metrics.definitions import main_metric
from evalsvc.spec.documents import Headline, History
from evalsvc.spec.documents.history import Axis, LeftOutMetric, ValueSeries


@dataclass(frozen=True)
class Steps:
    """Part of the axis that is shown."""

    first: int | None = None
    until: int | None = None
    last: int | None = None
    """Number of highest steps to show; None for all steps."""

    def cut(self, history: History) -> History:
        """Return a history with only the `last` highest steps of all its series together."""
        if self.last is None:
            return history
        places = sorted({at for series in history.series for at in series.x})[-self.last :]
        cut = [_after(series, places[0]) for series in history.series] if places else []
        gaps = [gap for gap in history.gaps if history.x != "step" or not places or gap.step >= places[0]]
        return replace(history, series=[series for series in cut if series.x], gaps=gaps)


@dataclass(frozen=True)
class Choice:
    """Metrics that a command shows."""

    names: Sequence[str] = ()
    """Names and patterns of the metrics that have rows or columns; empty: all metrics."""
    companions: Sequence[str] = ()
    """Perplexities and other companions, which are shown next to these metrics."""
    hidden: int = 0
    """Number of metrics of the runs that are not shown."""


@dataclass(frozen=True)
class Asked:
    """Arguments and options of `evalsvc history`."""

    runs: Sequence[str]
    metrics: Sequence[str]
    """Names and patterns of metrics; empty for the headline in a table, and for every metric in CSV and JSON."""
    everything: bool
    against: str | None
    variant: str | None
    x: Axis
    steps: Steps
    format: Format

    def choose(self, headlines: Sequence[Headline]) -> Choice:
        """Choose the metrics that were named, or else those of the headlines, or else every metric."""
        firsts = dict.fromkeys(name for headline in headlines for name in headline.metrics)
        if not self.metrics and (self.everything or not firsts):
            return Choice()
        known = dict.fromkeys(metric.name for headline in headlines for metric in headline.names)
        wanted = self._with_axis(self.metrics or list(firsts))
        shown = [name for name in known if any(name == pattern or fnmatchcase(name, pattern) for pattern in wanted)]
        companions = [name for name in known if name not in shown and main_metric(name, known) in shown]
        hidden = 0 if self.metrics else len(known) - len(shown) - len(companions)
        return Choice(wanted, companions, hidden)

    def read(self, client: Client, choice: Choice, headlines: Sequence[Headline]) -> list[History]:
        """Read the histories of the runs. For each run, a headline is reduced to the metrics of the run."""
        with_companions = len(self.runs) == 1 and self.against is None
        names = [*choice.names, *(choice.companions if with_companions else ())]
        has = {headline.run: {metric.name for metric in headline.names} for headline in headlines}
        histories = []
        for run in self.runs:
            names_of_run = names if self.metrics or run not in has else [name for name in names if name in has[run]]
            # Without any name, the service would return every metric.
            is_empty = bool(names) and not names_of_run
            histories.append(_empty(run, self.x) if is_empty else self._read(client, run, names_of_run))
        return histories

    def _read(self, client: Client, run: str, names: Sequence[str]) -> History:
        first, last = self.steps.first, self.steps.until
        history = client.history(run, names, variant=self.variant, x=self.x, first=first, last=last)
        return self.steps.cut(_in_order(history, [] if self.metrics else names))

    def without_value(self, headlines: Sequence[Headline]) -> list[LeftOutMetric]:
        """Return the metrics that the user asked for and that could not be measured."""
        return [
            lack
            for headline in headlines
            for lack in headline.left_out
            if self.variant in (None, lack.variant)
            and (not self.metrics or any(fnmatchcase(lack.metric, name) for name in self.metrics))
        ]

    def _with_axis(self, metrics: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*metrics, *([] if self.against is None else [self.against])]))


def _in_order(history: History, names: Sequence[str]) -> History:
    """Return a history with the series in the order of the names; without names, in the order of the service."""
    places = {name: place for place, name in enumerate(names)}
    return replace(history, series=sorted(history.series, key=lambda series: places.get(series.metric, 0)))


def _empty(run: str, x: Axis) -> History:
    return History(run=run, x=x, series=[], names=[], imports={}, next_cursor=None)


def _after(series: ValueSeries, first: int) -> ValueSeries:
    """Return a series without the steps before `first`."""
    start = next((place for place, at in enumerate(series.x) if at >= first), len(series.x))
    columns = {
        name: value[start:]
        for name in ("x", "value", "stderr", "low", "high", "n", "groups", "import_")
        if (value := getattr(series, name)) is not None
    }
    return replace(series, **columns)
