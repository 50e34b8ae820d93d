"""Which checkpoints `evalsvc evaluations again` evaluates, and how long that takes by the history of the suite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from statistics import median

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.documents import ListedCheckpoint, ListedEvaluation
from evalsvc.spec.documents.fields import OVER
from evalsvc.spec.names import RUN, STEPS

MEASURED = 20
"""Ended evaluations by the suite, the newest, whose median duration is the estimate."""


@dataclass(frozen=True)
class Selection:
    """Checkpoints of a run, as RUN, RUN@STEP or RUN@A..B/EVERY names them."""

    run: str
    variant: str
    first: int | None
    last: int | None
    stride: int
    """Keep steps whose distance from `first` is a multiple of this."""


@dataclass(frozen=True)
class Repetition:
    """What `evaluations again` would post, and what was evaluated before."""

    suite: str
    checkpoints: Sequence[ListedCheckpoint]
    """The checkpoints to evaluate."""
    matching: int
    """Checkpoints that the name matches."""
    succeeded: int
    """Those of them that the present version of the suite has evaluated."""
    outdated: int
    """Those that only an earlier version of the suite has evaluated."""
    open: int
    """Those whose evaluation by the suite waits or runs."""
    seconds: float | None
    """Median duration of an evaluation by the suite; None: none has ended."""
    measured: int
    """Evaluations that the median is of."""


def parse_selection(name: str) -> Selection:
    """Read RUN, RUN@STEP, RUN@A..B or RUN@A..B/EVERY, each with or without :VARIANT.

    Raises:
        InvalidRequest: `name` has another form, B is below A, or EVERY is 0.
    """
    if (run := RUN.fullmatch(name)) is not None:
        return Selection(run["run"], run["variant"] or "raw", None, None, 1)
    steps = STEPS.fullmatch(name)
    if steps is None:
        raise InvalidRequest(
            f"{name!r} names no checkpoints; give RUN@A..B, RUN@A..B/EVERY, RUN@STEP or RUN, such as "
            "pretrained@1000..5000/500"
        )
    first = int(steps["first"])
    last = first if steps["last"] is None else int(steps["last"])
    stride = int(steps["stride"] or 1)
    if last < first or not stride:
        wrong = f"/{stride}" if not stride else f"{first}..{last}"
        raise InvalidRequest(f"{name!r} has {wrong}; the last step is at least the first, and EVERY is at least 1")
    return Selection(steps["run"], steps["variant"] or "raw", first, last, stride)


def plan_repetition(client: Client, name: str, suite: str, missing: bool) -> Repetition:
    """Find the checkpoints to evaluate with a suite; with `missing`, those that its present version has not evaluated.

    Raises:
        InvalidRequest: `name` names no checkpoints.
        UnknownName: there is no such suite or run, or the run has no checkpoint there.
    """
    selection = parse_selection(name)
    digest = client.suite(suite).digest
    matching = _matching(client, selection, name)
    before = client.evaluations(selection.run, suite=suite, first=selection.first, last=selection.last)
    states = _states(before, digest)
    of = [states.get(checkpoint.id, set()) for checkpoint in matching]
    chosen = [
        checkpoint
        for checkpoint, known in zip(matching, of, strict=True)
        if "open" not in known and not (missing and "succeeded" in known)
    ]
    seconds = _durations(client, suite)
    return Repetition(
        suite,
        chosen,
        len(matching),
        sum("succeeded" in known for known in of),
        sum("outdated" in known and "succeeded" not in known for known in of),
        sum("open" in known for known in of),
        median(seconds) if seconds else None,
        len(seconds),
    )


def _matching(client: Client, selection: Selection, name: str) -> list[ListedCheckpoint]:
    found = client.checkpoints(selection.run, variant=selection.variant, first=selection.first, last=selection.last)
    start = selection.first or 0
    matching = [checkpoint for checkpoint in found if (checkpoint.step - start) % selection.stride == 0]
    if not matching:
        client.run(selection.run)  # an unknown run has near misses
        raise UnknownName(f"no checkpoint matches {name}; evalsvc checkpoints list {selection.run} shows the steps")
    return matching


def _states(evaluations: Iterable[ListedEvaluation], digest: str) -> dict[int, set[str]]:
    """Return what is known of each checkpoint, by its id: `open`, `succeeded`, `outdated`."""
    states: dict[int, set[str]] = {}
    for evaluation in evaluations:
        if evaluation.state not in OVER:
            states.setdefault(evaluation.checkpoint, set()).add("open")
        elif evaluation.state == "succeeded":
            version = "succeeded" if evaluation.suite.digest == digest else "outdated"
            states.setdefault(evaluation.checkpoint, set()).add(version)
    return states


def _durations(client: Client, suite: str) -> list[float]:
    """Return the seconds that the newest evaluations by a suite took."""
    ended = islice(client.evaluations(suite=suite, state="succeeded", page_size=MEASURED), MEASURED)
    return [
        (datetime.fromisoformat(one.finished_at) - datetime.fromisoformat(one.started_at)).total_seconds()
        for one in ended
        if one.started_at is not None and one.finished_at is not None
    ]
