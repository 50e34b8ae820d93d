"""Table 1 and section 2.2: completions at every step, and what is left of the language by benchmark.

python benchmarks/paper/table_1.py --work DIR [--scale miniature|quick|real]
"""

from __future__ import annotations

import math
import re

from fig_3 import TITLES
from study.claims import GONE, Claim
from study.finding import Figure, Finding, Report, Row
from study.material import Material
from study.measured import Estimate, Measured, finite, short, values_of
from study.runs import PRETRAINED, REPLAY, STARTS, PlannedRun, main_name, main_runs, replay_run
from study.scales import Scale
from study.suites import WITHIN_TEXT

from evalsvc.tasks.completions.spec import TABLE_1
from evalsvc.web.charts import curve_chart
from evalsvc.web.curves import Curve, Line

KNOWN, LOSS, REPEATED = "forgetting/text_retained", f"{WITHIN_TEXT}/seeded_base_loss", f"{WITHIN_TEXT}/seeded_seq_rep_4"
MOVED = ("forgetting/loss", "forgetting/kl_within", "forgetting/image_mass")
FLUENT = 0.5
"""Share of the way from the language model's own text to random ids where text stops being fluent."""
MORE_REPEATED = 0.1
WIDTH = 80
"""Most characters of a completion in the table."""


def runs(scale: Scale, material: Material) -> list[PlannedRun]:
    """Return the main runs and the counter-experiment, where the scale has one."""
    return [*main_runs(scale, material), *([replay_run(scale, material)] if scale.replay else [])]


def labelled(scale: Scale) -> dict[str, str]:
    """Return the runs whose language is measured, with their labels."""
    labels = {main_name(start, scale.seeds[0]): TITLES[start] for start in STARTS}
    return labels | ({REPLAY: f"pre-trained, {scale.replay:.0%} plain text"} if scale.replay else {})


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read accuracies, the loss of English, and the completions: what they know and how fluent they are, apart."""
    labels = labelled(scale)
    figures = [
        _figure(measured, labels, f"{name}/acc", f"Right answers to {name}", f"table_1-{name}")
        for name in scale.benchmarks
    ]
    figures.append(_figure(measured, labels, "forgetting/loss", "Loss of held-out English", "table_1-loss"))
    curves = {name: measured.curve(main_name(PRETRAINED, scale.seeds[0]), f"{name}/acc") for name in scale.benchmarks}
    tables = [_values(measured, labels, scale), *_completions(measured, labels)]
    numbers = {f"{name}_last": finite(curve.series.last[-1]) for name, curve in curves.items()}
    return Report(_row(measured, scale, curves), figures, _claims(measured, scale), tables, numbers)


def _claims(measured: Measured, scale: Scale) -> list[Claim]:
    runs = [main_name(PRETRAINED, seed) for seed in scale.seeds]
    known, loss, repeated = ([measured.last(run, metric) for run in runs] for metric in (KNOWN, LOSS, REPEATED))
    own = measured.first(runs[0], LOSS)
    noise = finite(measured.curve(runs[0], LOSS).series.baseline or "NaN")
    reach, before = noise - finite(own.value), finite(measured.first(runs[0], REPEATED).value)
    return [
        Claim(
            f"less than {GONE:.0%} of what benchmarks showed above chance is left",
            [finite(value.value) for value in known],
            [value.error for value in known],
            "below",
            GONE,
        ),
        Claim(
            "to the language model, the text that is left is nearer to its own than to random ids",
            [(finite(value.value) - finite(own.value)) / reach for value in loss],
            [math.hypot(value.error, own.error) / reach for value in loss],
            "below",
            FLUENT,
        ),
        Claim(
            f"repeated runs of four ids are less than {MORE_REPEATED:.0%} more of a completion than before",
            [finite(value.value) - before for value in repeated],
            [value.error for value in repeated],
            "below",
            MORE_REPEATED,
        ),
    ]


def _figure(measured: Measured, labels: dict[str, str], metric: str, title: str, name: str) -> Figure:
    curves = [measured.curve(run, metric, label=label) for run, label in labels.items()]
    chance = curves[0].series.baseline if metric.endswith("/acc") else None
    lines = [Line(chance, f"chance {chance:.4g}")] if isinstance(chance, float) else []
    return Figure(name, title, curve_chart(curves, lines=lines, along="log"))


def _values(measured: Measured, labels: dict[str, str], scale: Scale) -> str:
    metrics = [*(f"{name}/acc" for name in scale.benchmarks), KNOWN, f"{KNOWN}_within", *MOVED, LOSS, REPEATED]
    lines = ["| run | step | " + " | ".join(metrics) + " |", "|---|---" + "|---" * len(metrics) + "|"]
    for run, label in labels.items():
        columns = {metric: _by_step(measured, run, metric) for metric in metrics}
        for step in columns[metrics[0]]:
            cells = (str(columns[metric].get(step, "–")) for metric in metrics)
            lines.append(f"| {label} | {step:,} | " + " | ".join(cells) + " |")
    explained = (
        f"`{KNOWN}` is the share of what the benchmarks showed above chance at step 0; a metric with `_within` is as "
        f"if no image could come. `{LOSS}` is the loss, to the model of step 0 of the same run, of completions drawn "
        "within text ids: of a random start that model is noise itself. "
        f"`{REPEATED}` is the share of their runs of four ids that occurred before."
    )
    return "\n".join([*lines, "", explained])


def _by_step(measured: Measured, run: str, metric: str) -> dict[int, Estimate]:
    """Return the finite values of a metric by step; empty if the run lacks the metric."""
    try:
        values = values_of(measured.curve(run, metric))
    except LookupError:
        return {}
    return {value.x: value.estimate for value in values if isinstance(value.value, float)}


def _completions(measured: Measured, labels: dict[str, str]) -> list[str]:
    """Return a table of the completions of each prompt, over all ids and within those of text."""
    texts = {run: [measured.completions(run, task, TABLE_1) for task in ("completions", WITHIN_TEXT)] for run in labels}
    tables = []
    for prompt in TABLE_1:
        lines = [f"`{one_line(prompt)}`", "", "| run | step | over all ids | within text ids |", "|---" * 4 + "|"]
        for run, label in labels.items():
            over_all, within = (found.get(prompt, {}) for found in texts[run])
            for step, text in sorted(over_all.items()):
                cells = (f"`{one_line(shortened(each))}`" for each in (text, within.get(step, "")))
                lines.append(f"| {label} | {step:,} | {' | '.join(cells)} |")
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


def _row(measured: Measured, scale: Scale, curves: dict[str, Curve]) -> Row:
    parts = []
    for name, curve in curves.items():
        values = values_of(curve)
        first, last = values[0], values[-1]
        chance = f", chance is {curve.series.baseline:.3g}" if isinstance(curve.series.baseline, float) else ""
        parts.append(f"{name}: {first.estimate} at step 0, {last.estimate} at step {last.x:,}{chance}")
    run = main_name(PRETRAINED, scale.seeds[0])
    for metric, what in ((LOSS, "loss of its text to the language model"), (REPEATED, "repetition")):
        parts.append(f"{what}: {measured.first(run, metric).estimate}, then {measured.last(run, metric).estimate}")
    if scale.replay:
        kept = measured.last(REPLAY, f"{scale.benchmarks[0]}/acc").estimate
        image = [finite(measured.last(run, "pairs/image").value) for run in (REPLAY, run)]
        parts.append(
            f"with {scale.replay:.0%} plain text among the captions {kept}, image loss {short(image[0])} against "
            f"{short(image[1])}"
        )
    return Row(
        paper="After 5 of 100 billion tokens the completions are still sentences (“iles must be able to see the "
        "invisible.”, “I love cheese”), and knowledge and in-context learning are entirely diminished.",
        here="; ".join(parts) + ".",
        limits="What is judged is drawn within text ids; over all ids, small models answer with image tokens, which "
        "the paper does not show. A step is not comparable with tokens of a model of a billion parameters.",
    )


FINDING = Finding(
    "table_1", "Table 1: what is left of the language", runs, report, frozenset({"quick", "miniature", "real"})
)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
