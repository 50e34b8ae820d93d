"""Figure 6: images without captions, with parts of the pre-trained model tuned.

python benchmarks/paper/fig_6.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fig_3 import no_better
from study.dot_chart import Dot, dot_chart
from study.finding import Agrees, Figure, Finding, Report, Row
from study.gaps import GapCurve, gap_of
from study.material import Material
from study.measured import Estimate, Measured, short
from study.runs import PARTS, PRETRAINED, RANDOM, image_only_name, image_only_runs
from study.scales import Scale

from evalsvc.web.charts import curve_chart

METRIC = "images/image"
LABELS = {PRETRAINED: "all", **PARTS, RANDOM: "random, all"}
"""Labels of what is tuned, by its name in the run's name."""


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the image loss of the runs of the first seed, and the differences from the random start over seeds."""
    runs = {what: image_only_name(what, scale.seeds[0]) for what in LABELS}
    curves = [measured.curve(run, METRIC, label=LABELS[what]) for what, run in runs.items()]
    ends = {what: measured.last(run, METRIC).estimate for what, run in runs.items()}
    gaps = {what: gap_of(measured, METRIC, scale.seeds, image_only_name, what) for what in LABELS if what != RANDOM}
    dots = [Dot(LABELS[what], "at the last step", estimate) for what, estimate in ends.items()]
    title = f"Image loss without captions at step {scale.variation.steps:,}"
    figures = [
        Figure("fig_6-steps", "Image loss without captions by step", curve_chart(curves, along="log")),
        Figure("fig_6-end", title, dot_chart(dots, "nats/token")),
    ]
    numbers = {what: estimate.value for what, estimate in ends.items()}
    return Report(_row(ends, gaps, scale), figures, [_table(ends, gaps)], numbers)


def _table(ends: Mapping[str, Estimate], gaps: Mapping[str, GapCurve]) -> str:
    lines = [
        "| tuned | image loss, first seed | difference from the random start, seeds | no better? |",
        "|---" * 4 + "|",
    ]
    for what, end in ends.items():
        compared = f"{gaps[what].last} | {no_better(gaps[what])}" if what in gaps else "– | –"
        lines.append(f"| {LABELS[what]} | {end} | {compared} |")
    return "\n".join(lines)


def _row(ends: Mapping[str, Estimate], gaps: Mapping[str, GapCurve], scale: Scale) -> Row:
    order = " < ".join(LABELS[what] for what, _ in sorted(ends.items(), key=lambda item: item[1].value))
    gap, seeds = gaps[PRETRAINED].last, len(scale.seeds)
    between = "" if gap.deviation is None else f", between seeds ± {short(gap.deviation)}"
    better = "" if gap.low is None or gap.low > 0 else f"; not excluded: better by up to {short(-gap.low)}"
    return Row(
        paper="On image tokens alone the pre-trained weights are no more effective than random ones, whichever parts "
        "are tuned.",
        here=f"Image loss at the end, first seed, from low to high: {order}. All parts tuned, pre-trained − random: "
        f"{gap}{between}{better}.",
        agrees=agrees(gaps.values()),
        limits=f"{seeds} {'seeds' if seeds > 1 else 'seed'} of each; {scale.variation.steps:,} of the main runs' "
        f"{scale.main.steps:,} steps; each part is judged by figure 3's rule, on the side where it is better.",
    )


def agrees(gaps: Iterable[GapCurve]) -> Agrees:
    """Return whether every start and part is no better than the random start; a single `no` contradicts the paper."""
    verdicts = {no_better(gap) for gap in gaps}
    return "no" if "no" in verdicts else "yes" if verdicts == {"yes"} else "in part"


FINDING = Finding("fig_6", "Figure 6: images alone, parts tuned", image_only_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
