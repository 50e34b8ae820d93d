"""Figure 5: images that were sampled at the end of the training.

python benchmarks/paper/fig_5.py --work DIR [--scale miniature|quick]
"""

from __future__ import annotations

from fig_3 import TITLES
from study.finding import Figure, Finding, Report, Row
from study.material import Material
from study.measured import Measured
from study.runs import STARTS, main_name, main_runs
from study.scales import Scale

TASK = "digits"


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Show the first images of the first training of both starts."""
    runs = {start: main_name(start, scale.seeds[0]) for start in STARTS}
    shares = ", ".join(
        f"{measured.last(run, f'{TASK}/agreement').estimate} of the images from the {TITLES[start]} start"
        for start, run in runs.items()
    )
    figures = [
        Figure(
            f"fig_5-{start}",
            f"Images of the same captions and noise, {TITLES[start]} start",
            picture=lambda run=run: measured.artifact(run, scale.main.steps, "grid", "grid.png"),  # type: ignore[misc]
        )
        for start, run in runs.items()
    ]
    row = Row(
        paper="Examples of images at the end of the training, without a number but the FID.",
        here=f"The digit of the caption is recognised in {shares}.",
        limits="Pictures are looked at, not judged.",
    )
    return Report(row, figures)


FINDING = Finding("fig_5", "Figure 5: sampled images", main_runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
