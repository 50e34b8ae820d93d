"""`evalsvc compare`: how far two checkpoints, or two runs, are apart."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.contrast_tables import (
    print_contrasts,
    print_difference_curves,
    write_contrasts_csv,
    write_difference_curves_csv,
)
from evalsvc.cli.name_completion import complete_metric, complete_run, complete_suite, complete_task
from evalsvc.cli.options import Format, Url, connect, print_document
from evalsvc.client import Client
from evalsvc.compare.comparison import Options, compare_results, require_comparable
from evalsvc.compare.source import Service, read_result
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import Comparison
from evalsvc.spec.documents.comparisons import Band, Family
from evalsvc.spec.names import CHECKPOINT, RUN

commands = typer.Typer()

A = Annotated[
    str,
    typer.Argument(
        metavar="A",
        help="The file of a result (run --output), or of the service RUN@STEP[:VARIANT] or RUN[:VARIANT].",
        autocompletion=complete_run,
    ),
]
B = Annotated[
    str | None,
    typer.Argument(
        metavar="B",
        help="What is compared with A, given likewise.",
        show_default="of a run, its base",
        autocompletion=complete_run,
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="A metric, or a pattern such as coco/*; repeat for several.",
        show_default="all",
        autocompletion=complete_metric,
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="Only what this task measured; repeat for several.",
        show_default="all",
        autocompletion=complete_task,
    ),
]
Level = Annotated[float, typer.Option(help="How often the interval of a difference holds the truth.")]
OfFamily = Annotated[
    Family,
    typer.Option(help="Of checkpoints: verdicts that hold each by itself, or (holm) for all metrics together."),
]
OfBand = Annotated[
    Band,
    typer.Option(help="Of runs: intervals that hold at their own step, or (simultaneous) at all steps at once."),
]
Flipped = Annotated[
    int,
    typer.Option(min=0, max=10_000, help="How many items that only one gets right are named, with --format json."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Compare what was measured by different protocols, too; unpaired.")
]
Everything = Annotated[
    bool, typer.Option("--all", help="In the table of two checkpoints, show perplexities and other yardsticks, too.")
]
OfSuite = Annotated[
    str | None,
    typer.Option(
        help="Of RUN@STEP, only this suite's values.", show_default="all suites", autocompletion=complete_suite
    ),
]


@commands.command()
def compare(
    a: A,
    b: B = None,
    metrics: Metrics = None,
    tasks: Tasks = None,
    level: Level = 0.95,
    family: OfFamily = "none",
    band: OfBand = "pointwise",
    flipped: Flipped = 0,
    force: Force = False,
    suite: OfSuite = None,
    everything: Everything = False,
    format: Annotated[Format, typer.Option(help="How to print it.")] = "table",  # noqa: A002
    url: Url = None,
) -> None:
    """Say how far two checkpoints are apart: the difference B − A of every metric, its interval, and a verdict.

    Differences are paired over the items that both share. B is better or worse than A, or indistinguishable from it
    where the interval covers zero. The line below the table says how many verdicts chance alone would give. What was
    measured by different protocols is refused with the fields that differ, and the exit code is 2, unless --force is
    given.

    Two runs are compared at the steps that both have, and one run with its base. It is said at which step the interval
    first covers zero, from which step on it always does, and likewise where it does not. What is said of several steps
    rests on intervals that hold at all steps at once.
    """
    options = Options(tuple(metrics or ()), tuple(tasks or ()), level, force, flipped, family)
    with connect(url) as client:
        if _is_run(a) and (b is None or _is_run(b)):
            _compare_runs(a, b, options, band, client, suite, format)
            return
        if b is None:
            raise InvalidRequest(f"{a} is compared with nothing; give a second checkpoint or file, or a run alone")
        comparison = _compare_checkpoints(a, b, options, client, suite)
    table = partial(print_contrasts, named=options.metrics, whole=everything)
    print_document(format, comparison, table, write_contrasts_csv)
    require_comparable(comparison)


def _compare_runs(
    a: str,
    b: str | None,
    options: Options,
    band: Band,
    client: Client,
    suite: str | None,
    format: Format,  # noqa: A002
) -> None:
    if options.family != "none":
        raise InvalidRequest("--family is for two checkpoints; along runs, use --band simultaneous")
    comparison = client.compare_runs(
        a,
        b,
        options.metrics,
        tasks=options.tasks,
        suite=suite,
        level=options.level,
        band=band,
        force=options.force,
    )
    print_document(format, comparison, print_difference_curves, write_difference_curves_csv)


def _compare_checkpoints(a: str, b: str, options: Options, client: Client, suite: str | None) -> Comparison:
    """By the service where it has both; else here."""
    if CHECKPOINT.fullmatch(a) and CHECKPOINT.fullmatch(b):
        return client.compare(
            a,
            b,
            options.metrics,
            tasks=options.tasks,
            suite=suite,
            level=options.level,
            force=options.force,
            flipped=options.flipped,
            family=options.family,
        )
    service = Service(client, suite)
    return compare_results(read_result(a, service), read_result(b, service), options)


def _is_run(name: str) -> bool:
    """Whether it names a run of the service: no file, no step, and nothing that looks like the file of a result."""
    return bool(RUN.fullmatch(name)) and not name.endswith(".json") and not Path(name).exists()
