"""Figure 2: images and their reconstructions from tokens, which are the floor of every sampled image.

python benchmarks/paper/fig_2.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from study.finding import Figure, Finding, Report, Row
from study.material import Material, reconstructed
from study.measured import Measured
from study.runs import PRETRAINED, PlannedRun, main_name, main_runs
from study.scales import Scale

METRICS = ("psnr", "ssim", "fid64")


def runs(scale: Scale, material: Material) -> list[PlannedRun]:
    """Return the run whose first checkpoint carries the measurement, which asks the image tokenizer alone."""
    return main_runs(scale, material)[:1]


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Read the distances between images and their reconstructions."""
    run = main_name(PRETRAINED, scale.seeds[0])
    floors = {name: measured.last(run, f"reconstruction/{name}") for name in METRICS}
    values = ", ".join(f"{name} {value.estimate}" for name, value in floors.items())
    row = Row(
        paper="An image can be well-reconstructed from its tokens; the tokenizer's FID of reconstructions is 0.686 on "
        "ImageNet.",
        here=f"{values}, of {floors['psnr'].n or 0:,} images.",
        limits="The paper shows one photograph, without a number; 0.686 is of MoVQGAN with 270 million parameters, "
        "which this computation does not use.",
    )
    title = "Scans, and below each its reconstruction from 64 tokens"
    return Report(row, [Figure("fig_2", title, picture=lambda: reconstructed(material))])


FINDING = Finding("fig_2", "Figure 2: images and their reconstructions", runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
