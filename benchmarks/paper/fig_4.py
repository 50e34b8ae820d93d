"""Figure 4: losses of text and image tokens apart, and how much each weighs in the total.

python benchmarks/paper/fig_4.py --work DIR [--scale miniature|quick|real]
"""

from __future__ import annotations

from fig_3 import TITLES, gap_chart, verdict
from study.finding import Agrees, Figure, Finding, Report, Row
from study.gaps import GapCurve, gap_of
from study.material import Material
from study.measured import Measured, finite, mean_curve, short, values_of
from study.runs import PRETRAINED, RANDOM, STARTS, main_name, main_runs
from study.scales import Scale
from study.suites import suite_name

from evalsvc.web.charts import curve_chart
from evalsvc.web.curves import Curve

KINDS = ("text", "image", "special")


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the losses by token type, their gaps, the weights of the types, and the loss of general text."""
    gaps = {kind: gap_of(measured, f"pairs/{kind}", scale.seeds, main_name) for kind in ("text", "image")}
    names = {"text": "captions", "image": "images"}
    figures = [
        Figure(
            f"fig_4-{names[kind]}",
            f"Loss of {names[kind]} by step",
            curve_chart([_mean(measured, scale, start, kind) for start in STARTS], along="log"),
        )
        for kind in gaps
    ]
    figures += [
        Figure(f"fig_4-{names[kind]}-gap", f"Gap of the loss of {names[kind]}", gap_chart(gap))
        for kind, gap in gaps.items()
    ]
    counts = measured.token_counts(main_name(PRETRAINED, scale.seeds[0]), 0, suite_name("losses"), "pairs")
    numbers = _identity(measured, scale, counts) | _simplicity(measured, scale)
    numbers["tokens_ratio"] = counts["image"] / counts["text"]
    return Report(_row(gaps, numbers), figures, [_table(measured, scale, numbers)], numbers)


def _mean(measured: Measured, scale: Scale, start: str, kind: str) -> Curve:
    label = TITLES[start]
    runs = [main_name(start, seed) for seed in scale.seeds]
    return mean_curve([measured.curve(run, f"pairs/{kind}", label=label) for run in runs], label)


def _identity(measured: Measured, scale: Scale, counts: dict[str, int]) -> dict[str, float]:
    """Return the largest distance of a total loss from Σ n_t L_t / Σ n_t, over all main runs and steps."""
    weights = {kind: counts[kind] / sum(counts.values()) for kind in KINDS}
    worst = 0.0
    for run in [main_name(start, seed) for start in STARTS for seed in scale.seeds]:
        losses = {kind: measured.curve(run, f"pairs/{kind}").series.last for kind in (*KINDS, "total")}
        for place, total in enumerate(losses["total"]):
            weighted = sum(weights[kind] * finite(losses[kind][place]) for kind in KINDS)
            worst = max(worst, abs(weighted - finite(total)))
    return {"identity_error": worst}


def _simplicity(measured: Measured, scale: Scale) -> dict[str, float]:
    """Return the captions' loss at the end, and that of general text under the language model before the training."""
    first = scale.seeds[0]
    caption = finite(measured.last(main_name(RANDOM, first), "pairs/text").value)
    general = finite(measured.first(main_name(PRETRAINED, first), "pairs/general_text").value)
    return {"caption_random_last": caption, "general_pretrained_first": general}


def _table(measured: Measured, scale: Scale, numbers: dict[str, float]) -> str:
    lines = ["| run | step | captions | images | total | general text |", "|---|---|---|---|---|---|"]
    for start in STARTS:
        run = main_name(start, scale.seeds[0])
        columns = [
            values_of(measured.curve(run, f"pairs/{name}")) for name in ("text", "image", "total", "general_text")
        ]
        for points in zip(*columns, strict=True):
            cells = " | ".join(short(finite(point.value)) for point in points)
            lines.append(f"| {run} | {points[0].x:,} | {cells} |")
    lines += ["", f"Total and weighted sum of the types differ by {numbers['identity_error']:.1g} at most."]
    return "\n".join(lines)


def _agrees(gaps: dict[str, GapCurve], numbers: dict[str, float]) -> Agrees:
    """Return `yes` if the image gap closes, the text gap is in favour of the pre-trained start at first and closes, and
    captions are simpler than general text."""
    image, text = verdict(gaps["image"]), verdict(gaps["text"])
    favoured = gaps["text"].first.value < 0 and not gaps["text"].first.covers_zero
    simpler = numbers["caption_random_last"] < numbers["general_pretrained_first"]
    if image == text == "yes" and favoured and simpler:
        return "yes"
    return "no" if image == "no" else "in part"


def _row(gaps: dict[str, GapCurve], numbers: dict[str, float]) -> Row:
    captions, general = numbers["caption_random_last"], numbers["general_pretrained_first"]
    return Row(
        paper="The image loss is the same for both starts; the text loss is lower for the pre-trained one only at "
        "first. There are some 30 image tokens for each text token, and captions are simpler than general text.",
        here=f"Images: {gaps['image'].sentence()}. Captions: {gaps['text'].first} at step 0, then "
        f"{gaps['text'].sentence()}. {numbers['tokens_ratio']:.1f} image tokens for each text token. The random start "
        f"ends at {short(captions)} nats/token of captions; before the training, the language model has "
        f"{short(general)} on general text.",
        agrees=_agrees(gaps, numbers),
        limits="Captions come from ten templates, and an image has 64 tokens, so that text weighs more in the total "
        "than in the paper.",
    )


FINDING = Finding(
    "fig_4", "Figure 4: text and image tokens apart", main_runs, report, frozenset({"quick", "miniature", "real"})
)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
