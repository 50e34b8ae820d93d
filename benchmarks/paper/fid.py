"""FID at the end of the training, pre-trained against random.

python benchmarks/paper/fid.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from statistics import fmean

from fig_3 import TITLES
from study.claims import SAME_DISTANCE, Claim
from study.dot_chart import Dot, dot_chart
from study.finding import Figure, Finding, Report, Row
from study.material import Material
from study.measured import Estimate, Measured, finite, over_seeds, short
from study.runs import PRETRAINED, RANDOM, STARTS, main_name, main_runs
from study.scales import Scale

from evalsvc.spec.documents.comparisons import MetricDifference

TASK = "digits"


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the distances at the last step and the paired differences of the two starts."""
    gaps = {metric: _contrasts(measured, scale, metric) for metric in (*scale.image_metrics, "agreement")}
    figures = [
        Figure(
            f"fid-{metric}",
            f"{metric} at step {scale.main.steps:,}, {scale.images:,} images",
            dot_chart(_dots(measured, scale, metric), metric),
        )
        for metric in gaps
    ]
    numbers = {
        f"{metric}_{start}": finite(measured.last(main_name(start, scale.seeds[0]), f"{TASK}/{metric}").value)
        for metric in gaps
        for start in STARTS
    }
    claims = [_claim(name, gaps[name]) for name in scale.image_metrics]
    worse = sum(row.verdict == "worse" for row in gaps["agreement"])
    against = (
        f"Captions are obeyed less by the pre-trained start at {worse} of {len(scale.seeds)} seeds: agreement "
        f"{between_seeds(gaps['agreement'])}, for which the paper has no value."
    )
    tables = [_table(measured, scale, gaps)]
    return Report(_row(scale, gaps), figures, claims, tables, numbers, against if worse else "")


def _claim(metric: str, rows: list[MetricDifference]) -> Claim:
    """Return the claim that a distance is the same: within `SAME_DISTANCE` of the random start's."""
    differences = [finite(row.difference if row.difference is not None else "NaN") for row in rows]
    bound = SAME_DISTANCE * fmean(
        finite(row.a.value if row.a is not None and row.a.value is not None else "NaN") for row in rows
    )
    errors = [finite(row.stderr or 0.0) for row in rows]
    return Claim(f"{metric} is the same at the end", differences, errors, "within", bound)


def _contrasts(measured: Measured, scale: Scale, metric: str) -> list[MetricDifference]:
    """Return pre-trained − random at the last step for each seed."""
    last = scale.main.steps
    return [
        measured.contrast(
            f"{main_name(RANDOM, seed)}@{last}", f"{main_name(PRETRAINED, seed)}@{last}", f"{TASK}/{metric}"
        )
        for seed in scale.seeds
    ]


def _dots(measured: Measured, scale: Scale, metric: str) -> list[Dot]:
    return [
        Dot(
            f"seed {seed}, {TITLES[start]}",
            TITLES[start],
            measured.last(main_name(start, seed), f"{TASK}/{metric}").estimate,
        )
        for seed in scale.seeds
        for start in STARTS
    ]


def between_seeds(rows: list[MetricDifference]) -> Estimate:
    """Return the mean difference with the interval between seeds; of one seed, that of the images."""
    if len(rows) == 1:
        return of_images(rows[0])
    return over_seeds([finite(row.difference if row.difference is not None else "NaN") for row in rows])


def of_images(row: MetricDifference) -> Estimate:
    """Return a difference with the interval over images."""
    low, high = (None, None) if row.interval is None else (row.interval.low, row.interval.high)
    value = finite(row.difference if row.difference is not None else "NaN")
    return Estimate(value, low if isinstance(low, float) else None, high if isinstance(high, float) else None)


def _table(measured: Measured, scale: Scale, gaps: dict[str, list[MetricDifference]]) -> str:
    lines = ["| metric | n | seed | pre-trained | random | difference, images | verdict |", "|---" * 7 + "|"]
    for metric, rows in gaps.items():
        for seed, row in zip(scale.seeds, rows, strict=True):
            points = [measured.last(main_name(start, seed), f"{TASK}/{metric}") for start in STARTS]
            cells = " | ".join(str(point.estimate) for point in points)
            count = "–" if points[0].n is None else f"{points[0].n:,}"
            verdict = row.verdict.replace("_", " ")
            lines.append(f"| {metric} | {count} | {seed} | {cells} | {of_images(row)} | {verdict} |")
    return "\n".join(lines)


def _row(scale: Scale, gaps: dict[str, list[MetricDifference]]) -> Row:
    parts = []
    for metric, rows in gaps.items():
        estimate = between_seeds(rows)
        deviation = "" if estimate.deviation is None else f", between seeds ± {short(estimate.deviation)}"
        parts.append(f"{metric} of {scale.images:,} images, pre-trained − random: {estimate}{deviation}")
    return Row(
        paper="COCO FID 12.21 for the pre-trained start and 12.27 for the random one: nearly identical.",
        here="; ".join(parts) + ".",
        limits="Digits of 32 × 32 pixels, sampled without guidance. A FID of few images is biased, for both starts "
        "alike, so that only the difference is read; FID-30K is not computed. Agreement, the share of images that show "
        "the digit of their caption, is no claim of the paper.",
    )


FINDING = Finding("fid", "FID at the end", main_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
