"""Section 2.1: does the conclusion keep its sign with other learning rates and batches?

python benchmarks/paper/section_2_1.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from fig_3 import NO_DIFFERENCE
from study.dot_chart import Dot, dot_chart
from study.finding import Agrees, Figure, Finding, Report, Row
from study.gaps import SeedSpread, gap_of, of_items
from study.material import Material
from study.measured import Estimate, Measured, finite, short
from study.runs import PRETRAINED, RANDOM, PlannedRun, Variation, main_name, main_runs, variation_runs, variations
from study.scales import Scale

METRIC = "pairs/image"


def runs(scale: Scale, material: Material) -> list[PlannedRun]:
    """Return both starts under every setting, and the main runs, whose seeds say how far a gap may be from zero."""
    return [*variation_runs(scale, material), *main_runs(scale, material)]


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the gap of the image loss at the end under every setting."""
    settings = list(variations(scale))
    gaps = {setting.label: _gap(measured, setting) for setting in settings}
    dots = [Dot(label, "pre-trained − random", gap) for label, gap in gaps.items()]
    title = f"Gap of the image loss at step {scale.variation.steps:,}"
    figure = Figure("section_2_1", title, dot_chart(dots, "pre-trained − random, nats/token", [NO_DIFFERENCE]))
    numbers = {label: gap.value for label, gap in gaps.items()}
    spread = gap_of(measured, METRIC, scale.seeds, main_name).seed_spread(scale.variation.steps)
    return Report(_row(gaps, spread, scale), [figure], [_table(measured, settings, gaps)], numbers)


def _gap(measured: Measured, setting: Variation) -> Estimate:
    curve = measured.differences(f"{setting.key}-{RANDOM}", f"{setting.key}-{PRETRAINED}", METRIC)
    return of_items(curve)[-1]


def _table(measured: Measured, settings: list[Variation], gaps: dict[str, Estimate]) -> str:
    lines = ["| setting | rate | batch | pre-trained | random | difference |", "|---" * 6 + "|"]
    for setting in settings:
        ends = [short(finite(measured.last(f"{setting.key}-{start}", METRIC).value)) for start in (PRETRAINED, RANDOM)]
        training = setting.training
        cells = [setting.label, f"{training.learning_rate:g}", str(training.batch), *ends, str(gaps[setting.label])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(gaps: dict[str, Estimate], spread: SeedSpread | None, scale: Scale) -> Row:
    parts = "; ".join(f"{label} {gap}" for label, gap in gaps.items())
    seeds = ""
    if spread is not None:
        seeds = (
            f" Between seeds the gap of the main runs deviates by ± {short(spread.deviation)} at step {spread.step:,}, "
            f"so the gap of one training within ± {short(spread.reach)} is no evidence."
        )
    return Row(
        paper="Other learning rates and batches do not change the conclusion.",
        here=f"Gap of the image loss, pre-trained − random, at step {scale.variation.steps:,}: {parts}.{seeds}",
        agrees=agrees(list(gaps.values()), spread.reach if spread else 0.0),
        limits="One seed a setting and a third of the main runs' steps, so that a gap may still be closing; intervals "
        "are those of the held-out images.",
    )


def agrees(gaps: list[Estimate], reach: float) -> Agrees:
    """Return whether no setting shows an advantage of the pre-trained start.

    `yes`: no interval over held-out images is below zero. `no`: most of them are, and farther from zero than `reach`,
    by which seeds move a gap. `in part`: anything else.
    """
    below = [gap for gap in gaps if gap.value < 0 and not gap.covers_zero]
    shown = [gap for gap in below if gap.value < -reach]
    return "yes" if not below else "no" if len(shown) > len(gaps) / 2 else "in part"


FINDING = Finding("section_2_1", "Section 2.1: other learning rates and batches", runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
