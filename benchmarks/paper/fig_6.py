"""Figure 6: images without captions, with parts of the pre-trained model tuned.

python benchmarks/paper/fig_6.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from study.dot_chart import Dot, dot_chart
from study.finding import Agrees, Figure, Finding, Report, Row
from study.gaps import of_items
from study.material import Material
from study.measured import Estimate, Measured, of_point
from study.runs import PARTS, part_runs
from study.scales import Scale

from evalsvc.web.charts import curve_chart

METRIC = "images/image"
RANDOM = "images-random"


def labels() -> dict[str, str]:
    """Return the label of each run."""
    return {f"images-{part}": label for part, (label, _) in PARTS.items()} | {RANDOM: "random, all"}


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the image loss of each run and its paired difference from the random start."""
    curves = [measured.curve(run, METRIC, label=label) for run, label in labels().items()]
    ends = {run: of_point(measured.last(run, METRIC)) for run in labels()}
    gaps = {run: of_items(measured.differences(RANDOM, run, METRIC))[-1] for run in labels() if run != RANDOM}
    dots = [Dot(labels()[run], "at the last step", estimate) for run, estimate in ends.items()]
    title = f"Image loss without captions at step {scale.variation.steps:,}"
    figures = [
        Figure("fig_6-steps", "Image loss without captions by step", curve_chart(curves, along="log")),
        Figure("fig_6-end", title, dot_chart(dots, "nats/token")),
    ]
    numbers = {run: estimate.value for run, estimate in ends.items()}
    return Report(_row(ends, gaps), figures, [_table(ends, gaps)], numbers)


def _table(ends: dict[str, Estimate], gaps: dict[str, Estimate]) -> str:
    lines = ["| tuned | image loss | difference from the random start |", "|---|---|---|"]
    lines += [f"| {labels()[run]} | {end} | {gaps.get(run, '–')} |" for run, end in ends.items()]
    return "\n".join(lines)


def _row(ends: dict[str, Estimate], gaps: dict[str, Estimate]) -> Row:
    order = " < ".join(labels()[run] for run, _ in sorted(ends.items(), key=lambda item: item[1].value))
    return Row(
        paper="On image tokens alone the pre-trained weights are no more effective than random ones, whichever parts "
        "are tuned.",
        here=f"Image loss at the end, from low to high: {order}. All parts tuned, pre-trained − random: "
        f"{gaps['images-all']}.",
        agrees=_agrees(gaps),
        limits="One seed and a third of the main runs' steps; intervals are those of the held-out images, not of "
        "another training.",
    )


def _agrees(gaps: dict[str, Estimate]) -> Agrees:
    """Return `no` if a part of the pre-trained model, tuned alone, ends clearly below the random start."""
    helps = [run for run, gap in gaps.items() if gap.value < 0 and not gap.covers_zero]
    return "yes" if not helps else "in part" if helps == ["images-all"] else "no"


FINDING = Finding("fig_6", "Figure 6: images alone, parts tuned", part_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
