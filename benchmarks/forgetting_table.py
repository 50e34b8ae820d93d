"""The table of `real_forgetting.py`: metrics of a run by step with 95 % intervals, and the completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalsvc.client import Client
from evalsvc.metrics.intervals import LEVEL, Interval
from evalsvc.spec.documents.history import ValueSeries

OF_BENCHMARK = {"acc": "right answers", "acc_within": "right answers, text ids only"}
TITLES = {
    "forgetting/text_retained": "accuracy above chance that is left",
    "forgetting/text_retained_within": "the same, text ids only",
    "forgetting/kl": "KL(step 0 ‖ step) on English",
    "forgetting/kl_within": "the same, text ids only",
    "forgetting/image_mass": "probability of image ids within English",
    "forgetting/loss": "loss of English",
    "forgetting/loss_within": "the same, text ids only",
    "pairs/text": "loss of captions",
    "pairs/image": "loss of image codes",
    "completions/image_share": "image ids in completions",
}
"""Rows after those of the benchmarks, and what they show."""
CHARTS = ("arc_easy/acc", "cloze/acc", "forgetting/text_retained", "forgetting/kl", "pairs/image")


@dataclass(frozen=True)
class Value:
    """A metric's value at a step."""

    value: float
    stderr: float | None
    n: int | None
    interval: Interval | None

    def __str__(self) -> str:
        if self.interval is None or self.interval.low == self.interval.high:
            return _short(self.value)
        return f"{_short(self.value)} ({_short(self.interval.low)}–{_short(self.interval.high)})"

    def to_json(self) -> dict[str, Any]:
        bounds = None if self.interval is None else [self.interval.low, self.interval.high]
        return {"value": self.value, "stderr": self.stderr, "n": self.n, "interval": bounds}


@dataclass(frozen=True)
class Table:
    """All values by metric and step, and the greedy completions by prompt and step."""

    steps: Sequence[int]
    values: Mapping[str, Mapping[int, Value]]
    units: Mapping[str, str]
    chance: Mapping[str, float]
    """Value of a model that knows nothing, by metric, for the metrics that have such a value."""
    completions: Mapping[str, Mapping[int, str]]

    def has(self, metric: str) -> bool:
        return metric in self.values

    def to_json(self) -> dict[str, Any]:
        values = {
            metric: {str(step): value.to_json() for step, value in by_step.items()}
            for metric, by_step in self.values.items()
        }
        completions = {
            prompt: {str(step): text for step, text in by_step.items()} for prompt, by_step in self.completions.items()
        }
        about = {"level": LEVEL, "units": dict(self.units), "chance": dict(self.chance)}
        return {**about, "values": values, "completions": completions}

    def markdown(self) -> str:
        return "\n".join([*self._numbers(), "", *self._texts()]) + "\n"

    def _numbers(self) -> Iterator[str]:
        yield "| metric | " + " | ".join(f"step {step}" for step in self.steps) + " |"
        yield "|---" * (1 + len(self.steps)) + "|"
        for metric, values in self.values.items():
            cells = [str(values[step]) if step in values else "–" for step in self.steps]
            yield f"| {self._title(metric)} | " + " | ".join(cells) + " |"

    def _title(self, metric: str) -> str:
        first, _, second = metric.partition("/")
        title = TITLES.get(metric) or f"{first}, {OF_BENCHMARK[second]}"
        sizes = {value.n for value in self.values[metric].values() if value.n is not None}
        notes = [f"n = {sizes.pop():,}"] if len(sizes) == 1 else []
        if metric in self.chance and metric not in TITLES:
            notes.append(f"chance {self.chance[metric]:.2f}")
        return f"{title} (`{metric}`{''.join(f'; {note}' for note in notes)})"

    def _texts(self) -> Iterator[str]:
        for prompt, texts in self.completions.items():
            yield f"`{_one_line(prompt)}`"
            yield ""
            yield from ("| step | completion |", "|---|---|")
            yield from (f"| {step} | `{_one_line(text)}` |" for step, text in sorted(texts.items()))
            yield ""


def read_table(client: Client, run: str, benchmarks: Sequence[str]) -> Table:
    """Read the table from the service."""
    metrics = [f"{name}/{metric}" for name in benchmarks for metric in OF_BENCHMARK] + list(TITLES)
    by_metric = {series.metric: series for series in client.history(run).series}
    shown = {metric: by_metric[metric] for metric in metrics if metric in by_metric}
    return Table(
        steps=sorted({step for series in shown.values() for step in series.x}),
        values={metric: _values(series) for metric, series in shown.items()},
        units={metric: series.unit for metric, series in shown.items()},
        chance={metric: series.baseline for metric, series in shown.items() if isinstance(series.baseline, float)},
        completions=_completions(client, run),
    )


def _values(series: ValueSeries) -> dict[int, Value]:
    rows = zip(series.x, series.value, series.stderr, series.n, series.low, series.high, strict=True)
    return {
        step: Value(float(value), stderr, n, None if low is None or high is None else Interval(low, high, LEVEL))
        for step, value, stderr, n, low, high in rows
    }


def _completions(client: Client, run: str) -> dict[str, dict[int, str]]:
    by_prompt: dict[str, dict[int, str]] = {}
    for step in client.completions(run):
        for item in step.completions:
            by_prompt.setdefault(item.prompt, {})[step.step] = item.text
    return by_prompt


def _short(number: float) -> str:
    """Return a number with three decimals, or with two if its size is 1 or more."""
    return f"{number:.3f}" if abs(number) < 1 else f"{number:.2f}"


def _one_line(text: str) -> str:
    """Return a text for a cell: with visible line ends, and without characters that end a cell or a code span."""
    return text.replace("\n", "⏎").replace("|", "¦").replace("`", "ˋ")
