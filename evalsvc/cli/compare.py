"""`evalsvc compare`: differences between two checkpoints, or between two runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.contrast_tables import contrast_rows, difference_rows, print_contrasts, print_difference_curves
from evalsvc.cli.name_completion import complete_metric, complete_run, complete_suite, complete_task
from evalsvc.cli.options import Form, Output, Url, connect, require_folders
from evalsvc.cli.printer import printed_to, show
from evalsvc.client import Client
from evalsvc.compare.comparison import Options, compare_results, require_comparable
from evalsvc.compare.source import Service, read_result
from evalsvc.errors import InvalidRequest
from evalsvc.metrics.shown_metrics import default_headline
from evalsvc.spec.documents import Comparison
from evalsvc.spec.documents.comparisons import Band, Family
from evalsvc.spec.names import CHECKPOINT, RUN

commands = typer.Typer()

A = Annotated[
    str,
    Argument(
        metavar="A",
        help="Result file of `evalsvc run --output`, or RUN@STEP[:VARIANT] or RUN[:VARIANT] of the service.",
        autocompletion=complete_run,
    ),
]
B = Annotated[
    str | None,
    Argument(
        metavar="B",
        help="Second side of the comparison, in the same form.",
        show_default="the base, if A is a run",
        autocompletion=complete_run,
    ),
]
Metrics = Annotated[
    list[str] | None,
    Option(
        "--metric",
        help="Compare only this metric, or metrics that match a pattern such as coco/*; repeat for several.",
        show_default="all",
        autocompletion=complete_metric,
    ),
]
Tasks = Annotated[
    list[str] | None,
    Option(
        "--task",
        help="Compare only metrics of this task; repeat for several.",
        show_default="all",
        autocompletion=complete_task,
    ),
]
Level = Annotated[
    float, Option(help="Confidence level of the intervals of differences; that of single values is 0.95.")
]
OfFamily = Annotated[
    Family, Option(help="With two checkpoints: judge metrics one by one (none), or together by Holm's method (holm).")
]
OfBand = Annotated[
    Band,
    Option(help="With runs: intervals that hold at one step (pointwise), or at all steps together (simultaneous)."),
]
Flipped = Annotated[
    int, Option(min=0, max=10_000, help="Most items to name that only one side answers correctly, with --format json.")
]
Force = Annotated[bool, Option("--force", help="Also compare values of different protocols, unpaired.")]
Everything = Annotated[
    bool, Option("--all", help="Show every metric, perplexities and other companions too, and every step of runs.")
]
OfSuite = Annotated[
    str | None,
    Option(
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

    Two runs are compared at the steps that both runs have; a run alone is compared with its base. The table has the
    last step of each metric, and the steps where the interval covers zero. With --metric or --all, every step has a
    row, and lines below name the first step where the interval covers zero, the step from which it always does, and the
    largest difference that is not excluded there; and likewise for differences beyond noise, by simultaneous intervals.

    The table is one screen: the headline first, then the metrics that differ. --metric, --task and --all show all.
    """
    require_folders({"--output": output})
    options = Options(tuple(metrics or ()), tuple(tasks or ()), level, force, flipped, family)
    is_run = _is_run(a) and (b is None or _is_run(b))
    if b is None and not is_run:
        raise InvalidRequest(
            f"{a} has nothing to be compared with; give a second checkpoint or file as B, or give a run as A"
        )
    if is_run and family != "none":
        raise InvalidRequest(
            "--family judges two checkpoints, and two runs are given; leave --family out, or give --band simultaneous"
        )
    with connect(url) as client, printed_to(output):
        match = RUN.fullmatch(a) if is_run else CHECKPOINT.fullmatch(a)
        is_screen = form == "table" and not (metrics or tasks or everything)
        headline = client.headline(match["run"]).metrics if is_screen and match is not None else ()
        if is_run:
            runs = client.compare_runs(
                a, b, options.metrics, tasks=options.tasks, suite=suite, level=level, band=band, force=force
            )
            table = partial(print_difference_curves, headline=headline, every_step=not is_screen)
            show(runs, form, table, difference_rows)
            return
        comparison = _compare_checkpoints(a, str(b), options, client, suite)
        headline = headline or default_headline({item.metric: item.direction for item in comparison.contrasts})
        contrasts = partial(
            print_contrasts, named=options.metrics, whole=everything, headline=headline, fits_screen=is_screen
        )
        show(comparison, form, contrasts, contrast_rows)
    require_comparable(comparison)


def _compare_checkpoints(a: str, b: str, options: Options, client: Client, suite: str | None) -> Comparison:
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
    return bool(RUN.fullmatch(name)) and not name.endswith(".json") and not Path(name).exists()
