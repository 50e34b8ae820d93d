"""Checkpoints that `evalsvc evaluations again` evaluates, and the time that earlier evaluations by the suite took."""

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
"""Number of newest evaluations by the suite whose median duration is the estimate."""


@dataclass(frozen=True)
class Selection:
    """Selection of checkpoints that RUN, RUN@STEP or RUN@A..B/EVERY names."""

    run: str
    variant: str
    first: int | None
    last: int | None
    stride: int
    """Distance of the selected steps from each other, counted from `first`."""


@dataclass(frozen=True)
class Repetition:
    """Evaluations that `evaluations again` would post, and counts of earlier evaluations."""

    suite: str
    checkpoints: Sequence[ListedCheckpoint]
    """The checkpoints to evaluate."""
    matching: int
    """Number of checkpoints that the name matches."""
    succeeded: int
    """Number of matching checkpoints that the present version of the suite has evaluated."""
    outdated: int
    """Number of matching checkpoints that only an earlier version of the suite has evaluated."""
    open: int
    """Number of matching checkpoints whose evaluation by the suite is queued or running."""
    seconds: float | None
    """Median duration of an evaluation by the suite; None if no evaluation has ended."""
    measured: int
    """Number of evaluations behind the median."""


def parse_selection(name: str) -> Selection:
    """Read RUN, RUN@STEP, RUN@A..B or RUN@A..B/EVERY, with or without :VARIANT.

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
        raise InvalidRequest(
            f"{name!r} has {wrong}; give a last step that is not below the first, and an EVERY of at least 1"
        )
    return Selection(steps["run"], steps["variant"] or "raw", first, last, stride)


def plan_repetition(client: Client, name: str, suite: str, missing: bool) -> Repetition:
    """Find the checkpoints to evaluate; with `missing`, only those that the present suite has not evaluated.

    Raises:
        InvalidRequest: `name` names no checkpoints.
        UnknownName: the suite or run does not exist, or the run has no such checkpoint.
    """
    selection = parse_selection(name)
    digest = client.suite(suite).digest
    matching = _matching(client, selection, name)
    earlier = client.evaluations(selection.run, suite=suite, first=selection.first, last=selection.last)
    states = _states(earlier, digest)
    states_of_matching = [states.get(checkpoint.id, set()) for checkpoint in matching]
    chosen = [
        checkpoint
        for checkpoint, known in zip(matching, states_of_matching, strict=True)
        if "open" not in known and not (missing and "succeeded" in known)
    ]
    seconds = _durations(client, suite)
    return Repetition(
        suite,
        chosen,
        len(matching),
        sum("succeeded" in known for known in states_of_matching),
        sum("outdated" in known and "succeeded" not in known for known in states_of_matching),
        sum("open" in known for known in states_of_matching),
        median(seconds) if seconds else None,
        len(seconds),
    )


def _matching(client: Client, selection: Selection, name: str) -> list[ListedCheckpoint]:
    posted = client.checkpoints(selection.run, variant=selection.variant, first=selection.first, last=selection.last)
    start = selection.first or 0
    matching = [checkpoint for checkpoint in posted if (checkpoint.step - start) % selection.stride == 0]
    if not matching:
        # Raises UnknownName with similar names if the run does not exist.
        client.run(selection.run, all_checkpoints=False)
        raise UnknownName(f"no checkpoint matches {name}; evalsvc checkpoints list {selection.run} shows the steps")
    return matching


def _states(evaluations: Iterable[ListedEvaluation], digest: str) -> dict[int, set[str]]:
    """Return the states of each checkpoint, by its id: `open`, `succeeded`, `outdated`."""
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
        (datetime.fromisoformat(item.finished_at) - datetime.fromisoformat(item.started_at)).total_seconds()
        for item in ended
        if item.started_at is not None and item.finished_at is not None
    ]
