"""Figure 4: losses of text and image tokens apart, and how much each weighs in the total.

python benchmarks/paper/fig_4.py --work DIR [--scale miniature|quick|real]
"""

from __future__ import annotations

import math

from fig_3 import TITLES
from study.claims import Claim
from study.finding import Figure, Finding, Report, Row
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
        Figure(f"fig_4-{names[kind]}-gap", f"Gap of the loss of {names[kind]}", gap.chart())
        for kind, gap in gaps.items()
    ]
    counts = measured.token_counts(main_name(PRETRAINED, scale.seeds[0]), 0, suite_name("losses"), "pairs")
    numbers = _identity(measured, scale, counts) | _simplicity(measured, scale)
    numbers["tokens_ratio"] = counts["image"] / counts["text"]
    claims, against = _claims(measured, scale, gaps), _against(gaps["image"])
    return Report(_row(gaps, numbers), figures, claims, [_table(measured, scale, numbers)], numbers, against)


def _against(gap: GapCurve) -> str:
    """Return a sentence if the image loss ends lower from the pre-trained start at every seed."""
    lower = [finite(curve.difference[-1]) < 0 for curve in gap.by_seed]
    if not all(lower):
        return ""
    share = -gap.last.value / finite(gap.by_seed[0].a[-1])
    return (
        f"The loss of images ends lower from the pre-trained start at all {len(lower)} seeds, by {share:.1%} on "
        f"average ({gap.last} nats/token)."
    )


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


def _row(gaps: dict[str, GapCurve], numbers: dict[str, float]) -> Row:
    captions, general = numbers["caption_random_last"], numbers["general_pretrained_first"]
    return Row(
        paper="The loss of image tokens is the same for both starts; that of text tokens is significantly lower for "
        "the pre-trained one at the beginning, but the gap soon disappears. There are some 30 image tokens for each "
        "text token, and captions are less complex than text of language models.",
        here=f"Images: {gaps['image'].sentence()}. Captions: {gaps['text'].first} at step 0, then "
        f"{gaps['text'].sentence()}. {numbers['tokens_ratio']:.1f} image tokens for each text token. The random start "
        f"ends at {short(captions)} nats/token of captions; before the training, the language model has "
        f"{short(general)} on general text.",
        limits="Captions come from ten templates, and an image has 64 tokens, so that text weighs more in the total "
        "than in the paper.",
    )


def _claims(measured: Measured, scale: Scale, gaps: dict[str, GapCurve]) -> list[Claim]:
    captions = [measured.last(main_name(RANDOM, seed), "pairs/text") for seed in scale.seeds]
    general = [measured.first(main_name(PRETRAINED, seed), "pairs/general_text") for seed in scale.seeds]
    pairs = list(zip(captions, general, strict=True))
    simpler = [finite(caption.value) - finite(text.value) for caption, text in pairs]
    errors = [math.hypot(caption.error, text.error) for caption, text in pairs]
    image, text = gaps["image"], gaps["text"]
    return [
        image.claim("the loss of images is the same at the end", "within", image.tolerance),
        text.claim("the loss of captions is the same at the end", "within", text.tolerance),
        text.claim("the loss of captions is lower from pre-trained weights at step 0", "below", 0.0, place=0),
        Claim("captions end with less loss than general text had before", simpler, errors, "below", 0.0),
    ]


FINDING = Finding(
    "fig_4", "Figure 4: text and image tokens apart", main_runs, report, frozenset({"quick", "miniature", "real"})
)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
