"""Is a checkpoint worse, and how far are two apart?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evalsvc.cli.options import (
    Band,
    Family,
    Format,
    Layout,
    Model,
    Spending,
    Suites,
    Threads,
    Until,
    Url,
    checkpoint_reference,
    connect,
    hand_on,
    inline_layout,
    inline_model,
    show_found,
    text_of,
)
from evalsvc.cli.terminal import (
    print_contrasts,
    print_difference_curves,
    print_look,
    print_states,
    print_table,
    say,
    show_bars,
    write_contrasts_csv,
    write_difference_curves_csv,
)
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest

if TYPE_CHECKING:
    from evalsvc.checkpoints.reference import CheckpointRef
    from evalsvc.client import Client
    from evalsvc.compare.contrast import Options
    from evalsvc.compare.gate import Report
    from evalsvc.compare.gate_rules import Rules

commands = typer.Typer()


@commands.command()
def gate(
    candidate: Annotated[
        str,
        typer.Argument(
            help="The file of a result (run --output), or RUN@STEP[:VARIANT] of the service; with --until, weights."
        ),
    ],
    baseline: Annotated[str, typer.Option(help="What it is compared with, given likewise.")],
    rules: Annotated[
        Path | None,
        typer.Option(help="YAML file: how much worse which metric may be.", show_default="all that have a better side"),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Of RUN@STEP, only this suite's values; with --until, what is evaluated.", show_default="all suites"
        ),
    ] = None,
    until: Annotated[
        Until | None,
        typer.Option(help="Sample both checkpoints here, side by side, until it is decided.", show_default="no"),
    ] = None,
    spending: Annotated[
        Spending, typer.Option(help="With --until: how the error is spent over the looks.")
    ] = Spending.obrien_fleming,
    family: Annotated[
        Family | None,
        typer.Option(
            help="Whether a rule's level is that of each metric (none) or of all metrics together (holm).",
            show_default="what the file of rules says, else none",
        ),
    ] = None,
    model: Model = None,
    layout: Layout = None,
    suites: Suites = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.", show_default="cuda, else cpu")] = None,
    threads: Threads = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for evaluations that are not over.")] = 3600,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here, as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the report here, as JUnit XML.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Append the report to this file, e.g. $GITHUB_STEP_SUMMARY.")
    ] = None,
    annotations: Annotated[
        bool, typer.Option("--annotations", help="Print GitHub's commands that mark what is worse or missing.")
    ] = False,
    url: Url = None,
) -> None:
    """Pass or fail a checkpoint by its distance from a baseline, e.g. in CI.

    The exit code is 0 when nothing is worse, 1 when something is, 2 when it could not be judged (a metric is missing,
    was measured by another protocol, has neither a known noise nor a tolerance, or is less certain than its rule asks;
    wrong use, no service), 3 when there is no baseline, 4 when it took too long.

    With --until decided, CANDIDATE and --baseline are weights. Both are sampled on the same prompts with the same
    noise, looked at eight times at most, and no further than it takes to decide every metric that the rules judge, or
    to find one worse.
    """
    if until is None and (model or layout or suites or device or threads):
        raise InvalidRequest("--model, --layout, --suites, --device, --threads are for --until decided; leave them out")
    for option, path in (("--json", json_file), ("--junit", junit), ("--markdown", markdown)):
        if path is not None and not path.parent.is_dir():
            raise InvalidRequest(f"{option} {path}: there is no folder {path.parent}; make it first")
    from evalsvc.compare import reports as gate_reports
    from evalsvc.compare.gate import run_gate
    from evalsvc.compare.gate_rules import read_rules
    from evalsvc.compare.source import Service

    read = read_rules(rules)
    if family is not None:
        read = replace(read, family="holm" if family is Family.holm else "none")
    if until is not None:
        settings = Settings.load(suites=text_of(suites), device=device, threads=threads)
        sides = [_weights(side, inline_model(model), inline_layout(layout)) for side in (candidate, baseline)]
        report = _gate_until(settings, suite, sides, read, spending)
    else:
        with connect(url) as client:
            service = Service(client, suite, timeout, print_states())
            report = run_gate(candidate, baseline, read.rules, service, read.family)
    if report.looks:
        print_table(gate_reports.LOOK_COLUMNS, gate_reports.looks_table(report))
    if report.comparisons:
        print_table(gate_reports.COLUMNS, gate_reports.table(report.comparisons))
    for line in gate_reports.to_annotations(report) if annotations else ():
        say(line)
    for line in (*gate_reports.effort(report), gate_reports.levels(report)):
        if line:
            say(line)
    say(gate_reports.headline(report))
    _write("--json", json_file, gate_reports.to_json(report).encode())
    _write("--junit", junit, gate_reports.to_junit(report))
    _write("--markdown", markdown, gate_reports.to_markdown(report).encode(), mode="ab")
    raise typer.Exit(int(report.outcome))


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
    ] = Family.none,
    band: Annotated[
        Band,
        typer.Option(help="Of runs: intervals that hold at their own step, or (simultaneous) at all steps at once."),
    ] = Band.pointwise,
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
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,  # noqa: A002
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
    from evalsvc.compare.contrast import Options, require_comparable

    metrics, tasks = metric or [], task or []
    with connect(url) as client:
        if _is_run(a) and (b is None or _is_run(b)):
            if family is not Family.none:
                raise InvalidRequest("--family is for two checkpoints; along runs, use --band simultaneous")
            found = client.compare_runs(
                a, b, metrics, tasks=tasks, suite=suite, level=level, band=band.value, force=force
            )
            show_found(format, found, print_difference_curves, write_difference_curves_csv)
            return
        if b is None:
            raise InvalidRequest(f"{a} is compared with nothing; give a second checkpoint or file, or a run alone")
        options = Options(tuple(metrics), tuple(tasks), level, force, flipped, family.value)
        found = _contrasts(a, b, options, client, suite)
    show_found(format, found, print_contrasts, write_contrasts_csv)
    require_comparable(found)


def _contrasts(a: str, b: str, options: Options, client: Client, suite: str | None) -> dict[str, Any]:
    """By the service where it has both; else here."""
    from evalsvc.compare.contrast import compare_results
    from evalsvc.compare.result import CHECKPOINT
    from evalsvc.compare.source import Service, read_result

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
    from evalsvc.compare.result import RUN

    return bool(RUN.fullmatch(name)) and not name.endswith(".json") and not Path(name).exists()


def _weights(uri: str, model: Any, layout: Any) -> CheckpointRef:
    from evalsvc.compare.result import CHECKPOINT

    if CHECKPOINT.fullmatch(uri) and not Path(uri).exists():
        raise InvalidRequest(f"{uri} is of the service, and --until decided samples here; give the path of its weights")
    return checkpoint_reference(uri, model, layout)


def _gate_until(
    settings: Settings, suite: str | None, sides: Sequence[CheckpointRef], rules: Rules, spending: Spending
) -> Report:
    from evalsvc.compare.gate_until import Sides, run_gate_until
    from evalsvc.spec.suite import find_suite

    if suite is None:
        raise InvalidRequest("--until decided evaluates both checkpoints here; say with what: --suite NAME")
    candidate, baseline = sides
    how: Literal["obrien-fleming", "pocock"] = "obrien-fleming" if spending is Spending.obrien_fleming else "pocock"
    hand_on(settings)
    wanted = Sides(candidate, baseline, find_suite(suite, settings.suites_path), rules.rules, how, rules.family)
    with show_bars() as bars:
        return run_gate_until(wanted, bars.show, print_look)


def _write(option: str, path: Path | None, content: bytes, mode: Literal["wb", "ab"] = "wb") -> None:
    if path is None:
        return
    try:
        with path.open(mode) as stream:
            stream.write(content)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidRequest(f"{option} {path} cannot be written: {reason}") from None
