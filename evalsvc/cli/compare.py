"""`evalsvc compare`: how far two checkpoints, or two runs, are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from evalsvc.cli.contrast_tables import (
    print_contrasts,
    print_difference_curves,
    write_contrasts_csv,
    write_difference_curves_csv,
)
from evalsvc.cli.options import Format, Url, connect, print_document
from evalsvc.client import Client
from evalsvc.compare.contrast import Family, Options, compare_results, require_comparable
from evalsvc.compare.difference_curves import Band
from evalsvc.compare.source import Service, read_result
from evalsvc.errors import InvalidRequest
from evalsvc.spec.names import CHECKPOINT, RUN

commands = typer.Typer()


@commands.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="The file of a result (run --output), or of the service RUN@STEP[:VARIANT] or RUN[:VARIANT]."
        ),
    ],
    b: Annotated[
        str | None, typer.Argument(help="What is compared with it, given likewise.", show_default="of a run, its base")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric, or a pattern such as coco/*; repeat for several.", show_default="all"),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Only what this task measured; repeat for several.", show_default="all"),
    ] = None,
    level: Annotated[float, typer.Option(help="How often the interval of a difference holds the truth.")] = 0.95,
    family: Annotated[
        Family,
        typer.Option(help="Of checkpoints: verdicts that hold each by itself, or (holm) for all metrics together."),
    ] = "none",
    band: Annotated[
        Band,
        typer.Option(help="Of runs: intervals that hold at their own step, or (simultaneous) at all steps at once."),
    ] = "pointwise",
    flipped: Annotated[
        int,
        typer.Option(min=0, max=10_000, help="How many items that only one gets right are named, with --format json."),
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Compare what was measured by different protocols, too; unpaired.")
    ] = False,
    suite: Annotated[
        str | None, typer.Option(help="Of RUN@STEP, only this suite's values.", show_default="all suites")
    ] = None,
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
    metrics, tasks = metric or [], task or []
    with connect(url) as client:
        if _is_run(a) and (b is None or _is_run(b)):
            if family != "none":
                raise InvalidRequest("--family is for two checkpoints; along runs, use --band simultaneous")
            comparison = client.compare_runs(
                a, b, metrics, tasks=tasks, suite=suite, level=level, band=band, force=force
            )
            print_document(format, comparison, print_difference_curves, write_difference_curves_csv)
            return
        if b is None:
            raise InvalidRequest(f"{a} is compared with nothing; give a second checkpoint or file, or a run alone")
        options = Options(tuple(metrics), tuple(tasks), level, force, flipped, family)
        comparison = _contrasts(a, b, options, client, suite)
    print_document(format, comparison, print_contrasts, write_contrasts_csv)
    require_comparable(comparison)


def _contrasts(a: str, b: str, options: Options, client: Client, suite: str | None) -> dict[str, Any]:
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
    return compare_results(read_result(a, service), read_result(b, service), options).to_json()


def _is_run(name: str) -> bool:
    """Whether it names a run of the service: no file, no step, and nothing that looks like the file of a result."""
    return bool(RUN.fullmatch(name)) and not name.endswith(".json") and not Path(name).exists()
