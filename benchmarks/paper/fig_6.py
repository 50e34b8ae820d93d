"""Figure 6: images without captions, with parts of the pre-trained model tuned.

python benchmarks/paper/fig_6.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from collections.abc import Mapping

from study.dot_chart import Dot, dot_chart
from study.finding import Agrees, Figure, Finding, Report, Row
from study.gaps import gap_of, of_items
from study.material import Material
from study.measured import Estimate, Measured, of_point, short
from study.runs import PARTS, PRETRAINED, RANDOM, image_only_name, image_only_runs
from study.scales import Scale

from evalsvc.web.charts import curve_chart

METRIC = "images/image"
LABELS = {PRETRAINED: "all", **PARTS, RANDOM: "random, all"}
"""Labels of what is tuned, by its name in the run's name."""


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the image loss of the runs of the first seed, and the differences from the random start.

    The difference of the start that is tuned as a whole is over seeds; that of a part is the first seed's.
    """
    runs = {what: image_only_name(what, scale.seeds[0]) for what in LABELS}
    curves = [measured.curve(run, METRIC, label=LABELS[what]) for what, run in runs.items()]
    ends = {what: of_point(measured.last(run, METRIC)) for what, run in runs.items()}
    gaps = {part: of_items(measured.differences(runs[RANDOM], runs[part], METRIC))[-1] for part in PARTS}
    gaps[PRETRAINED] = gap_of(measured, METRIC, scale.seeds, image_only_name).last
    dots = [Dot(LABELS[what], "at the last step", estimate) for what, estimate in ends.items()]
    title = f"Image loss without captions at step {scale.variation.steps:,}"
    figures = [
        Figure("fig_6-steps", "Image loss without captions by step", curve_chart(curves, along="log")),
        Figure("fig_6-end", title, dot_chart(dots, "nats/token")),
    ]
    numbers = {what: estimate.value for what, estimate in ends.items()}
    return Report(_row(ends, gaps, scale), figures, [_table(ends, gaps)], numbers)


def _table(ends: Mapping[str, Estimate], gaps: Mapping[str, Estimate]) -> str:
    lines = ["| tuned | image loss | difference from the random start |", "|---|---|---|"]
    lines += [f"| {LABELS[what]} | {end} | {gaps.get(what, '–')} |" for what, end in ends.items()]
    return "\n".join(lines)


def _row(ends: Mapping[str, Estimate], gaps: Mapping[str, Estimate], scale: Scale) -> Row:
    order = " < ".join(LABELS[what] for what, _ in sorted(ends.items(), key=lambda item: item[1].value))
    gap, seeds = gaps[PRETRAINED], len(scale.seeds)
    between = "" if gap.deviation is None else f", between seeds ± {short(gap.deviation)}"
    return Row(
        paper="On image tokens alone the pre-trained weights are no more effective than random ones, whichever parts "
        "are tuned.",
        here=f"Image loss at the end, first seed, from low to high: {order}. All parts tuned, pre-trained − random: "
        f"{gap}{between}.",
        agrees=agrees(gaps),
        limits=f"{seeds} {'seeds' if seeds > 1 else 'seed'} where all parts are tuned; parts have one, with the "
        f"intervals of the held-out images; {scale.variation.steps:,} of the main runs' {scale.main.steps:,} steps.",
    )


def agrees(gaps: Mapping[str, Estimate]) -> Agrees:
    """Return whether pre-trained weights are no better than random ones, by the differences from the random start.

    `yes`: no interval is below zero. `in part`: only that of the pre-trained model tuned as a whole is. `no`: that of a
    part is.
    """
    better = {what for what, gap in gaps.items() if gap.value < 0 and not gap.covers_zero}
    return "yes" if not better else "in part" if better == {PRETRAINED} else "no"


FINDING = Finding("fig_6", "Figure 6: images alone, parts tuned", image_only_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
