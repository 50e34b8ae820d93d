"""Comparisons of checkpoints and of runs as tables and as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evalsvc.cli.tables import error_bar, explain_groups, print_warnings, say_curve, shown_items, shown_number
from evalsvc.cli.terminal import print_table, say, write_rows
from evalsvc.spec.protocol import describe_differences, describe_fields, differences_from_json, labelled

CONTRAST_WORDS = {
    "no_error_known": "no error known",
    "other_protocol": "OTHER PROTOCOL",
    "only_a": "only in A",
    "only_b": "only in B",
}
"""What a table calls these verdicts; the others are words already."""


def print_contrasts(document: Mapping[str, Any]) -> None:
    """A comparison of two checkpoints, a line per metric; of the columns at the end, those that a line needs."""
    say(f"A: {document['a']}\nB: {document['b']}")
    interval = f"{100 * document['level']:.4g} % interval"
    columns = ["B is", "metric", "A", "B", "B − A", interval, "basis", "n"]
    together = document.get("family") == "holm"
    p_values = "p (Holm, all metrics)" if together else "p (Holm)"
    optional = ["left out", "only A / B right", p_values, "protocols differ in", "why there is no interval"]
    rows = [_contrast_row(contrast, together) for contrast in document["contrasts"]]
    if rows:
        print_table([*columns, *optional], rows, optional)
        explain_groups(document["contrasts"])
        _explain_verdicts(document)
    else:
        say("neither has any metrics")
    for side in "ab":
        # A service of an older version has none.
        print_warnings(document.get("warnings", {}).get(side, ()), f"{side.upper()}, ")


def _explain_verdicts(document: Mapping[str, Any]) -> None:
    """Say how many of the verdicts chance alone would give; a service of an older version does not know."""
    judged, expected = document.get("judged", 0), document.get("expected_by_chance")
    if not judged:
        return
    metrics = "1 metric has a verdict" if judged == 1 else f"{judged:,} metrics have a verdict"
    level = f"{document['level']:.4g}"
    if expected is None:
        say(
            f"{metrics}, judged together by Holm's method: if nothing had changed, none would be better, worse or "
            f"different, with a probability of {level}; each interval holds by itself"
        )
        return
    say(
        f"{metrics} at level {level}, each by itself: if nothing had changed, about {expected:.2g} would be better, "
        "worse or different by chance alone; --family holm judges all of them together"
    )


def _contrast_row(contrast: Mapping[str, Any], together: bool) -> list[str]:
    forced = " (forced)" if contrast["differing"] and contrast["difference"] is not None else ""
    interval, answers = contrast["interval"], contrast["answers"]
    return [
        CONTRAST_WORDS.get(contrast["verdict"], contrast["verdict"]) + forced,
        labelled(contrast["metric"], contrast["differs"]),
        _side(contrast["a"]),
        _side(contrast["b"]),
        _change(contrast["difference"]),
        f"{_change(interval['low'])} … {_change(interval['high'])}" if interval else "",
        contrast["basis"],
        shown_items(contrast),
        _left_out(contrast),
        f"{answers['only_a']:,} / {answers['only_b']:,}" if answers else "",
        _p_values(contrast["p"], contrast["p_holm"]) if together else _p_values(**_exact(answers)),
        describe_differences(differences_from_json(contrast["differing"])),
        contrast["no_error"],
    ]


def _exact(answers: Mapping[str, Any] | None) -> dict[str, float | None]:
    """McNemar's p, and that corrected over the benchmarks of the metric."""
    return {"p": None, "holm": None} if answers is None else {"p": answers["p"], "holm": answers["holm"]}


def _p_values(p: float | None, holm: float | None) -> str:
    return "" if p is None else f"{p:.2g} ({holm:.2g})"


def _left_out(contrast: Mapping[str, Any]) -> str:
    """How many items of each side the other lacks, which the difference leaves out."""
    counts = {side.upper(): contrast.get(f"n_only_{side}", 0) for side in "ab"}
    return ", ".join(f"{count:,} only {side} has" for side, count in counts.items() if count)


def _side(side: Mapping[str, Any] | None) -> str:
    """The value with its interval; with its standard error where it has none."""
    if side is None:
        return ""
    value = shown_number(side["value"])
    # A service of an older version knows no interval of one side.
    if (low := side.get("low")) is None:
        return f"{value} {error_bar(side['stderr'])}".rstrip()
    return f"{value} [{low:.4g}, {float(side['high']):.4g}]"


def _change(value: float | str | None) -> str:
    return f"{value:+.4g}" if isinstance(value, float) else "" if value is None else str(value)


def write_contrasts_csv(document: Mapping[str, Any]) -> None:
    """A comparison, a line per metric."""
    rows = []
    for contrast in document["contrasts"]:
        plain = dict(contrast)
        for name in "ab":
            side = plain.pop(name) or {}
            plain |= {key: side.get(field) for key, field in ((name, "value"), (f"{name}_stderr", "stderr"))}
            plain |= {f"{name}_{field}": side.get(field) for field in ("low", "high", "n", "groups", "protocol")}
        interval = plain.pop("interval") or {}
        plain |= {"low": interval.get("low"), "high": interval.get("high")}
        answers = plain.pop("answers") or {}
        plain |= {name: answers.get(name) for name in ("only_a", "only_b", "holm")}
        differing = describe_differences(differences_from_json(contrast["differing"]))
        rows.append(plain | {"differing": differing, "differs": describe_fields(contrast["differs"])})
    write_rows(rows)


def print_difference_curves(document: Mapping[str, Any]) -> None:
    """Two runs along their steps: a table per metric, and where the difference enters and leaves the noise."""
    say(f"A: {document['a']}\nB: {document['b']}")
    for curve in document["curves"]:
        say_curve(curve)
        band = f"{100 * document['level']:.4g} % interval, {document['band']}"
        columns = [document["x"], "A", "B", "B − A", band, "basis", "B is"]
        print_table(columns, [_step_row(row) for row in _curve_rows(curve)])
        for line in _crossing_lines(curve):
            say(line)
        say()
    for metric, reason in document["refused"].items():
        say(f"{metric} is left out where its protocols differ: {reason}")
    if not document["curves"] and not document["refused"]:
        say("they have no metric in common at any step")


def _step_row(row: Mapping[str, Any]) -> list[str]:
    sides = (f"{shown_number(row[side])} {error_bar(row[side + '_stderr'])}".rstrip() for side in "ab")
    interval = "" if row["low"] is None else f"{_change(row['low'])} … {_change(row['high'])}"
    verdict = CONTRAST_WORDS.get(row["verdict"], row["verdict"])
    return [str(row["x"]), *sides, _change(row["difference"]), interval, row["basis"], verdict]


def _crossing_lines(curve: Mapping[str, Any]) -> Iterator[str]:
    for name, what in (("indistinguishable", "the interval covers zero"), ("apart", "the difference is beyond noise")):
        first, always = curve[f"first_{name}"], curve[f"{name}_from"]
        yield f"{what} at no step" if first is None else f"{what} first at step {first}"
        if always is not None:
            yield f"simultaneous band: {what} from step {always} on always"
    for before, after in curve["sign_changes"]:
        yield f"simultaneous band: the difference changes its sign between steps {before} and {after}"


def _curve_rows(curve: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per step, of the columns."""
    columns = {name: values for name, values in curve.items() if isinstance(values, list) and name != "sign_changes"}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_difference_curves_csv(document: Mapping[str, Any]) -> None:
    """Two runs along their steps, a line per metric and step."""
    said = ("metric", "task", "unit", "direction", "protocol", "step_level")
    write_rows(
        [
            {
                **{name: curve[name] for name in said},
                "differs": describe_fields(curve["differs"]),
                document["x"]: row.pop("x"),
                **row,
            }
            for curve in document["curves"]
            for row in _curve_rows(curve)
        ]
    )
