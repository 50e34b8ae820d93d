"""`evalsvc gate`: whether a checkpoint is worse than a baseline, for people and for CI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.cli.name_completion import complete_run, complete_suite
from evalsvc.cli.options import (
    Device,
    JsonFile,
    Layout,
    Model,
    Suites,
    Threads,
    Url,
    connect,
    output_of,
    require_folders,
)
from evalsvc.cli.progress import Bars, show_bars
from evalsvc.cli.terminal import print_table, say
from evalsvc.cli.weights import checkpoint_reference, inline_layout, inline_model
from evalsvc.compare import reports as gate_reports
from evalsvc.compare.gate import run_gate
from evalsvc.compare.gate_report import Look, Outcome, Report
from evalsvc.compare.gate_rules import Rules, read_rules
from evalsvc.compare.source import Service
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, os_reason
from evalsvc.spec.documents import Evaluation
from evalsvc.spec.documents.comparisons import Family
from evalsvc.spec.names import CHECKPOINT
from evalsvc.spec.suite import find_suite

commands = typer.Typer()


Spending = Literal["obrien-fleming", "pocock"]
"""That of `metrics.sequential`, which needs NumPy."""


Candidate = Annotated[
    str,
    typer.Argument(
        metavar="CANDIDATE",
        help="The file of a result (run --output), or RUN@STEP[:VARIANT] of the service; with --until, weights.",
        autocompletion=complete_run,
    ),
]
RulesFile = Annotated[
    Path | None,
    typer.Option(help="YAML file: how much worse which metric may be.", show_default="all that have a better side"),
]
OfSuite = Annotated[
    str | None,
    typer.Option(
        help="Of RUN@STEP, only this suite's values; with --until, what is evaluated.",
        show_default="all suites",
        autocompletion=complete_suite,
    ),
]
UntilDecided = Annotated[
    Literal["decided"] | None,
    typer.Option(help="Sample both checkpoints here, side by side, until it is decided.", show_default="no"),
]
OfFamily = Annotated[
    Family | None,
    typer.Option(
        help="Whether a rule's level is that of each metric (none) or of all metrics together (holm).",
        show_default="what the file of rules says, else none",
    ),
]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait for evaluations that are not over.")]
ReportFile = Annotated[
    Path | None, typer.Option("--output", help="File to write the report to, as JSON.", show_default="none")
]
JunitFile = Annotated[Path | None, typer.Option(help="Write the report here, as JUnit XML.")]
MarkdownFile = Annotated[Path | None, typer.Option(help="Append the report to this file, e.g. $GITHUB_STEP_SUMMARY.")]
Annotations = Annotated[
    bool, typer.Option("--annotations", help="Print GitHub's commands that mark what is worse or missing.")
]


@commands.command()
def gate(
    candidate: Candidate,
    baseline: Annotated[
        str, typer.Option(help="What CANDIDATE is compared with, given likewise.", autocompletion=complete_run)
    ],
    rules: RulesFile = None,
    suite: OfSuite = None,
    until: UntilDecided = None,
    spending: Annotated[
        Spending, typer.Option(help="With --until: how the error is spent over the looks.")
    ] = "obrien-fleming",
    family: OfFamily = None,
    model: Model = None,
    layout: Layout = None,
    suites: Suites = None,
    device: Device = None,
    threads: Threads = None,
    timeout: Timeout = 3600,
    output: ReportFile = None,
    json_file: JsonFile = None,
    junit: JunitFile = None,
    markdown: MarkdownFile = None,
    annotations: Annotations = False,
    url: Url = None,
) -> None:
    """Pass or fail a checkpoint by its distance from a baseline, e.g. in CI.

    The exit code is 0 when nothing is worse, 1 when something is (weights that compute NaN or infinity are), 2 when the
    gate could not judge (a metric is missing, was measured by another protocol, has neither a known noise nor a
    tolerance, or is less certain than its rule asks; a wrong option, suite, rule or file; no service), 3 when there is
    no baseline, 4 when it took too long.

    With --until decided, CANDIDATE and --baseline are weights. Both are sampled on the same prompts with the same
    noise, looked at eight times at most, and no further than it takes to decide every metric that the rules judge, or
    to find one worse.
    """
    output = output_of(output, json_file)
    require_folders({"--output": output, "--junit": junit, "--markdown": markdown})
    chosen = read_rules(rules)
    if family is not None:
        chosen = replace(chosen, family=family)
    here = _Here(suite, model, layout, suites, device, threads)
    if until is None:
        report = _gate_measured(candidate, baseline, chosen, here, timeout, url)
    else:
        report = _gate_until(candidate, baseline, chosen, here, spending)
    _print_report(report, annotations)
    _write("--output", output, gate_reports.to_json(report).encode())
    _write("--junit", junit, gate_reports.to_junit(report))
    _write("--markdown", markdown, gate_reports.to_markdown(report).encode(), mode="ab")
    raise typer.Exit(int(report.outcome))


@dataclass(frozen=True)
class _Here:
    """What `--until decided` samples with; of a gate of results, `suite` alone."""

    suite: str | None
    model: str | None
    layout: str | None
    suites: Path | None
    device: str | None
    threads: int | None


def _print_report(report: Report, annotations: bool) -> None:
    if report.looks:
        rows = gate_reports.looks_table(report)
        print_table(gate_reports.LOOK_COLUMNS, rows, drop=gate_reports.LOOKS_DROP)
    if report.comparisons:
        rows = gate_reports.table(report.comparisons)
        print_table(gate_reports.COLUMNS, rows, drop=gate_reports.DROP, below=("why",))
    for line in gate_reports.to_annotations(report) if annotations else ():
        say(line)
    for line in (*gate_reports.effort(report), gate_reports.levels(report)):
        if line:
            say(line)
    say(gate_reports.headline(report), style="green" if report.outcome is Outcome.PASSED else "red")


def _print_states(bars: Bars) -> Callable[[Evaluation], None]:
    """Return what prints, on stderr, which evaluation is waited for, its state when that changes, and its progress."""
    said: dict[int, str] = {}

    def report(evaluation: Evaluation) -> None:
        number, state = evaluation.id, evaluation.state
        if said.get(number) != state:
            said[number] = state
            say(f"evaluation {number} ({evaluation.suite.name}) is {state}", err=True)
        for task in evaluation.tasks if state == "running" else ():
            now = task.progress
            bars.show(f"evaluation {number}, {task.name}", now.done, now.total, now.unit or "")

    return report


def _print_look(look: Look) -> None:
    """A metric of both sides while they are sampled, on stderr."""
    metric, n, change, interval, *_, verdict = gate_reports.look_row(look)
    say(f"{metric} after {n}: {change} ({interval}), {verdict}", err=True)


def _gate_measured(candidate: str, baseline: str, rules: Rules, here: _Here, timeout: float, url: str | None) -> Report:
    """Judge two results by files or by the service."""
    if here.model or here.layout or here.suites or here.device or here.threads:
        raise InvalidRequest("--model, --layout, --suites, --device, --threads are for --until decided; leave them out")
    with connect(url) as client, show_bars() as bars:
        service = Service(client, here.suite, timeout, _print_states(bars))
        return run_gate(candidate, baseline, rules.rules, service, rules.family)


def _gate_until(candidate: str, baseline: str, rules: Rules, here: _Here, spending: Spending) -> Report:
    """Judge two checkpoints that are sampled in this process."""
    # It samples with PyTorch, which neither another gate nor `--help` needs.
    from evalsvc.compare.gate_until import Sides, run_gate_until

    settings = Settings.load(suites=here.suites, device=here.device, threads=here.threads)
    ours, theirs = (_weights(side, here, settings) for side in (candidate, baseline))
    if here.suite is None:
        raise InvalidRequest("--until decided evaluates both checkpoints here; say with what: --suite NAME")
    suite = find_suite(here.suite, settings.suites_path)
    with show_bars() as bars:
        return run_gate_until(
            Sides(ours, theirs, suite, rules.rules, spending, rules.family), settings, bars.show, _print_look
        )


def _weights(uri: str, here: _Here, settings: Settings) -> CheckpointRef:
    if CHECKPOINT.fullmatch(uri) and not Path(uri).exists():
        raise InvalidRequest(f"{uri} is of the service, and --until decided samples here; give the path of its weights")
    return checkpoint_reference(uri, inline_model(here.model), inline_layout(here.layout), settings)


def _write(option: str, path: Path | None, content: bytes, mode: Literal["wb", "ab"] = "wb") -> None:
    if path is None:
        return
    try:
        with path.open(mode) as stream:
            stream.write(content)
    except OSError as error:
        reason = os_reason(error)
        raise InvalidRequest(f"{option} {path} cannot be written: {reason}") from None
