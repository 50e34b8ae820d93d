"""Figure 3: perplexity by training step, pre-trained against random.

python benchmarks/paper/fig_3.py --work DIR [--scale miniature|quick|real]
"""

from __future__ import annotations

from study.finding import Agrees, Figure, Finding, Report, Row
from study.gaps import GapCurve, gap_of
from study.material import Material
from study.measured import Measured, finite, mean_curve, short
from study.runs import PRETRAINED, RANDOM, STARTS, main_name, main_runs
from study.scales import Scale

from evalsvc.web.charts import curve_chart
from evalsvc.web.curves import Curve, Line

TITLES = {PRETRAINED: "pre-trained", RANDOM: "random"}
METRIC, PERPLEXITY = "pairs/total", "pairs/total_perplexity"
SMALL = 0.1
"""Share of the gap before the training below which a gap counts as small."""
NO_DIFFERENCE = Line(0.0, "no difference")


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read perplexities, averages and the gap of the loss."""
    gap = gap_of(measured, METRIC, scale.seeds, main_name)
    seeds = "mean of seeds" if len(scale.seeds) > 1 else "seed 0"
    curves = [_mean(measured, scale, start, "raw", TITLES[start]) for start in STARTS]
    averages = [
        _mean(measured, scale, start, _variant(decay), f"{TITLES[start]}, EMA {decay:g}")
        for decay in scale.ema
        for start in STARTS
    ]
    figures = [
        Figure("fig_3-perplexity", f"Perplexity of held-out pairs, {seeds}", _along_steps(curves)),
        Figure("fig_3-ema", f"Perplexity with averaged weights, {seeds}", _along_steps([*curves, *averages])),
        Figure("fig_3-gap", "Gap of the total loss by step", gap_chart(gap)),
    ]
    first = gap.by_seed[0]
    numbers = {"gap": gap.last.value, "gap_0": finite(first.difference[-1])}
    if (error := first.stderr[-1]) is not None:
        numbers["gap_0_stderr"] = finite(error)
    numbers |= {f"total_{start}": _final(measured, scale, start) for start in STARTS}
    return Report(_row(gap, numbers, scale), figures, [_ema_sentence(curves, averages)], numbers)


def _mean(measured: Measured, scale: Scale, start: str, variant: str, label: str) -> Curve:
    return mean_curve(
        [measured.curve(main_name(start, seed), PERPLEXITY, variant, label) for seed in scale.seeds], label
    )


def _variant(decay: float) -> str:
    return f"ema_{decay!r}"


def _along_steps(curves: list[Curve]) -> dict[str, object]:
    return curve_chart(curves, scale="log", along="log")


def gap_chart(gap: GapCurve) -> dict[str, object]:
    """Return the chart of a gap by seed and of the mean, with the line of no difference."""
    return curve_chart(gap.curves(), lines=[NO_DIFFERENCE], along="log")


def _final(measured: Measured, scale: Scale, start: str) -> float:
    """Return the total loss of the first seed's run at its last step."""
    return finite(measured.last(main_name(start, scale.seeds[0]), METRIC).value)


def _ema_sentence(curves: list[Curve], averages: list[Curve]) -> str:
    parts = [f"{curve.label} {short(finite(curve.series.last[-1]))}" for curve in [*curves, *averages]]
    return "Perplexity at the last step: " + ", ".join(parts) + "."


def verdict(gap: GapCurve) -> Agrees:
    """Return whether the gap closes.

    `yes`: the last interval covers zero and is narrow, with no end beyond `SMALL` of the first gap. `in part`: the last
    interval covers zero and is wider, or the last gap is below `SMALL` of the first one. `no`: anything else.
    """
    last, small = gap.last, SMALL * abs(gap.first.value)
    if last.covers_zero and last.farthest <= small:
        return "yes"
    return "in part" if last.covers_zero or abs(last.value) < small else "no"


def no_better(gap: GapCurve) -> Agrees:
    """Return whether the first side of a gap is no better than the other one, by the rule of `verdict`.

    `yes`: the last interval reaches zero or lies above it, and its lower end is not below zero by more than `SMALL` of
    the first gap. `in part`: the last interval reaches zero and is wider, or the last gap is below zero by less than
    `SMALL` of the first one. `no`: anything else.
    """
    last, small = gap.last, SMALL * abs(gap.first.value)
    reaches_zero = last.covers_zero or last.value > 0
    if reaches_zero and last.low is not None and last.low >= -small:
        return "yes"
    return "in part" if reaches_zero or last.value > -small else "no"


def _row(gap: GapCurve, numbers: dict[str, float], scale: Scale) -> Row:
    seeds = len(scale.seeds)
    return Row(
        paper="Both starts reach the same perplexity on image–caption pairs.",
        here=f"Gap of the total loss, pre-trained − random: {gap.sentence()}. "
        f"First seed: {short(numbers['total_pretrained'])} against {short(numbers['total_random'])} nats/token.",
        agrees=verdict(gap),
        limits=f"{seeds} {'seeds' if seeds > 1 else 'seed'}; a gap below the width of the interval cannot be seen, and "
        "one training of a small model says nothing about 100 billion tokens.",
    )


FINDING = Finding("fig_3", "Figure 3: perplexity by step", main_runs, report, frozenset({"quick", "miniature", "real"}))


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
