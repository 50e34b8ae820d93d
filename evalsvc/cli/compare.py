"""`evalsvc compare`: differences between two checkpoints or two runs, as tables and as CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.options import (
    AcrossSampling,
    Form,
    Output,
    Url,
    complete_metric,
    complete_run,
    complete_suite,
    complete_task,
    connect,
    require_folders,
)
from evalsvc.cli.printer import (
    Row,
    about_curve,
    error_bar,
    explain_groups,
    fields_of,
    print_warnings,
    printed_to,
    show,
    shown_items,
    shown_number,
)
from evalsvc.cli.terminal import PIPE, fitting, print_table, say, screen_room, table_lines, terminal_width
from evalsvc.cli.wording import counted
from evalsvc.compare.comparison import Options, compare_results, require_comparable
from evalsvc.compare.contrast import EXTERNAL_AGAINST_SAMPLED, allowed_by
from evalsvc.compare.source import Service, read_result
from evalsvc.errors import InvalidRequest, first_few
from evalsvc.metrics.intervals import percent
from evalsvc.metrics.shown_metrics import Place, default_headline, divide_rows
from evalsvc.spec.documents.comparisons import (
    Across,
    Band,
    ComparedSide,
    Comparison,
    DifferenceCurve,
    Family,
    MetricDifference,
    RunComparison,
    Verdict,
)
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.names import CHECKPOINT, NAMED, RUN, is_checkpoint
from evalsvc.spec.protocol import describe_differences, describe_fields, differences_from_json, labelled

commands = typer.Typer()


@commands.command()
def compare(
    a: Annotated[
        str,
        Argument(
            metavar="A",
            help="Result file of `evalsvc run --output`; or of the service, RUN@STEP[:VARIANT], RUN@best[:METRIC], "
            "RUN@newest, RUN@base or RUN[:VARIANT].",
            autocompletion=complete_run,
        ),
    ],
    b: Annotated[
        str | None,
        Argument(
            metavar="B",
            help="Second side of the comparison, in the same form.",
            show_default="the base, if A is a run",
            autocompletion=complete_run,
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        Option(
            "--metric",
            help="Compare only this metric, or metrics that match a pattern such as coco/*; repeat for several.",
            show_default="all",
            autocompletion=complete_metric,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        Option(
            "--task",
            help="Compare only metrics of this task; repeat for several.",
            show_default="all",
            autocompletion=complete_task,
        ),
    ] = None,
    level: Annotated[
        float, Option(help="Confidence level of the intervals of differences; that of single values is 0.95.")
    ] = 0.95,
    family: Annotated[
        Family,
        Option(help="With two checkpoints: judge metrics one by one (none), or together by Holm's method (holm)."),
    ] = "none",
    band: Annotated[
        Band,
        Option(help="With runs: intervals that hold at one step (pointwise), or at all steps together (simultaneous)."),
    ] = "pointwise",
    flipped: Annotated[
        int,
        Option(min=0, max=10_000, help="Most items to name that only one side answers correctly, with --format json."),
    ] = 0,
    force: Annotated[bool, Option("--force", help="Also compare values of different protocols, unpaired.")] = False,
    across_sampling: AcrossSampling = False,
    suite: Annotated[
        str | None,
        Option(
            help="Compare only values by this suite, for RUN@STEP.",
            show_default="all suites",
            autocompletion=complete_suite,
        ),
    ] = None,
    everything: Annotated[
        bool, Option("--all", help="Show every metric, perplexities and other companions too, and every step of runs.")
    ] = False,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Compare two checkpoints: the difference B − A of every metric, its interval, and a verdict.

    Differences are paired over the items that A and B share. The verdict is `better`, `worse`, or `indistinguishable`
    if the interval covers zero. The line below the table says how many verdicts chance alone would give. Values of
    different protocols are not compared: the answer names the fields that differ, and the exit code is 2. --force
    compares such values.

    Two runs are compared at the steps that both runs have; a run alone is compared with its base. The table has the
    last step of each metric, and the steps where the interval covers zero. With --metric or --all, every step has a
    row, and lines below name the first step where the interval covers zero, the step from which it always does, and the
    largest difference that is not excluded there; and likewise for differences beyond noise, by simultaneous intervals.

    The table is one screen: the headline first, then the metrics that differ. --metric, --task and --all show all.
    """
    require_folders({"--output": output})
    across: tuple[Across, ...] = ("sampling",) if across_sampling else ()
    options = Options(tuple(metrics or ()), tuple(tasks or ()), level, force, across, flipped, family)
    is_run = _is_run(a) and (b is None or _is_run(b))
    if b is None and not is_run:
        do = "give a second checkpoint or file as B, or give a run as A"
        raise InvalidRequest(f"{a} has nothing to be compared with; {do}")
    if is_run and family != "none":
        do = "leave --family out, or give --band simultaneous"
        raise InvalidRequest(f"--family judges two checkpoints, and two runs are given; {do}")
    with connect(url) as client, printed_to(output):
        match = RUN.fullmatch(a) if is_run else CHECKPOINT.fullmatch(a) or NAMED.fullmatch(a)
        is_screen = form == "table" and not (metrics or tasks or everything)
        headline = client.headline(match["run"]).metrics if is_screen and match is not None else ()
        if is_run:
            runs = client.compare_runs(
                a, b, metrics or (), tasks=tasks or (), suite=suite, level=level, band=band, force=force, across=across
            )
            table = partial(print_difference_curves, headline=headline, every_step=not is_screen)
            show(runs, form, table, difference_rows)
            return
        for name in filter(NAMED.fullmatch, (a, str(b))):
            say(client.named(name).words(name), err=True)
        if is_checkpoint(a) and is_checkpoint(str(b)):
            comparison = client.compare(a, str(b), suite=suite, **vars(options))
        else:
            service = Service(client, suite)
            comparison = compare_results(read_result(a, service), read_result(str(b), service), options)
        headline = headline or default_headline({item.metric: item.direction for item in comparison.contrasts})
        contrasts = partial(
            print_contrasts, named=options.metrics, whole=everything, headline=headline, fits_screen=is_screen
        )
        show(comparison, form, contrasts, contrast_rows)
    require_comparable(comparison)


ACROSS_SAMPLING = f"across sampling: {EXTERNAL_AGAINST_SAMPLED}, paired where both sides have the same id of a prompt"


def _is_run(name: str) -> bool:
    return bool(RUN.fullmatch(name)) and not name.endswith(".json") and not Path(name).exists()


CONTRAST_WORDS: Mapping[Verdict, str] = {
    "better": "▲ better",
    "worse": "▼ worse",
    "different": "≠",
    "indistinguishable": "=",
    "no_error_known": "no error known",
    "other_protocol": "OTHER PROTOCOL",
    "only_a": "only in A",
    "only_b": "only in B",
}
"""Cells of a table for verdicts."""

UNDECIDED = ("indistinguishable", "no_error_known", "only_a", "only_b")
"""Verdicts of metrics that come last where not all metrics fit the screen."""


def print_contrasts(
    comparison: Comparison,
    *,
    named: Collection[str] = (),
    whole: bool = False,
    headline: Sequence[str] = (),
    fits_screen: bool = False,
) -> None:
    """Print a row per metric, or with `fits_screen` the rows that fit: the headline, then the metrics that differ."""
    together = comparison.family == "holm"
    p_values = "p (Holm, all metrics)" if together else "p (Holm)"
    columns = ["B is", "metric", "A", "interval of A", "B", "interval of B", "B − A"]
    columns += [f"{percent(comparison.level)} interval", "basis", "n"]
    optional = ["left out", "only A / B right", p_values, "protocols differ in", "why there is no interval"]
    with_rows = list(comparison.contrasts)
    if not whole:
        places = [Place(item.metric, "", side.protocol if (side := item.a or item.b) else "") for item in with_rows]
        with_rows = [with_rows[place] for place in divide_rows(places, named).shown]
    _say_sides(comparison, [item.verdict for item in with_rows])
    if companions := len(comparison.contrasts) - len(with_rows):
        say(f"{companions:,} companions, such as perplexities, are not shown; --all shows every metric", err=True)
    width, shown, in_order = None, with_rows, with_rows
    drop = ("n", "basis", "only A / B right", "interval of A", "interval of B", p_values, "left out", "A", "B")
    empty = ("interval of A", "interval of B", *optional)
    columns += optional
    below = ("protocols differ in", "why there is no interval")

    def height(contrasts: Sequence[MetricDifference], width: int | None) -> int:
        rows = [_contrast_row(contrast, together, comparison.across) for contrast in contrasts]
        return len(table_lines(columns, rows, empty, drop, below, width))

    if fits_screen and height(with_rows, None) > screen_room():
        width = terminal_width() or PIPE
        in_order = sorted(with_rows, key=lambda item: (_rank(item.metric, headline), item.verdict in UNDECIDED))
        kept = fitting(len(with_rows), lambda count: height(in_order[:count], width))
        shown = with_rows if kept == len(with_rows) else in_order[:kept]
    if rows := [_contrast_row(contrast, together, comparison.across) for contrast in shown]:
        print_table(columns, rows, empty, drop, below, width)
        explain_groups(columns, rows)
        if "sampling" in comparison.across and any(_across(item) == "sampling" for item in shown):
            say(ACROSS_SAMPLING)
        if hidden := in_order[len(shown) :]:
            counts = _counts([item.verdict for item in hidden])
            say(f"not shown: {counted(len(hidden), 'metric')} ({counts}); --all shows every metric", err=True)
        _explain_verdicts(comparison)
    else:
        say("A and B have no metrics")
    print_warnings(comparison.warnings.a, "A, ")
    print_warnings(comparison.warnings.b, "B, ")


def _say_sides(comparison: Comparison | RunComparison, verdicts: Sequence[Verdict], at: str = "") -> None:
    say(f"A: {comparison.a}\nB: {comparison.b}\nB against A{at}: {_counts(verdicts) or 'nothing in common'}")


def _counts(verdicts: Sequence[Verdict]) -> str:
    """Return how many verdicts there are of each kind, with their marks: `▲ 8 better, = 37 indistinguishable`."""
    counts = [(cell, verdict, verdicts.count(verdict)) for verdict, cell in CONTRAST_WORDS.items()]
    kinds = [f"{n:,} {cell}" if cell[0].isalpha() else f"{cell[0]} {n:,} {verdict}" for cell, verdict, n in counts if n]
    return ", ".join(kinds)


def _rank(metric: str, headline: Sequence[str]) -> int:
    return headline.index(metric) if metric in headline else len(headline)


def _explain_verdicts(comparison: Comparison) -> None:
    """Say how many verdicts chance alone would give; a service of an older version does not send that number."""
    judged, expected = comparison.judged, comparison.expected_by_chance
    metrics = "1 metric has a verdict" if judged == 1 else f"{judged:,} metrics have a verdict"
    level = f"{comparison.level:.10g}"
    if judged and expected is None:
        say(
            f"{metrics}, judged together by Holm's method: if nothing had changed, none would be better, worse or "
            f"different, with a probability of {level}; each interval holds by itself"
        )
    elif judged:
        say(
            f"{metrics} at level {level}, each by itself: if nothing had changed, about {expected:.2g} would be "
            "better, worse or different by chance alone; --family holm judges all of them together"
        )


def _across(contrast: MetricDifference) -> Across | None:
    return allowed_by(differences_from_json(contrast.differing))


def _contrast_row(contrast: MetricDifference, together: bool, across: Collection[Across]) -> list[str]:
    compared = contrast.differing and contrast.difference is not None
    how = " (across sampling)" if _across(contrast) in across else " (forced)"
    interval, answers = contrast.interval, contrast.answers
    left_out = {"A": contrast.n_only_a, "B": contrast.n_only_b}
    p, holm = (contrast.p, contrast.p_holm) if together else (answers and answers.p, answers and answers.holm)
    return [
        CONTRAST_WORDS[contrast.verdict] + (how if compared else ""),
        labelled(contrast.metric, contrast.differs),
        *_side(contrast.a),
        *_side(contrast.b),
        _change(contrast.difference),
        f"{_change(interval.low)} … {_change(interval.high)}" if interval else "",
        contrast.basis,
        shown_items(contrast.n, contrast.groups),
        ", ".join(f"{count:,} only in {side}" for side, count in left_out.items() if count),
        f"{answers.only_a:,} / {answers.only_b:,}" if answers else "",
        "" if p is None or holm is None else f"{p:.2g} ({holm:.2g})",
        describe_differences(differences_from_json(contrast.differing)),
        contrast.no_error,
    ]


def _side(side: ComparedSide | None) -> tuple[str, str]:
    if side is None:
        return "", ""
    value = f"{side.value:.5g}" if isinstance(side.value, float) else str(side.value)
    if side.low is None or side.high is None:
        return value, error_bar(side.stderr)
    return value, f"[{float(side.low):.4g}, {float(side.high):.4g}]"


def _change(value: Number | None) -> str:
    return f"{value:+.4g}" if isinstance(value, float) else "" if value is None else str(value)


def contrast_rows(comparison: Comparison) -> list[Row]:
    rows: list[Row] = []
    for contrast in comparison.contrasts:
        row = fields_of(contrast)
        for name in ("a", "b", "interval", "answers"):
            del row[name]
        for name, side in (("a", contrast.a), ("b", contrast.b)):
            row |= {name: side and side.value}
            for field in ("stderr", "low", "high", "n", "groups", "protocol"):
                row |= {f"{name}_{field}": side and getattr(side, field)}
        row |= {end: contrast.interval and getattr(contrast.interval, end) for end in ("low", "high")}
        row |= {name: contrast.answers and getattr(contrast.answers, name) for name in ("only_a", "only_b", "holm")}
        row["differing"] = describe_differences(differences_from_json(contrast.differing))
        rows.append(row | {"differs": describe_fields(contrast.differs)})
    return rows


def print_difference_curves(
    comparison: RunComparison, *, headline: Sequence[str] = (), every_step: bool = True
) -> None:
    """Print two runs: a table per metric and its crossings, or a screen of rows with the last step of each metric."""
    places = [Place(curve.metric, "", curve.protocol or "") for curve in comparison.curves]
    curves = [comparison.curves[place] for place in divide_rows(places).shown]
    _say_sides(comparison, [curve.verdict[-1] for curve in curves], " at the last step of each metric")
    if "sampling" in comparison.across and any(curve.protocol is None for curve in comparison.curves):
        say(ACROSS_SAMPLING)
    if every_step:
        band = f"{percent(comparison.level)} interval, {comparison.band}"
        for curve in comparison.curves:
            say(about_curve(curve))
            columns = [comparison.x, "A", "± A", "B", "± B", "B − A", band, "basis", "B is"]
            rows = [_step_row(curve, place) for place in range(len(curve.x))]
            print_table(columns, rows, ("± A", "± B"), drop=("basis", "± A", "± B"))
            for line in _crossing_lines(curve, comparison.band):
                say(line)
            say()
    elif comparison.curves:
        curves.sort(key=lambda curve: _rank(curve.metric, headline))
        interval = f"{percent(comparison.level)} interval"
        columns = ["B is", "metric", comparison.x, "A", "B", "B − A", interval, "covers zero", "beyond noise"]
        rows = [_last_row(curve) for curve in curves]
        drop, width = ("beyond noise", "A", "B", "covers zero"), terminal_width() or PIPE
        kept = fitting(len(rows), lambda count: len(table_lines(columns, rows[:count], drop=drop, width=width)))
        print_table(columns, rows[:kept], drop=drop, width=width)
        say("each row is the last step that both runs have")
        if hidden := len(comparison.curves) - kept:
            say(f"not shown: {counted(hidden, 'metric')}, companions among them", err=True)
        say("--metric NAME shows every step of a metric, and --all every metric", err=True)
    for reason in dict.fromkeys(comparison.refused.values()):
        metrics = [metric for metric, own in comparison.refused.items() if own == reason]
        say(f"left out, since steps have different protocols ({reason}): {first_few(metrics, 3)}")
    if not comparison.curves and not comparison.refused:
        say("the runs have no metric in common at any step")


def _last_row(curve: DifferenceCurve) -> list[str]:
    step, a, _, b, _, change, interval, _, verdict = _step_row(curve, len(curve.x) - 1)
    crossings = ((curve.first_indistinguishable, curve.indistinguishable_from), (curve.first_apart, curve.apart_from))
    words = [
        f"from {always}" if always is not None else "never" if first is None else f"first {first}"
        for first, always in crossings
    ]
    return [verdict, labelled(curve.metric, curve.differs), step, a, b, change, interval, *words]


def _step_row(curve: DifferenceCurve, place: int) -> list[str]:
    low, high = curve.low[place], curve.high[place]
    return [
        str(curve.x[place]),
        *(shown_number(curve.a[place]), error_bar(curve.a_stderr[place])),
        *(shown_number(curve.b[place]), error_bar(curve.b_stderr[place])),
        _change(curve.difference[place]),
        "" if low is None else f"{_change(low)} … {_change(high)}",
        curve.basis[place],
        CONTRAST_WORDS[curve.verdict[place]],
    ]


def _crossing_lines(curve: DifferenceCurve, band: Band) -> Iterator[str]:
    bound = curve.largest_not_excluded
    size = "" if bound is None else f"; differences up to {float(bound):.4g} are not excluded"
    for own_band, first, always, statement, more in (
        ("pointwise", curve.first_indistinguishable, curve.indistinguishable_from, "the interval covers zero", size),
        ("simultaneous", curve.first_apart, curve.apart_from, "the difference is beyond noise", ""),
    ):
        line = f"{band} band: {statement} " + ("at no step" if first is None else f"first at step {first}")
        own = "" if own_band == band else f", by the {own_band} band,"
        yield line if always is None else f"{line}, and{own} at every step from {always} on{more}"
    for before, after in curve.sign_changes:
        yield f"simultaneous band: the difference changes its sign between steps {before} and {after}"


def difference_rows(comparison: RunComparison) -> list[Row]:
    constant = ("metric", "task", "unit", "direction", "protocol", "step_level")
    by_step: tuple[str, ...] = ("a", "a_stderr", "b", "b_stderr", "difference", "stderr", "low", "high")
    by_step += ("verdict", "basis", "n", "groups", "n_only_a", "n_only_b")
    rows: list[Row] = []
    for curve in comparison.curves:
        about = {name: getattr(curve, name) for name in constant} | {"differs": describe_fields(curve.differs)}
        for place, step in enumerate(curve.x):
            rows.append(about | {comparison.x: step} | {name: getattr(curve, name)[place] for name in by_step})
    return rows
