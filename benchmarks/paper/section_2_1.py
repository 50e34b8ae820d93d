"""Section 2.1: do both starts reach the same loss with other learning rates and batches?

python benchmarks/paper/section_2_1.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from collections.abc import Mapping

from fig_3 import NO_DIFFERENCE, verdict
from study.dot_chart import Dot, dot_chart
from study.finding import Agrees, Figure, Finding, Report, Row
from study.gaps import GapCurve, gap_of, of_items
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
    return Report(_row(gaps, scale), [figure], [_table(settings, gaps, scale)], numbers)


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
    lines = [f"| setting | rate | batch | {' | '.join(heads)} | mean, seeds | same loss? |"]
    lines.append("|---" * (5 + len(heads)) + "|")
    for setting in settings:
        gap, training = gaps[setting.label], setting.training
        seeds = [str(of_items(curve)[-1]) for curve in gap.by_seed]
        rate, batch = f"{training.learning_rate:g}", str(training.batch)
        lines.append("| " + " | ".join([setting.label, rate, batch, *seeds, str(gap.last), verdict(gap)]) + " |")
    return "\n".join(lines)


def _row(gaps: Mapping[str, GapCurve], scale: Scale) -> Row:
    parts = [f"{label} {gap.last}" for label, gap in gaps.items()]
    seeds = len(scale.seeds)
    return Row(
        paper="Other learning rates and batches do not change the conclusion.",
        here=f"Gap of the image loss, pre-trained − random, at step {scale.variation.steps:,}: {'; '.join(parts)}. The "
        f"gap before the training is {short(next(iter(gaps.values())).first.value)}.",
        agrees=agrees([verdict(gap) for gap in gaps.values()]),
        limits=f"{seeds} {'seeds' if seeds > 1 else 'seed'} a setting and {scale.variation.steps:,} of the main runs' "
        f"{scale.main.steps:,} steps, so that a gap may still be closing; each setting is judged by figure 3's rule.",
    )


def agrees(verdicts: list[Agrees]) -> Agrees:
    """Return whether every setting comes to the conclusion of the paper, that both starts reach the same loss.

    `yes`: every setting does. `no`: more than half do not. `in part`: anything else.
    """
    if set(verdicts) == {"yes"}:
        return "yes"
    return "no" if verdicts.count("no") > len(verdicts) / 2 else "in part"


FINDING = Finding("section_2_1", "Section 2.1: other learning rates and batches", variation_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
