"""Figure 3: perplexity by training step, pre-trained against random.

python benchmarks/paper/fig_3.py --work DIR [--scale miniature|quick|real]
"""

from __future__ import annotations

import math

from study.finding import Figure, Finding, Report, Row
from study.gaps import gap_of
from study.material import Material
from study.measured import Estimate, Measured, estimated_curve, finite, mean_curve, short
from study.runs import PRETRAINED, RANDOM, STARTS, main_name, main_runs
from study.scales import Scale

from evalsvc.web.charts import curve_chart
from evalsvc.web.curves import Curve

TITLES = {PRETRAINED: "pre-trained", RANDOM: "random"}
METRIC, PERPLEXITY = "pairs/total", "pairs/total_perplexity"


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the perplexities of training batches and of held-out pairs, and the gap of the loss."""
    gap = gap_of(measured, METRIC, scale.seeds, main_name)
    trained = [smoothed(measured, [main_name(start, seed) for seed in scale.seeds], TITLES[start]) for start in STARTS]
    curves = [_mean(measured, scale, start) for start in STARTS]
    figures = [
        Figure("fig_3-training", "Perplexity of training batches, EMA 0.95 of the curve", _along_steps(trained)),
        Figure("fig_3-perplexity", "Perplexity of held-out pairs", _along_steps(curves)),
        Figure("fig_3-gap", "Gap of the total loss by step", gap.chart()),
    ]
    first = gap.by_seed[0]
    numbers = {"gap_0": finite(first.difference[-1]), "gap_0_stderr": finite(first.stderr[-1] or 0.0)}
    numbers |= {
        f"total_{start}": finite(measured.last(main_name(start, scale.seeds[0]), METRIC).value) for start in STARTS
    }
    row = Row(
        paper="The loss of the pre-trained model aligns closely with that of the random one during the whole training.",
        here=f"Gap of the total loss, pre-trained − random: {gap.first} at step 0, {gap.sentence()}. First seed: "
        f"{short(numbers['total_pretrained'])} against {short(numbers['total_random'])} nats/token.",
        limits="The loss is judged at the end: before, the random rows of a small model decide. One small model says "
        "nothing about 100 billion tokens.",
    )
    claims = [gap.claim("the total loss is the same at the end", "within", gap.tolerance)]
    return Report(row, figures, claims, [_averages(measured, scale)] if scale.ema else [], numbers)


def smoothed(measured: Measured, runs: list[str], label: str, part: str | None = None) -> Curve:
    """Return the mean over runs of the smoothed training curve: perplexity, or the loss of one type of tokens."""
    curves = []
    for run in runs:
        points = measured.trained(run, part)
        values = [(step, Estimate(math.exp(loss) if part is None else loss, None, None)) for step, loss in points]
        unit = "perplexity" if part is None else "nats/token"
        curves.append(estimated_curve(label, f"training batches, {part or 'all tokens'}", unit, values))
    return mean_curve(curves, label)


def _mean(measured: Measured, scale: Scale, start: str, variant: str = "raw") -> Curve:
    runs = [main_name(start, seed) for seed in scale.seeds]
    return mean_curve([measured.curve(run, PERPLEXITY, variant, TITLES[start]) for run in runs], TITLES[start])


def _along_steps(curves: list[Curve]) -> dict[str, object]:
    return curve_chart(curves, scale="log", along="log")


def _averages(measured: Measured, scale: Scale) -> str:
    """Return the perplexities of averaged weights, which the paper has not: its EMA smooths the curve."""
    parts = [
        f"{curve.label} {short(finite(curve.series.last[-1]))} (EMA {decay:g})"
        for decay in scale.ema
        for curve in (_mean(measured, scale, start, f"ema_{decay!r}") for start in STARTS)
    ]
    return f"Not in the paper: perplexity of held-out pairs at the end with averaged weights, {', '.join(parts)}."


FINDING = Finding("fig_3", "Figure 3: perplexity by step", main_runs, report, frozenset({"quick", "miniature", "real"}))


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
