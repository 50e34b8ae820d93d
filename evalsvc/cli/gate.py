"""`evalsvc gate`: pass or fail a checkpoint by a comparison with a baseline, for people and for CI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.cli.options import (
    AcrossSampling,
    Device,
    Layout,
    Model,
    Suites,
    Threads,
    Url,
    complete_run,
    complete_suite,
    connect,
    local_settings,
    require_folders,
    writing,
)
from evalsvc.cli.progress import Bars, show_bars
from evalsvc.cli.terminal import print_table, say
from evalsvc.cli.weights import checkpoint_reference, inline_layout, inline_model
from evalsvc.compare import reports as gate_reports
from evalsvc.compare.gate import run_gate
from evalsvc.compare.gate_report import Look
from evalsvc.compare.gate_rules import read_rules
from evalsvc.compare.source import Service
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import Evaluation
from evalsvc.spec.documents.comparisons import Across, Family
from evalsvc.spec.looks import DEFAULT_SPENDING, Spending
from evalsvc.spec.names import is_checkpoint
from evalsvc.spec.suite import find_suite

commands = typer.Typer()


@commands.command()
def gate(
    candidate: Annotated[
        str,
        Argument(
            metavar="CANDIDATE",
            help="Result file of `evalsvc run --output`, or RUN@STEP[:VARIANT] of the service; with --until, weights.",
            autocompletion=complete_run,
        ),
    ],
    baseline: Annotated[
        str, Option(help="Checkpoint to compare CANDIDATE with, in the same form.", autocompletion=complete_run)
    ],
    rules: Annotated[
        Path | None,
        Option(
            help="YAML file of rules: how much worse each metric may be.", show_default="every metric with a direction"
        ),
    ] = None,
    suite: Annotated[
        str | None,
        Option(
            help="Judge only values by this suite, for RUN@STEP; with --until, the suite to evaluate.",
            show_default="all suites",
            autocompletion=complete_suite,
        ),
    ] = None,
    until: Annotated[
        Literal["decided"] | None,
        Option(help="Sample both checkpoints on this machine until every metric is decided.", show_default="no"),
    ] = None,
    spending: Annotated[
        Spending, Option(help="With --until: function that spends the error probability over the looks.")
    ] = DEFAULT_SPENDING,
    family: Annotated[
        Family | None,
        Option(
            help="Whether the level of a rule holds for each metric (none) or for all metrics together (holm).",
            show_default="that of --rules, else none",
        ),
    ] = None,
    across_seeds: Annotated[
        bool, Option("--across-seeds", help="Also compare samples that were drawn with another seed, and only that.")
    ] = False,
    across_sampling: AcrossSampling = False,
    model: Model = None,
    layout: Layout = None,
    suites: Suites = None,
    device: Device = None,
    threads: Threads = None,
    timeout: Annotated[float, Option(min=0, help="Seconds to wait for evaluations that have not ended.")] = 3600,
    output: Annotated[
        Path | None, Option("--output", help="File to write the report to, as JSON.", show_default="none")
    ] = None,
    junit: Annotated[Path | None, Option(help="File to write the report to, as JUnit XML.")] = None,
    markdown: Annotated[
        Path | None, Option(help="File to append the report to, as Markdown, such as $GITHUB_STEP_SUMMARY.")
    ] = None,
    annotations: Annotated[
        bool,
        Option(
            "--annotations", help="Print workflow commands by which GitHub marks metrics that are worse or missing."
        ),
    ] = False,
    url: Url = None,
) -> None:
    """Pass or fail a checkpoint by a comparison with a baseline, as in CI.

    The exit code is 0 if no metric is worse. It is 1 if a metric is worse, and for weights that compute NaN or
    infinity. It is 2 if the gate could not judge: a metric is missing, was measured by another protocol, or is not
    judged for the reason in its row; or an option, suite, rule or file is wrong; or the service does not answer. It is
    3 if there is no baseline, and 4 after --timeout.

    With --until decided, CANDIDATE and --baseline are weights. Both are sampled on the same prompts with the same
    noise. The gate looks at the values at most eight times, and stops when every metric of the rules is decided or a
    metric is worse.
    """
    require_folders({"--output": output, "--junit": junit, "--markdown": markdown})
    chosen = read_rules(rules)
    if family is not None:
        chosen = replace(chosen, family=family)
    if until is None:
        if model or layout or suites or device or threads:
            given = "--model, --layout, --suites, --device or --threads is given"
            raise InvalidRequest(f"{given} without --until decided; leave the option out")
        with connect(url) as client, show_bars() as bars:
            wanted_across: dict[Across, bool] = {"seeds": across_seeds, "sampling": across_sampling}
            across = [name for name, is_wanted in wanted_across.items() if is_wanted]
            service = Service(client, suite, timeout, _print_states(bars))
            report = run_gate(candidate, baseline, chosen.rules, service, chosen.family, across)
    else:
        if across_seeds or across_sampling:
            option = "--across-seeds" if across_seeds else "--across-sampling"
            problem = f"{option} is given with --until decided, which samples both sides with one seed"
            raise InvalidRequest(f"{problem}; leave the option out")
        settings = local_settings(device, threads, suites)
        description = inline_model(model), inline_layout(layout)

        def reference(uri: str) -> CheckpointRef:
            if is_checkpoint(uri) and not Path(uri).exists():
                problem = f"{uri} names a checkpoint of the service, and --until decided samples files"
                raise InvalidRequest(f"{problem}; give the path of its weights")
            return checkpoint_reference(uri, *description, settings)

        sides = reference(candidate), reference(baseline)
        if suite is None:
            do = "name the suite that evaluates both checkpoints: --suite NAME"
            raise InvalidRequest(f"--until decided is given without --suite; {do}")
        # PyTorch takes seconds to import; a gate of results and `--help` do not need it.
        from evalsvc.worker.trial import sample_until_decided

        wanted = find_suite(suite, settings.suites_path)
        with show_bars() as bars:
            report = sample_until_decided(sides, wanted, chosen, settings, bars.show, _print_look, spending)
    forms = gate_reports.render(report)
    for table in forms.tables:
        print_table(*table)
    for line in (*(forms.annotations if annotations else ()), *forms.notes):
        say(line)
    say(forms.headline, style="green" if forms.exit_code == 0 else "red")
    _write("--output", output, forms.json)
    _write("--junit", junit, forms.junit)
    _write("--markdown", markdown, forms.markdown, mode="ab")
    raise typer.Exit(forms.exit_code)


def _print_states(bars: Bars) -> Callable[[Evaluation], None]:
    last_states: dict[int, str] = {}

    def report(evaluation: Evaluation) -> None:
        number, state = evaluation.id, evaluation.state
        if last_states.get(number) != state:
            last_states[number] = state
            say(f"evaluation {number} ({evaluation.suite.name}) is {state}", err=True)
        for task in evaluation.tasks if state == "running" else ():
            now = task.progress
            bars.show(f"evaluation {number}, {task.name}", now.done, now.total, now.unit or "")

    return report


def _print_look(look: Look) -> None:
    metric, n, change, interval, *_, verdict = gate_reports.look_row(look)
    say(f"{metric} after {n}: {change} ({interval}), {verdict}", err=True)


def _write(option: str, path: Path | None, content: bytes, mode: Literal["wb", "ab"] = "wb") -> None:
    if path is not None:
        with writing(option, path), path.open(mode) as stream:
            stream.write(content)
