"""Figure 7: contrastive alignment of image tokens with text tokens, and the aligned rows as initialisation.

python benchmarks/paper/fig_7.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from study.alignment import AlignmentRecord
from study.claims import Claim
from study.finding import Figure, Finding, Report, Row
from study.gaps import GapCurve
from study.material import Material
from study.measured import Estimate, Measured, estimated_curve, finite, short, values_of
from study.runs import PRETRAINED, aligned_name, aligned_runs, main_name
from study.scales import Scale
from table_1 import one_line

from evalsvc.web.charts import curve_chart
from evalsvc.web.curves import Curve, Line

TASK = "alignment"
EARLY = 0.9
"""Share of the whole fall of a loss that makes an early plateau."""
NOISE = 1.5
"""Times that chance is exceeded by nearest tokens with a meaning."""
OVERFITTED = ": the loss is above it, so the alignment is overfitted to its pairs"
SHOWN = 8
"""Number of image tokens whose nearest text tokens are shown."""


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read loss and temperature by step, the nearest text tokens, and the losses of both initialisations."""
    records = [measured.alignment(material, seed) for seed in scale.seeds]
    first = records[0]
    line = [Line(math.log(first.batch), f"ln batch {math.log(first.batch):.3g}")]
    pairs = [(main_name(PRETRAINED, seed), aligned_name(seed)) for seed in scale.seeds]
    by_seed = [measured.differences(random, aligned, "pairs/image") for random, aligned in pairs]
    gap = GapCurve("pairs/image", by_seed, "aligned − random rows")
    figures = [
        Figure(
            "fig_7-loss",
            "Contrastive loss by step of the alignment",
            curve_chart(_by_step("loss", "nats/pair", scale, [record.losses for record in records]), lines=line),
        ),
        Figure(
            "fig_7-temperature",
            "Learned temperature by step of the alignment",
            curve_chart(_by_step("temperature", "temperature", scale, [record.temperatures for record in records])),
        ),
        Figure("fig_7-initialisation", "Image loss with aligned rows less that with random rows", gap.chart()),
    ]
    numbers = {
        "held_out_loss": first.held_out[0],
        "ln_pairs": math.log(first.held_out_pairs),
        "gap_last": gap.last.value,
    }
    hits = [measured.curve(aligned, f"{TASK}/neighbour_hits") for _, aligned in pairs]
    row, claims = _row(records, hits, gap), _claims(records, hits, gap)
    return Report(row, figures, claims, [_nearest(measured, *pairs[0])], numbers)


def early_fall(losses: Sequence[float]) -> float:
    """Return the share of a loss's whole fall that the first third of the steps has, each end a mean of a tenth."""
    tenth, third = max(1, len(losses) // 10), len(losses) // 3
    begin, then, end = losses[0], fmean(losses[third : third + tenth]), fmean(losses[-tenth:])
    return (begin - then) / (begin - end)


def _claims(records: Sequence[AlignmentRecord], hits: Sequence[Curve], gap: GapCurve) -> list[Claim]:
    nearest = [values_of(curve)[0] for curve in hits]
    chance = _chance(hits[0])
    falls, none = [early_fall(record.losses) for record in records], [0.0] * len(records)
    return [
        Claim(f"{EARLY:.0%} of the loss's fall is in the first third of the alignment", falls, none, "above", EARLY),
        Claim(
            "nearest text tokens occur in captions less than one and a half times as often as by chance",
            [finite(value.value) / chance for value in nearest],
            [value.error / chance for value in nearest],
            "below",
            NOISE,
        ),
        gap.claim("aligned rows end with no less loss of images than random rows", "above", -gap.tolerance),
    ]


def _chance(hits: Curve) -> float:
    return finite("NaN" if hits.series.baseline is None else hits.series.baseline)


def _by_step(metric: str, unit: str, scale: Scale, by_seed: Sequence[Sequence[float]]) -> list[Curve]:
    """Return the curves of the alignments along their steps."""
    every = scale.alignment_steps / len(by_seed[0])
    return [
        estimated_curve(
            f"alignment {number}",
            metric,
            unit,
            [(round(every * place), Estimate(value, None, None)) for place, value in enumerate(values)],
        )
        for number, values in enumerate(by_seed, 1)
    ]


def _nearest(measured: Measured, plain: str, aligned: str) -> str:
    """Return a table of the nearest text tokens of the most frequent image tokens, before and after the alignment."""
    name = "nearest_tokens.txt"
    before, after = (
        nearest_of(measured.text(run, 0, "nearest_tokens", name, _first_lines)) for run in (plain, aligned)
    )
    lines = ["| image token | nearest text tokens, random rows | aligned rows |", "|---|---|---|"]
    for token in list(before)[:SHOWN]:
        cells = (f"`{one_line(text)}`" for text in (token, before[token], after.get(token, "")))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _first_lines(page: str) -> str:
    """Return the part of the task's page that `SHOWN` image tokens take."""
    return "\n".join(page.splitlines()[: 3 + 4 * SHOWN])


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


def _row(records: Sequence[AlignmentRecord], hits: Sequence[Curve], gap: GapCurve) -> Row:
    first, held_out = records[0], [record.held_out for record in records]
    nothing = math.log(first.held_out_pairs)
    overfitted = all(low is not None and low > nothing for _, low, _ in held_out)
    losses = ", ".join(short(value) for value, _, _ in held_out)
    falls = ", ".join(f"{early_fall(record.losses):.0%}" for record in records)
    shares = ", ".join(str(values_of(curve)[0].estimate) for curve in hits)
    return Row(
        paper="The contrastive loss plateaus quickly, the closest text tokens of image tokens are noisy and void of "
        "meaning, and aligned rows bring no discernible improvement as initialisation.",
        here=f"Loss of training batches from {short(first.losses[0])} to {short(first.losses[-1])} nats/pair; share of "
        f"the fall in the first third {falls}. Held-out loss by seed {losses}, with nothing known {short(nothing)}"
        f"{OVERFITTED if overfitted else ''}. Nearest text tokens occur in the captions of an image token with the "
        f"share {shares}, by chance {short(_chance(hits[0]))}. Image loss, aligned − random rows: {gap.first} at step "
        f"0, then {gap.sentence()}.",
        limits="Ten digits and ten templates: captions say little but the digit, and 64 image tokens are shared by all "
        "digits. Whether bags of words of rich captions align cannot be seen here.",
    )


FINDING = Finding("fig_7", "Figure 7: contrastive alignment", aligned_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
