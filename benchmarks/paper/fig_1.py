"""Figure 1: published zero-shot FIDs on COCO, by family. Nothing of it is measured here.

    python benchmarks/paper/fig_1.py --work DIR

The published values enter the service's history as imported values, each with its source and protocol in words, and the
figure is drawn from the history like any other. They are of other protocols than any value of this repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from study.dot_chart import Dot, dot_chart
from study.finding import Figure, Finding, Report, Row
from study.material import Material
from study.measured import Estimate, Measured, finite, short
from study.runs import PlannedRun
from study.scales import Scale

from evalsvc.client import Client

METRIC = "coco/fid"
PROTOCOL = (
    "zero-shot FID of 30,000 prompts of COCO val2014 at 256 × 256 pixels, with the authors' own sampler, guidance, "
    "resizing and Inception"
)
UNKNOWN = "zero-shot FID on COCO; the number of images, the sampler and the resizing are not published"
AUTO_REGRESSIVE, DIFFUSION, PAPER = "auto-regressive", "diffusion", "this paper, auto-regressive"


@dataclass(frozen=True)
class Published:
    """A value that a paper reports."""

    model: str
    family: str
    fid: float
    year: int
    source: str

    @property
    def run(self) -> str:
        """Name of the run that holds the value."""
        return "published-" + "".join(character if character.isalnum() else "-" for character in self.model.lower())

    @property
    def protocol(self) -> str:
        """Protocol in words, as far as it is published."""
        return UNKNOWN if self.family == PAPER else PROTOCOL


PUBLISHED = (
    Published("DALL·E", AUTO_REGRESSIVE, 27.5, 2021, "arXiv 2102.12092, as arXiv 2105.13290 reports it"),
    Published("CogView", AUTO_REGRESSIVE, 27.1, 2021, "arXiv 2105.13290"),
    Published("Make-A-Scene", AUTO_REGRESSIVE, 11.84, 2022, "arXiv 2203.13131"),
    Published("Parti 20B", AUTO_REGRESSIVE, 7.23, 2022, "arXiv 2206.10789"),
    Published("GLIDE", DIFFUSION, 12.24, 2021, "arXiv 2112.10741"),
    Published("Latent Diffusion", DIFFUSION, 12.63, 2021, "arXiv 2112.10752"),
    Published("DALL·E 2", DIFFUSION, 10.39, 2022, "arXiv 2204.06125"),
    Published("Imagen", DIFFUSION, 7.27, 2022, "arXiv 2205.11487"),
    Published("CM3leon 7B", AUTO_REGRESSIVE, 4.88, 2023, "arXiv 2309.02591, which retrieves images"),
    Published("Re-Imagen", DIFFUSION, 6.88, 2022, "arXiv 2209.14491, which retrieves images"),
    Published("open_lm, pre-trained", PAPER, 12.21, 2023, "arXiv 2311.16201"),
    Published("open_lm, random", PAPER, 12.27, 2023, "arXiv 2311.16201"),
)


def runs(scale: Scale, material: Material) -> list[PlannedRun]:
    """Return no runs: nothing is trained for the figure."""
    return []


def import_published(client: Client) -> None:
    """Put the published values into the history. Values that are in the history already are left as they are."""
    for value in PUBLISHED:
        series = {
            "metric": METRIC,
            "step": [value.year],
            "value": [value.fid],
            "unit": "distance",
            "direction": "lower",
            "protocol": value.protocol,
        }
        client.import_values(value.run, value.source, [series])


def report(measured: Measured, scale: Scale, material: Material) -> Report:
    """Import the published values and read them back."""
    if measured.client is not None:
        import_published(measured.client)
    fids = {value.model: finite(measured.last(value.run, METRIC).value) for value in PUBLISHED}
    dots = [
        Dot(f"{value.model} ({value.year})", value.family, Estimate(fids[value.model], None, None))
        for value in PUBLISHED
    ]
    title = "Published zero-shot COCO FID, each by its authors' protocol"
    figure = Figure("fig_1", title, dot_chart(dots, "FID, other protocols"))
    return Report(_row(fids), [figure], tables=[_table(fids)], numbers=fids)


def _table(fids: dict[str, float]) -> str:
    lines = ["| model | family | year | FID | source |", "|---|---|---|---|---|"]
    lines += [
        f"| {value.model} | {value.family} | {value.year} | {fids[value.model]:g} | {value.source} |"
        for value in PUBLISHED
    ]
    return "\n".join([*lines, "", f"Protocol: {PROTOCOL}. Of this paper: {UNKNOWN}."])


def _row(fids: dict[str, float]) -> Row:
    parts = []
    for family in (AUTO_REGRESSIVE, DIFFUSION):
        values = [fids[value.model] for value in PUBLISHED if value.family == family]
        parts.append(f"{family}: best {min(values):g}, median {short(median(values))}")
    return Row(
        paper="Auto-regressive and diffusion models reach similar FIDs on COCO.",
        here=f"Published values only; {'; '.join(parts)}.",
        limits="No value of this repository stands next to these: they are of other images, samplers and protocols.",
    )


FINDING = Finding("fig_1", "Figure 1: published FIDs", runs, report)


if __name__ == "__main__":
    from study.computing import main

    main([FINDING], __doc__)
