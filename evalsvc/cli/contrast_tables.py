"""Comparisons of checkpoints and of runs as tables and as CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from evalsvc.cli.tables import error_bar, explain_groups, print_warnings, say_curve, shown_items, shown_number
from evalsvc.cli.terminal import print_table, say, write_rows
from evalsvc.metrics.shown_metrics import Place, divide_rows
from evalsvc.spec.documents.comparisons import (
    ComparedSide,
    Comparison,
    DifferenceCurve,
    MetricDifference,
    RunComparison,
)
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.protocol import describe_differences, describe_fields, differences_from_json, labelled

CONTRAST_WORDS = {
    "no_error_known": "no error known",
    "other_protocol": "OTHER PROTOCOL",
    "only_a": "only in A",
    "only_b": "only in B",
}
"""Words of a table for verdicts that are no words."""


def print_contrasts(comparison: Comparison, *, named: Collection[str] = (), whole: bool = False) -> None:
    """Print a comparison of two checkpoints, a row per metric, without the optional columns that are empty.

    Companions such as perplexities, whose verdict is that of their loss, have a row if `named` has them, or with
    `whole`.
    """
    say(f"A: {comparison.a}\nB: {comparison.b}")
    together = comparison.family == "holm"
    p_values = "p (Holm, all metrics)" if together else "p (Holm)"
    columns = ["B is", "metric", "A", "interval of A", "B", "interval of B", "B − A"]
    columns += [f"{100 * comparison.level:.4g} % interval", "basis", "n"]
    optional = ["left out", "only A / B right", p_values, "protocols differ in", "why there is no interval"]
    shown = comparison.contrasts if whole else _with_rows(comparison.contrasts, named)
    rows = [_contrast_row(contrast, together) for contrast in shown]
    if rows:
        drop = ("n", "basis", "only A / B right", "interval of A", "interval of B", p_values, "left out")
        below = ("protocols differ in", "why there is no interval")
        print_table([*columns, *optional], rows, ["interval of A", "interval of B", *optional], drop, below)
        explain_groups([*columns, *optional], rows)
        if hidden := len(comparison.contrasts) - len(rows):
            say(f"{hidden:,} companions, such as perplexities, are not shown; --all shows every metric", err=True)
        _explain_verdicts(comparison)
    else:
        say("A and B have no metrics")
    print_warnings(comparison.warnings.a, "A, ")
    print_warnings(comparison.warnings.b, "B, ")


def _with_rows(contrasts: Sequence[MetricDifference], named: Collection[str]) -> list[MetricDifference]:
    places = [Place(contrast.metric, "", _protocol_of(contrast)) for contrast in contrasts]
    return [contrasts[place] for place in divide_rows(places, named).shown]


def _protocol_of(contrast: MetricDifference) -> str:
    """Return the id of the protocol of the metric."""
    side = contrast.a or contrast.b
    return "" if side is None else side.protocol


def _explain_verdicts(comparison: Comparison) -> None:
    """Say how many verdicts chance alone would give; a service of an older version does not send that number."""
    judged, expected = comparison.judged, comparison.expected_by_chance
    if not judged:
        return
    metrics = "1 metric has a verdict" if judged == 1 else f"{judged:,} metrics have a verdict"
    level = f"{comparison.level:.4g}"
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


def _contrast_row(contrast: MetricDifference, together: bool) -> list[str]:
    forced = " (forced)" if contrast.differing and contrast.difference is not None else ""
    interval, answers = contrast.interval, contrast.answers
    return [
        CONTRAST_WORDS.get(contrast.verdict, contrast.verdict) + forced,
        labelled(contrast.metric, contrast.differs),
        *_side(contrast.a),
        *_side(contrast.b),
        _change(contrast.difference),
        f"{_change(interval.low)} … {_change(interval.high)}" if interval else "",
        contrast.basis,
        shown_items(contrast.n, contrast.groups),
        _left_out(contrast),
        f"{answers.only_a:,} / {answers.only_b:,}" if answers else "",
        _p_values(contrast, together),
        describe_differences(differences_from_json(contrast.differing)),
        contrast.no_error,
    ]


def _p_values(contrast: MetricDifference, together: bool) -> str:
    """Return the p-value and the corrected p-value: over all metrics, or McNemar's over the benchmarks of a metric."""
    answers = contrast.answers
    p, holm = (contrast.p, contrast.p_holm) if together else (answers and answers.p, answers and answers.holm)
    return "" if p is None or holm is None else f"{p:.2g} ({holm:.2g})"


def _left_out(contrast: MetricDifference) -> str:
    """Return the numbers of items that only one side has; the difference leaves these items out."""
    counts = {"A": contrast.n_only_a, "B": contrast.n_only_b}
    return ", ".join(f"{count:,} only in {side}" for side, count in counts.items() if count)


def _side(side: ComparedSide | None) -> tuple[str, str]:
    """Return the value and its interval, or its standard error if there is no interval."""
    if side is None:
        return "", ""
    value = shown_number(side.value)
    if side.low is None or side.high is None:
        return value, error_bar(side.stderr)
    return value, f"[{float(side.low):.4g}, {float(side.high):.4g}]"


def _change(value: Number | None) -> str:
    return f"{value:+.4g}" if isinstance(value, float) else "" if value is None else str(value)


def write_contrasts_csv(comparison: Comparison) -> None:
    """Print a comparison as CSV, a line per metric."""
    write_rows([_contrast_line(contrast) for contrast in comparison.contrasts])


def _contrast_line(contrast: MetricDifference) -> dict[str, object]:
    line: dict[str, object] = {
        name: value for name, value in vars(contrast).items() if name not in ("a", "b", "interval", "answers")
    }
    for name, side in (("a", contrast.a), ("b", contrast.b)):
        line |= {key: side and getattr(side, field) for key, field in ((name, "value"), (f"{name}_stderr", "stderr"))}
        line |= {f"{name}_{field}": side and getattr(side, field) for field in SIDE_COLUMNS}
    line |= {end: contrast.interval and getattr(contrast.interval, end) for end in ("low", "high")}
    line |= {name: contrast.answers and getattr(contrast.answers, name) for name in ("only_a", "only_b", "holm")}
    differing = describe_differences(differences_from_json(contrast.differing))
    return line | {"differing": differing, "differs": describe_fields(contrast.differs)}


SIDE_COLUMNS = ("low", "high", "n", "groups", "protocol")
"""Fields of a side that CSV has after the value and its standard error."""


def print_difference_curves(comparison: RunComparison) -> None:
    """Print two runs along their steps: a table per metric, and the steps where the difference crosses the noise."""
    say(f"A: {comparison.a}\nB: {comparison.b}")
    for curve in comparison.curves:
        say_curve(curve)
        band = f"{100 * comparison.level:.4g} % interval, {comparison.band}"
        columns = [comparison.x, "A", "± A", "B", "± B", "B − A", band, "basis", "B is"]
        rows = [_step_row(curve, place) for place in range(len(curve.x))]
        print_table(columns, rows, ("± A", "± B"), drop=("basis", "± A", "± B"))
        for line in _crossing_lines(curve):
            say(line)
        say()
    for metric, reason in comparison.refused.items():
        say(f"{metric} has steps of different protocols, which are left out: {reason}")
    if not comparison.curves and not comparison.refused:
        say("the runs have no metric in common at any step")


def _step_row(curve: DifferenceCurve, place: int) -> list[str]:
    low, high = curve.low[place], curve.high[place]
    return [
        str(curve.x[place]),
        *(shown_number(curve.a[place]), error_bar(curve.a_stderr[place])),
        *(shown_number(curve.b[place]), error_bar(curve.b_stderr[place])),
        _change(curve.difference[place]),
        "" if low is None else f"{_change(low)} … {_change(high)}",
        curve.basis[place],
        CONTRAST_WORDS.get(curve.verdict[place], curve.verdict[place]),
    ]


def _crossing_lines(curve: DifferenceCurve) -> Iterator[str]:
    bound = curve.largest_not_excluded
    size = "" if bound is None else f"; differences up to {float(bound):.4g} are not excluded"
    for band, first, always, statement, more in (
        ("pointwise", curve.first_indistinguishable, curve.indistinguishable_from, "the interval covers zero", size),
        ("simultaneous", curve.first_apart, curve.apart_from, "the difference is beyond noise", ""),
    ):
        yield f"{statement} at no step" if first is None else f"{statement} first at step {first}"
        if always is not None:
            yield f"{band} band: {statement} at every step from {always} on{more}"
    for before, after in curve.sign_changes:
        yield f"simultaneous band: the difference changes its sign between steps {before} and {after}"


def write_difference_curves_csv(comparison: RunComparison) -> None:
    """Print two runs along their steps as CSV, a line per metric and step."""
    constant = ("metric", "task", "unit", "direction", "protocol", "step_level")
    rows: list[dict[str, object]] = []
    for curve in comparison.curves:
        about = {name: getattr(curve, name) for name in constant} | {"differs": describe_fields(curve.differs)}
        for place, step in enumerate(curve.x):
            rows.append(about | {comparison.x: step} | {name: getattr(curve, name)[place] for name in STEP_COLUMNS})
    write_rows(rows)


STEP_COLUMNS = (
    *("a", "a_stderr", "b", "b_stderr", "difference", "stderr", "low", "high"),
    *("verdict", "basis", "n", "groups", "n_only_a", "n_only_b"),
)
"""Columns of CSV with a value for each step of a curve."""
