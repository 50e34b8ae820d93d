"""Warnings about results that cannot be right, or rest on too little; they are stored with a task's result."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from evalsvc.spec.protocol import MetricValue
from evalsvc.tasks.task import TaskWarning

MAX_WARNINGS = 32
"""Maximum number of warnings of a task: a suite may have a thousand benchmarks, and every result shows warnings."""


def few_warnings(warnings: Sequence[TaskWarning]) -> Iterator[TaskWarning]:
    """Yield the first warnings of each rule in turn, and the number of omitted warnings."""
    seen: Counter[str] = Counter()
    ranked = []
    for warning in warnings:
        ranked.append((seen[warning.code], warning))
        seen[warning.code] += 1
    kept = [warning for _, warning in sorted(ranked, key=lambda pair: pair[0])][:MAX_WARNINGS]
    yield from kept
    if more := len(warnings) - len(kept):
        last = kept[-1]
        yield TaskWarning("more", last.metric.partition("/")[0], f"there are {more:,} more warnings of these kinds")


def worse_than_guessing(metrics: Iterable[MetricValue], names: Iterable[str], reason: str) -> Iterator[TaskWarning]:
    """Warn about each metric in `names` that is worse than its baseline, a uniform guess, by more than 1 % and more
    than three standard errors."""
    wanted = set(names)
    for metric in metrics:
        uniform = metric.baseline or math.nan
        excess = metric.value - uniform
        if metric.name in wanted and excess > 0.01 * uniform and excess > 3 * (metric.stderr or 0.0):
            error = "" if metric.stderr is None else f" ± {metric.stderr:.2g}"
            yield TaskWarning(
                "worse_than_guessing",
                metric.name,
                f"{metric.value:.4g}{error} {metric.unit} is {excess / uniform:.0%} above {uniform:.4g}, the cost of a "
                f"uniform guess; check the layout's preset and offsets, the tokenizer, and the data's ids{reason}",
            )


UNTRAINED_IMAGES = ". Such a loss is right only for image ids that were never trained"

AT_FIRST = (
    ". The checkpoint is the run's base or first step, where nothing is forgotten yet: such a loss is right only for "
    "weights that were never trained on text"
)


def cut_inputs(metric: str, what: str, cut: int, total: int | None, remedy: str) -> Iterator[TaskWarning]:
    """Warn about inputs that did not fit and were cut; `metric` rests on them, `what` names them."""
    if cut:
        of = "" if total is None else f" of {total:,}"
        yield TaskWarning("inputs_cut", metric, f"{cut:,}{of} {what} did not fit and were cut; {remedy}")


def names_of_tokens(metric: str, count: int) -> Iterator[TaskWarning]:
    """Warn about captions that hold names of special tokens of the tokenizer; `metric` rests on them."""
    if count:
        yield TaskWarning(
            "special_names",
            metric,
            f"{count:,} captions hold the names of special tokens of the tokenizer, which became these tokens in the "
            "prompt; remove such names from the captions",
        )


def left_out(task: str, reasons: Mapping[str, str], remedy: str) -> Iterator[TaskWarning]:
    """Warn about each requested metric that is missing, with the reason. Those with the same reason share a warning."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        said = "is left out" if len(names) == 1 else "are left out"
        yield TaskWarning("left_out", f"{task}/{names[0]}", f"{', '.join(names)} {said}: {reason}; {remedy}")
