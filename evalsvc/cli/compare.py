"""`evalsvc compare`: differences between two checkpoints, or between two runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.answers import printed_to
from evalsvc.cli.contrast_tables import (
    print_contrasts,
    print_difference_curves,
    write_contrasts_csv,
    write_difference_curves_csv,
)
from evalsvc.cli.name_completion import complete_metric, complete_run, complete_suite, complete_task
from evalsvc.cli.options import Form, Format, Output, Url, connect, print_document, require_folders
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
        help="Result file of `evalsvc run --output`, or RUN@STEP[:VARIANT] or RUN[:VARIANT] of the service.",
        autocompletion=complete_run,
    ),
]
B = Annotated[
    str | None,
    typer.Argument(
        metavar="B",
        help="Second side of the comparison, in the same form.",
        show_default="the base, if A is a run",
        autocompletion=complete_run,
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="Compare only this metric, or metrics that match a pattern such as coco/*; repeat for several.",
        show_default="all",
        autocompletion=complete_metric,
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="Compare only metrics of this task; repeat for several.",
        show_default="all",
        autocompletion=complete_task,
    ),
]
Level = Annotated[
    float, typer.Option(help="Confidence level of the intervals of differences; that of single values is 0.95.")
]
OfFamily = Annotated[
    Family,
    typer.Option(help="With two checkpoints: judge metrics one by one (none), or together by Holm's method (holm)."),
]
OfBand = Annotated[
    Band,
    typer.Option(
        help="With runs: intervals that hold at one step (pointwise), or at all steps together (simultaneous)."
    ),
]
Flipped = Annotated[
    int,
    typer.Option(
        min=0, max=10_000, help="Most items to name that only one side answers correctly, with --format json."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Also compare values of different protocols, unpaired.")]
Everything = Annotated[
    bool, typer.Option("--all", help="With two checkpoints: also show perplexities and other companions in the table.")
]
OfSuite = Annotated[
    str | None,
    typer.Option(
        help="Compare only values by this suite, for RUN@STEP.",
        show_default="all suites",
        autocompletion=complete_suite,
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
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Compare two checkpoints: the difference B − A of every metric, its interval, and a verdict.

    Differences are paired over the items that A and B share. The verdict is `better`, `worse`, or `indistinguishable`
    if the interval covers zero. The line below the table says how many verdicts chance alone would give. Values of
    different protocols are not compared: the answer names the fields that differ, and the exit code is 2. --force
    compares such values.

    Two runs are compared at the steps that both runs have; a run alone is compared with its base. The lines below the
    table name the first step where the interval covers zero, the step from which it always does, and the largest
    difference that is not excluded there; and likewise for differences beyond noise, by simultaneous intervals.
    """
    require_folders({"--output": output})
    options = Options(tuple(metrics or ()), tuple(tasks or ()), level, force, flipped, family)
    with connect(url) as client:
        if _is_run(a) and (b is None or _is_run(b)):
            with printed_to(output):
                _compare_runs(a, b, options, band, client, suite, form)
            return
        if b is None:
            raise InvalidRequest(
                f"{a} has nothing to be compared with; give a second checkpoint or file as B, or give a run as A"
            )
        comparison = _compare_checkpoints(a, b, options, client, suite)
    table = partial(print_contrasts, named=options.metrics, whole=everything)
    with printed_to(output):
        print_document(form, comparison, table, write_contrasts_csv)
    require_comparable(comparison)


def _compare_runs(
    a: str,
    b: str | None,
    options: Options,
    band: Band,
    client: Client,
    suite: str | None,
    form: Format,
) -> None:
    if options.family != "none":
        raise InvalidRequest(
            "--family judges two checkpoints, and two runs are given; leave --family out, or give --band simultaneous"
        )
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
    print_document(form, comparison, print_difference_curves, write_difference_curves_csv)


def _compare_checkpoints(a: str, b: str, options: Options, client: Client, suite: str | None) -> Comparison:
    """Compare two checkpoints by the service if it has both, else in this process."""
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
    """Return whether an argument names a run of the service, and neither a checkpoint nor a result file."""
    return bool(RUN.fullmatch(name)) and not name.endswith(".json") and not Path(name).exists()
