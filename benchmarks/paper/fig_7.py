"""Figure 7: contrastive alignment of image tokens with text tokens, and the aligned rows as initialisation.

python benchmarks/paper/fig_7.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fig_3 import NO_DIFFERENCE, no_better
from study.alignment import read_record
from study.finding import Agrees, Figure, Finding, Report, Row
from study.gaps import GapCurve
from study.material import Material
from study.measured import Estimate, Measured, estimated_curve, finite, short, values_of
from study.runs import PRETRAINED, aligned_name, aligned_runs, main_name
from study.scales import Scale
from table_1 import one_line

from evalsvc.web.charts import curve_chart
from evalsvc.web.curves import Curve, Line

TASK = "alignment"
POINTS = 200
"""About the number of steps that a figure shows, evenly apart."""
SHOWN = 8
"""Number of image tokens whose nearest text tokens are shown."""


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read loss and temperature by step, the nearest text tokens, and the losses of both initialisations."""
    record = read_record(material)
    known_nothing = math.log(record.held_out_pairs)
    training = math.log(record.batch)
    line = [Line(training, f"ln batch {training:.3g}")]
    pairs = [(main_name(PRETRAINED, seed), aligned_name(seed)) for seed in scale.seeds]
    by_seed = [measured.differences(random, aligned, "pairs/image") for random, aligned in pairs]
    gap = GapCurve("pairs/image", by_seed, "aligned − random rows")
    figures = [
        Figure(
            "fig_7-loss",
            "Contrastive loss by step of the alignment",
            curve_chart([_by_step("loss", "nats/pair", record.losses)], lines=line),
        ),
        Figure(
            "fig_7-temperature",
            "Learned temperature by step of the alignment",
            curve_chart([_by_step("temperature", "temperature", record.temperatures)]),
        ),
        Figure(
            "fig_7-initialisation",
            "Image loss with aligned rows less that with random rows",
            curve_chart(gap.curves(), lines=[NO_DIFFERENCE], along="log"),
        ),
    ]
    loss = Estimate(*record.held_out)
    numbers = {"held_out_loss": loss.value, "ln_batch": known_nothing, "gap_last": gap.last.value}
    return Report(
        _row(measured, pairs[0][1], loss, known_nothing, gap), figures, [_nearest(measured, *pairs[0])], numbers
    )


def _by_step(metric: str, unit: str, values: Sequence[float]) -> Curve:
    """Return a curve of the alignment along its steps."""
    rows = list(enumerate(values))[:: max(1, len(values) // POINTS)]
    return estimated_curve(
        "training batches", metric, unit, [(step, Estimate(value, None, None)) for step, value in rows]
    )


def _nearest(measured: Measured, plain: str, aligned: str) -> str:
    """Return a table of the nearest text tokens of the most frequent image tokens, before and after the alignment."""
    name = "nearest_tokens.txt"
    before, after = (nearest_of(measured.artifact(run, 0, "nearest_tokens", name).decode()) for run in (plain, aligned))
    lines = ["| image token | nearest text tokens, random rows | aligned rows |", "|---|---|---|"]
    for token in list(before)[:SHOWN]:
        cells = (f"`{one_line(text)}`" for text in (token, before[token], after.get(token, "")))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def nearest_of(page: str) -> dict[str, str]:
    """Return the nearest text tokens by image token, as the task's page of nearest tokens has them.

    An image token has a line `‹image 29›  in 24 images`, and the line `rows …` after it has the text tokens.
    """
    texts, token = {}, ""
    for line in page.splitlines():
        if line.startswith("‹"):
            token = line.partition("›")[0] + "›"
        elif line.strip().startswith("rows ") and token:
            texts[token] = line.strip().removeprefix("rows").strip()
    return texts


def _row(measured: Measured, aligned: str, loss: Estimate, known_nothing: float, gap: GapCurve) -> Row:
    hits = measured.curve(aligned, f"{TASK}/neighbour_hits")
    share, baseline = values_of(hits)[0].estimate, hits.series.baseline
    chance = finite(baseline if baseline is not None else "NaN")
    p = finite(measured.first(aligned, f"{TASK}/neighbour_p_value").value)
    seeds = len(gap.by_seed)
    return Row(
        paper="The contrastive loss stops falling early, the nearest text tokens of image tokens are noise, and "
        "aligned rows are no better a start than random ones.",
        here=f"Held-out contrastive loss {loss}, with nothing known {short(known_nothing)} nats/pair. Nearest text "
        f"tokens occur in the captions of an image token with the share {share}, by chance {short(chance)} "
        f"(p = {short(p)}). Image loss, aligned − random rows: {gap.first} at step 0, then {gap.sentence()}.",
        agrees=_agrees(loss, known_nothing, gap),
        limits=f"{seeds} {'seeds' if seeds > 1 else 'seed'} of both starts. Ten digits and ten templates: captions "
        "say little but the digit, and 64 image tokens are shared by all digits. Whether bags of words of rich "
        "captions align cannot be seen here.",
    )


def _agrees(loss: Estimate, known_nothing: float, gap: GapCurve) -> Agrees:
    """Return whether more than half of the loss remains and aligned rows are no better a start; `in part` for one."""
    stuck = "yes" if loss.value > known_nothing / 2 else "no"
    return no_better(gap) if stuck == no_better(gap) else "in part"


FINDING = Finding("fig_7", "Figure 7: contrastive alignment", aligned_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
