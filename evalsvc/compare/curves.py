"""Several runs on one curve: a metric's series side by side where they have one protocol, and refused where not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from evalsvc.errors import NotComparable, UnknownName
from evalsvc.spec.protocol import describe_differences, describe_fields, differences, distinguishing, labelled

Series = Mapping[str, Any]
"""As the history has it, with its `run`."""

Content = Callable[[str], Mapping[str, Any]]
"""What is behind a protocol's id."""


def join_histories(histories: Sequence[Mapping[str, Any]], content: Content, force: bool = False) -> dict[str, Any]:
    """Histories of several runs as curves: `{"runs", "x", "forced", "curves", "refused", "imports"}`.

    `imports` has, by run, what the ids in the columns `import` stand for: where imported values are from. A curve is a
    metric under one protocol, with a series per run and variant. A metric of which the runs have no
    protocol in common is refused: `refused` has the reason by metric. With `force` it is one curve, whose `protocol` is
    None, and every series says by `differs` how it was measured. `content` is asked only where protocols differ.
    """
    by_metric: dict[str, list[Series]] = {}
    for history in histories:
        for series in history["series"]:
            by_metric.setdefault(series["metric"], []).append({"run": history["run"], **series})
    curves: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for metric, found in by_metric.items():
        told_apart = _tell_apart(found, content)
        strangers = _strangers(found)
        if strangers is None:
            curves += _by_protocol(told_apart)
        elif force:
            curves.append(_curve(told_apart, None))
        else:
            refused[metric] = _reason(*strangers, content)
    runs = [history["run"] for history in histories]
    return {
        "runs": runs,
        "x": histories[0]["x"],
        "forced": force,
        "curves": curves,
        "refused": refused,
        "imports": {history["run"]: history["imports"] for history in histories},
    }


def tabulate(joined: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Joined histories as points along a metric, one for each of its values: `{"x", "against", "columns", "rows"}`.

    `columns` are the labels of the other curves: the metric, and how it was measured where that was in several ways. A
    row has its `run`, `variant` and place on the axis, and by `against` and column a `{"value", "stderr", "import"}`,
    or None. `import` is None where the value was measured, else the id of its import, which `imports` explains by run.

    Raises:
        NotComparable: the metric was measured by several protocols, so there is no one axis.
        UnknownName: it was not measured.
    """
    mine = [curve for curve in joined["curves"] if curve["metric"] == metric]
    others = [curve for curve in joined["curves"] if curve["metric"] != metric]
    if reason := joined["refused"].get(metric):
        raise NotComparable(f"{metric} is no axis for these runs: {reason}")
    if not mine:
        raise UnknownName.among("metric", metric, {curve["metric"] for curve in others})
    if len(mine) > 1 or mine[0]["protocol"] is None:
        told = "; ".join(describe_fields(curve["differs"]) for curve in mine)
        raise NotComparable(f"{metric} was measured by several protocols, so nothing is shown against it: {told}")
    labels = [labelled(curve["metric"], curve["differs"]) for curve in others]
    columns = {label: _by_place(curve) for label, curve in zip(labels, others, strict=True)}
    rows = [
        {
            "run": run,
            "variant": variant,
            joined["x"]: at,
            metric: point,
            **{label: points.get((run, variant, at)) for label, points in columns.items()},
        }
        for (run, variant, at), point in _by_place(mine[0]).items()
    ]
    said = {"x": joined["x"], "against": metric, "columns": labels}
    return {**said, "rows": rows, "imports": joined["imports"]}


def require_comparable(joined: Mapping[str, Any]) -> None:
    """NotComparable where `join_histories` refused a metric; the fields that differ are in the message."""
    if joined["refused"]:
        found = "; ".join(f"{metric}: {reason}" for metric, reason in joined["refused"].items())
        raise NotComparable(
            f"runs that were measured by different protocols are not put on one curve: {found}; evaluate one of them "
            "again, or read them side by side with --force"
        )


def _by_place(curve: Mapping[str, Any]) -> dict[tuple[str, str, int], dict[str, Any]]:
    return {
        (series["run"], series["variant"], at): {"value": value, "stderr": stderr, "import": origin}
        for series in curve["series"]
        for at, value, stderr, origin in zip(
            series["x"], series["value"], series["stderr"], origins(series), strict=True
        )
    }


def origins(series: Series) -> Sequence[int | None]:
    """Return of each value of a series the id of its import; None where it was measured."""
    return series["import"] or [None] * len(series["x"])


def group_counts(series: Series) -> Sequence[int | None]:
    """Return the number of independent groups of items behind each value of a series; None where it has none."""
    # The history of an older service has no such column.
    return series.get("groups") or [None] * len(series["x"])


def _tell_apart(found: Sequence[Series], content: Content) -> list[Series]:
    """The series with `differs` over all runs, not only over their own."""
    ids = dict.fromkeys(series["protocol"] for series in found)
    differs = distinguishing({identity: content(identity) if len(ids) > 1 else {} for identity in ids})
    return [{**series, "differs": differs[series["protocol"]]} for series in found]


def _strangers(found: Iterable[Series]) -> tuple[Series, Series] | None:
    """A series of the first run and one of a run that shares no protocol with it, or with those before."""
    by_run: dict[str, dict[str, Series]] = {}
    for series in found:
        by_run.setdefault(series["run"], {})[series["protocol"]] = series
    first, *others = by_run.values()
    common = dict(first)
    for other in others:
        common = {identity: series for identity, series in common.items() if identity in other}
        if not common:
            return next(iter(first.values())), next(iter(other.values()))
    return None


def _by_protocol(found: Iterable[Series]) -> list[dict[str, Any]]:
    by_protocol: dict[str, list[Series]] = {}
    for series in found:
        by_protocol.setdefault(series["protocol"], []).append(series)
    return [_curve(members, identity) for identity, members in by_protocol.items()]


def _curve(members: Sequence[Series], protocol: str | None) -> dict[str, Any]:
    first = members[0]
    said = {name: first[name] for name in ("metric", "unit", "direction")}
    differs = first["differs"] if protocol is not None else {}
    return {**said, "protocol": protocol, "differs": differs, "series": list(members)}


def _reason(one: Series, other: Series, content: Content) -> str:
    found = differences(content(one["protocol"]), content(other["protocol"]))
    fields = describe_differences(found) or f"{one['protocol']} → {other['protocol']}"
    return f"{one['run']} and {other['run']} differ in {fields}"
