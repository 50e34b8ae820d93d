"""Figure 6: images without captions, with parts of the pre-trained model tuned.

python benchmarks/paper/fig_6.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from collections.abc import Mapping

from fig_3 import smoothed
from study.dot_chart import Dot, dot_chart
from study.finding import Figure, Finding, Report, Row
from study.gaps import GapCurve, gap_of
from study.material import Material
from study.measured import Estimate, Measured, finite, over_seeds
from study.runs import PARTS, PRETRAINED, RANDOM, image_only_name, image_only_runs
from study.scales import Scale

from evalsvc.web.charts import curve_chart

METRIC = "images/image"
LABELS = {PRETRAINED: "all", **PARTS, RANDOM: "random, all"}
"""Labels of what is tuned, by its name in the run's name."""


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the image losses, and the differences from the random start and from the whole that is tuned."""
    runs = {what: [image_only_name(what, seed) for seed in scale.seeds] for what in LABELS}
    curves = [smoothed(measured, runs[what], LABELS[what], "image") for what in LABELS]
    ends = {what: over_seeds([finite(measured.last(run, METRIC).value) for run in runs[what]]) for what in LABELS}
    gap = gap_of(measured, METRIC, scale.seeds, image_only_name)
    parts = {
        what: gap_of(measured, METRIC, scale.seeds, image_only_name, (PRETRAINED, what), f"{LABELS[what]} − all")
        for what in PARTS
    }
    dots = [Dot(LABELS[what], "at the last step", estimate) for what, estimate in ends.items()]
    title = f"Image loss without captions at step {scale.variation.steps:,}, held-out images"
    figures = [
        Figure("fig_6-steps", "Image loss without captions, EMA 0.95 of the curve", curve_chart(curves, along="log")),
        Figure("fig_6-end", title, dot_chart(dots, "nats/token")),
    ]
    same, worse = "both starts have the same loss at the end", "tuning {} ends with more loss than tuning all"
    claims = [
        gap.claim(same, "within", gap.tolerance),
        *(part.claim(worse.format(LABELS[what]), "above", 0.0) for what, part in parts.items()),
    ]
    numbers = {what: estimate.value for what, estimate in ends.items()}
    return Report(_row(ends, gap, scale), figures, claims, [_table(ends, parts)], numbers)


def _table(ends: Mapping[str, Estimate], parts: Mapping[str, GapCurve]) -> str:
    lines = ["| tuned | image loss, seeds | difference from tuning all, seeds |", "|---" * 3 + "|"]
    for what, end in ends.items():
        lines.append(f"| {LABELS[what]} | {end} | {parts[what].last if what in parts else '–'} |")
    return "\n".join(lines)


def _row(ends: Mapping[str, Estimate], gap: GapCurve, scale: Scale) -> Row:
    order = " < ".join(LABELS[what] for what, _ in sorted(ends.items(), key=lambda item: item[1].value))
    return Row(
        paper="On image tokens alone pre-trained weights yield the same loss as random ones, and none of four parts "
        "tuned alone achieves as low a loss as the whole.",
        here=f"Image loss at the end, from low to high: {order}. All tuned, pre-trained − random: {gap.sentence()}.",
        limits=f"{scale.variation.steps:,} of the main runs' {scale.main.steps:,} steps.",
    )


FINDING = Finding("fig_6", "Figure 6: images alone, parts tuned", image_only_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
