"""Table 1 and section 2.2: completions at every step, and what is left of the language by benchmark.

python benchmarks/paper/table_1.py --work DIR [--scale miniature|quick|real]
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fig_3 import TITLES
from study.finding import Agrees, Figure, Finding, Report, Row
from study.gaps import last_unbroken
from study.material import Material
from study.measured import Estimate, Measured, finite, short, values_of
from study.runs import PRETRAINED, STARTS, PlannedRun, main_name, main_runs, replay_run
from study.scales import Scale

from evalsvc.web.charts import curve_chart
from evalsvc.web.curves import Curve, Line

REPLAY = "replay-0"
WIDTH = 120
"""Most characters of a completion in the table."""


def runs(scale: Scale, material: Material) -> list[PlannedRun]:
    """Return the main runs and the counter-experiment, where the scale has one."""
    return [*main_runs(scale, material), *([replay_run(scale, material)] if scale.replay else [])]


def labelled(scale: Scale) -> dict[str, str]:
    """Return the runs whose language is measured, with their labels."""
    labels = {main_name(start, scale.seeds[0]): TITLES[start] for start in STARTS}
    return labels | ({REPLAY: f"pre-trained, {scale.replay:.0%} plain text"} if scale.replay else {})


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read accuracies, the loss of English, and the completions."""
    labels = labelled(scale)
    figures = [
        _figure(measured, labels, f"{name}/acc", f"Right answers to {name}", f"table_1-{name}")
        for name in scale.benchmarks
    ]
    figures.append(_figure(measured, labels, "forgetting/loss", "Loss of held-out English", "table_1-loss"))
    curves = {name: measured.curve(main_name(PRETRAINED, scale.seeds[0]), f"{name}/acc") for name in scale.benchmarks}
    gone = {name: forgotten_from(curve) for name, curve in curves.items()}
    tables = [_accuracies(measured, labels, scale), *_completions(measured, labels)]
    numbers = {f"{name}_last": finite(curve.series.last[-1]) for name, curve in curves.items()}
    if scale.replay:
        numbers["replay_last"] = finite(measured.last(REPLAY, f"{scale.benchmarks[0]}/acc").value)
    return Report(_row(measured, scale, curves, gone), figures, tables, numbers)


def _figure(measured: Measured, labels: dict[str, str], metric: str, title: str, name: str) -> Figure:
    curves = [measured.curve(run, metric, label=label) for run, label in labels.items()]
    chance = curves[0].series.baseline if metric.endswith("/acc") else None
    lines = [Line(chance, f"chance {chance:.4g}")] if isinstance(chance, float) else []
    return Figure(name, title, curve_chart(curves, lines=lines, along="log"))


def forgotten_from(curve: Curve) -> int | None:
    """Return the step from which on the interval of an accuracy holds chance; None if the last one does not."""
    series = curve.series
    chance = series.baseline if isinstance(series.baseline, float) else 0.0
    return last_unbroken(series.x, [low is not None and low <= chance for low in series.low])


def _accuracies(measured: Measured, labels: dict[str, str], scale: Scale) -> str:
    metrics = [f"{name}/acc" for name in scale.benchmarks] + ["forgetting/text_retained", "forgetting/loss"]
    lines = ["| run | step | " + " | ".join(metrics) + " |", "|---|---" + "|---" * len(metrics) + "|"]
    for run, label in labels.items():
        columns = {metric: _by_step(measured, run, metric) for metric in metrics}
        for step in columns[metrics[0]]:
            cells = (str(columns[metric].get(step, "–")) for metric in metrics)
            lines.append(f"| {label} | {step:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _by_step(measured: Measured, run: str, metric: str) -> dict[int, Estimate]:
    """Return the finite values of a metric by step; empty if the run lacks the metric."""
    try:
        values = values_of(measured.curve(run, metric))
    except LookupError:
        return {}
    return {value.x: value.estimate for value in values if isinstance(value.value, float)}


def _completions(measured: Measured, labels: dict[str, str]) -> list[str]:
    """Return a table of the completions of each prompt."""
    texts = {run: measured.completions(run) for run in labels}
    tables = []
    for prompt in next(iter(texts.values())):
        lines = [f"`{one_line(prompt)}`", "", "| run | step | completion |", "|---|---|---|"]
        for run, label in labels.items():
            rows = sorted(texts[run].get(prompt, {}).items())
            lines += [f"| {label} | {step:,} | `{one_line(shortened(text))}` |" for step, text in rows]
        tables.append("\n".join(lines))
    return tables


def shortened(text: str) -> str:
    """Return a completion with repeated tokens such as `‹image 7›` once, with their number, cut after `WIDTH`."""
    text = re.sub(r"(‹[^›]+›)\1+", lambda found: f"{found[1]} × {len(found[0]) // len(found[1])} ", text)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def one_line(text: str) -> str:
    """Return a text for a cell: with visible line ends, and without characters that end a cell or a code span."""
    plain = text.replace("\n", "⏎").replace("|", "¦").replace("`", "ˋ")
    return "".join(character if character.isprintable() else "�" for character in plain) or " "


def _row(measured: Measured, scale: Scale, curves: dict[str, Curve], gone: dict[str, int | None]) -> Row:
    parts = []
    for name, curve in curves.items():
        values = values_of(curve)
        first, last = values[0], values[-1]
        text = f"{name}: {first.estimate} at step 0, {last.estimate} at step {last.x:,}, "
        parts.append(text + _since(curve, gone[name]))
    if scale.replay:
        kept = measured.last(REPLAY, f"{scale.benchmarks[0]}/acc").estimate
        image = [finite(measured.last(run, "pairs/image").value) for run in (REPLAY, main_name(PRETRAINED, 0))]
        parts.append(
            f"with {scale.replay:.0%} plain text among the captions {kept}, image loss {short(image[0])} against "
            f"{short(image[1])}"
        )
    return Row(
        paper="After 5 of 100 billion tokens the model no longer completes text: Table 1's completions are noise.",
        here="; ".join(parts) + ".",
        agrees=agrees(list(gone.values())),
        limits="The language model is small; benchmarks above chance at step 0 are the ones that can show forgetting. "
        "The step is not comparable with tokens of a model of a billion parameters.",
    )


def _since(curve: Curve, gone: int | None) -> str:
    if gone is None:
        return "above chance to the end"
    return "never above chance" if gone == curve.series.x[0] else f"chance from step {gone:,} on"


def agrees(gone: Sequence[int | None]) -> Agrees:
    """Return whether the language is gone, by the steps from which benchmarks stay at chance.

    A benchmark that is at chance from step 0 on shows nothing, and does not count.
    """
    known = [step is not None for step in gone if step != 0]
    if not known:
        return "not measured"
    return "yes" if all(known) else "in part" if any(known) else "no"


FINDING = Finding(
    "table_1", "Table 1: what is left of the language", runs, report, frozenset({"quick", "miniature", "real"})
)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
