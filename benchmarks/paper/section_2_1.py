"""Section 2.1: do both starts reach the same loss with other learning rates and batches?

python benchmarks/paper/section_2_1.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from collections.abc import Mapping

from study.dot_chart import Dot, dot_chart
from study.finding import Figure, Finding, Report, Row
from study.gaps import NO_DIFFERENCE, GapCurve, gap_of, of_items
from study.material import Material
from study.measured import Estimate, Measured, short
from study.runs import Variation, variation_runs, variations
from study.scales import Scale

METRIC = "pairs/image"


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the gap of the image loss at the end under every setting."""
    settings = list(variations(scale))
    gaps = {setting.label: gap_of(measured, METRIC, scale.seeds, setting.run) for setting in settings}
    title = f"Gap of the image loss at step {scale.variation.steps:,}"
    figure = Figure("section_2_1", title, dot_chart(_dots(gaps), "pre-trained − random, nats/token", [NO_DIFFERENCE]))
    numbers = {label: gap.last.value for label, gap in gaps.items()}
    claims = [gap.claim(f"{label}: the same loss", "within", gap.tolerance) for label, gap in gaps.items()]
    better = [label for label, gap in gaps.items() if gap.last.high is not None and gap.last.high < 0]
    against = f"Images are learned better from the pre-trained start with: {', '.join(better)}." if better else ""
    return Report(_row(gaps, scale), [figure], claims, [_table(settings, gaps, scale)], numbers, against)


def _dots(gaps: Mapping[str, GapCurve]) -> list[Dot]:
    """Return the single seeds, and over them the mean of each setting with its interval."""
    singles = [
        Dot(label, "single seeds", Estimate(of_items(curve)[-1].value, None, None))
        for label, gap in gaps.items()
        for curve in gap.by_seed
    ]
    return singles + [Dot(label, "mean of seeds", gap.last) for label, gap in gaps.items()]


def _table(settings: list[Variation], gaps: Mapping[str, GapCurve], scale: Scale) -> str:
    heads = [f"seed {seed}, items" for seed in scale.seeds]
    lines = [f"| setting | rate | batch | {' | '.join(heads)} | mean, seeds |"]
    lines.append("|---" * (4 + len(heads)) + "|")
    for setting in settings:
        gap, training = gaps[setting.label], setting.training
        seeds = [str(of_items(curve)[-1]) for curve in gap.by_seed]
        rate, batch = f"{training.learning_rate:g}", str(training.batch)
        lines.append("| " + " | ".join([setting.label, rate, batch, *seeds, str(gap.last)]) + " |")
    return "\n".join(lines)


def _row(gaps: Mapping[str, GapCurve], scale: Scale) -> Row:
    parts = [f"{label} {gap.last}" for label, gap in gaps.items()]
    return Row(
        paper="Learning rates from 0.00005 to 0.0003 and batches from 0.5 to 2 million tokens have no significant "
        "influence on the conclusions.",
        here=f"Gap of the image loss, pre-trained − random, at step {scale.variation.steps:,}: {'; '.join(parts)}. The "
        f"gap before the training is {short(next(iter(gaps.values())).first.value)}.",
        limits=f"{scale.variation.steps:,} of the main runs' {scale.main.steps:,} steps, so that a gap may still be "
        "closing. The paper chose other rates and batches.",
    )


FINDING = Finding("section_2_1", "Section 2.1: other learning rates and batches", variation_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
