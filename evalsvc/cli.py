"""The command line. Only what `--help` needs is imported at the top; every command imports its own."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand

from evalsvc import __version__
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, InvalidRequest
from evalsvc.terminal import (
    Bars,
    complain,
    print_answers,
    print_completions,
    print_contrasts,
    print_curves,
    print_demo,
    print_history,
    print_interim,
    print_interims,
    print_look,
    print_metrics,
    print_settings,
    print_states,
    print_table,
    show_bars,
    show_finished,
    show_posted,
    write_contrasts_csv,
    write_csv,
    write_curves_csv,
)

if TYPE_CHECKING:
    from evalsvc.checkpoints import CheckpointRef
    from evalsvc.client import Client
    from evalsvc.gate import Report, Rule

app = typer.Typer(
    name="evalsvc",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Evaluate the checkpoints of auto-regressive text-to-image models, and keep one history of metrics per "
    "training step.\n\nBegin with [bold]evalsvc serve[/bold]; post with [bold]evalsvc submit[/bold]; read with "
    "[bold]evalsvc history[/bold]. Every option that is a setting can also be given as a variable "
    "[bold]EVALSVC_…[/bold]; [bold]evalsvc doctor[/bold] lists them.",
)

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
"""Exit codes: the evaluation failed; it could not be tried; Ctrl-C."""


class Spool(StrEnum):
    none = "none"
    link = "link"
    copy = "copy"


class Axis(StrEnum):
    step = "step"
    tokens = "tokens"


class Until(StrEnum):
    decided = "decided"


class Spending(StrEnum):
    obrien_fleming = "obrien-fleming"
    pocock = "pocock"


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


Url = Annotated[str | None, typer.Option(help="Address of the service.", show_default="http://127.0.0.1:8321")]
Suites = Annotated[Path | None, typer.Option(help="Folder with suites of your own, one YAML file each.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a worker.", show_default="cores / workers")]
TlsCa = Annotated[Path | None, typer.Option(help="Certificate authority of the scheduler.")]
TlsCert = Annotated[Path | None, typer.Option(help="Certificate for the scheduler.")]
TlsKey = Annotated[Path | None, typer.Option(help="Private key for the scheduler.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="open_lm model: a registered name, a JSON file, or JSON.", show_default="what lies beside the checkpoint"
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(help="Vocabulary layout: a preset's name, a YAML or JSON file, or JSON.", show_default="all text"),
]


def main() -> NoReturn:
    """The console script: every error that evalsvc raises on purpose is one line and exit code 2."""
    try:
        app(prog_name="evalsvc")
    except EvalsvcError as error:
        complain(f"{error.message} [{error.code}]")
        sys.exit(WRONG_USE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"evalsvc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8321")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of database, spooled checkpoints and artifacts.", show_default="~/.local/share/evalsvc"
        ),
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL.", show_default="SQLite in the data folder")
    ] = None,
    suites: Suites = None,
    devices: Annotated[
        str | None,
        typer.Option(help="One worker process each: all, or a list such as cuda:0,cuda:1.", show_default="all"),
    ] = None,
    threads: Threads = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="An existing Dask scheduler, tls://HOST:PORT.", show_default="a cluster of its own"),
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring an older database to this version first.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on an address that others reach, without authentication.")
    ] = False,
) -> None:
    """Run the service and its workers on this machine."""
    settings = Settings.load(
        host=host,
        port=port,
        data_dir=_text(data_dir),
        database_url=database_url,
        suites=_text(suites),
        devices=devices,
        threads=threads,
        scheduler=scheduler,
        tls_ca=_text(tls_ca),
        tls_cert=_text(tls_cert),
        tls_key=_text(tls_key),
    )
    from evalsvc.api.server import serve as serve_settings

    def announce(url: str) -> None:
        print(f"evalsvc listens on {url}", flush=True)

    serve_settings(settings, announce, migrate=migrate, insecure=insecure)


@app.command()
def worker(
    scheduler: Annotated[str, typer.Argument(help="The Dask scheduler, tls://HOST:PORT.")],
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.", show_default="cuda, else cpu")] = None,
    threads: Threads = None,
) -> None:
    """Run a worker process for an existing scheduler until interrupted."""
    settings = Settings.load(
        tls_ca=_text(tls_ca), tls_cert=_text(tls_cert), tls_key=_text(tls_key), device=device, threads=threads
    )
    from evalsvc.cluster import run_worker

    run_worker(settings, scheduler)


class _StepCommand(TyperCommand):
    """Says what is wrong with a negative step, which would else be read as an option that does not exist."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, argument in zip(["", *args], args, strict=False):
            if re.fullmatch(r"-\d+(\.\d+)?", argument) and not before.startswith("--"):
                raise InvalidRequest(f"step {argument}: a step is a whole number of at least 0")
        return super().parse_args(ctx, args)


@app.command(cls=_StepCommand)
def submit(
    run: Annotated[str, typer.Argument(help="The training run.")],
    step: Annotated[int, typer.Argument(help="The training step.")],
    uri: Annotated[str, typer.Argument(help="The weights: a path or a file:// uri.")],
    suite: Annotated[
        list[str] | None, typer.Option(help="Suite; repeat for several.", show_default="the run's plan")
    ] = None,
    variant: Annotated[str, typer.Option(help="Which weights of the step, e.g. ema_0.9999.")] = "raw",
    model: Model = None,
    layout: Layout = None,
    tokens_seen: Annotated[int | None, typer.Option(help="Tokens trained on so far.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The file's digest; a worker checks it.")] = None,
    spool: Annotated[Spool, typer.Option(help="Keep the weights until they are evaluated.")] = Spool.none,
    priority: Annotated[int, typer.Option(help="Higher first.")] = 0,
    tag: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; repeat for several.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another file at this step and variant.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the evaluations and show their metrics.")] = False,
    url: Url = None,
) -> None:
    """Post a checkpoint to the service and have it evaluated.

    With --wait the exit code is 1 when an evaluation did not succeed.
    """
    from evalsvc.client import Client

    with Client(Settings.load(url=url).url) as client:
        posted = client.submit(
            run,
            step,
            _absolute(uri),
            variant=variant,
            suites=suite or None,
            model=_inline_model(model),
            layout=_inline_layout(layout),
            tokens_seen=tokens_seen,
            sha256=sha256,
            spool=spool.value,
            priority=priority,
            tags=_tags(tag or []),
            replace=replace,
        )
        show_posted(posted)
        if wait and not _wait(client, posted["evaluations"]):
            raise typer.Exit(FAILED)


@app.command()
def history(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="The training run, or several on one curve.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="<task>/<metric>; repeat for several.", show_default="all")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Only these weights.", show_default="all")] = None,
    x: Annotated[Axis, typer.Option("--x", help="Along training steps or tokens.")] = Axis.step,
    force: Annotated[
        bool, typer.Option("--force", help="Of several runs, also what was measured by different protocols.")
    ] = False,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,  # noqa: A002
    url: Url = None,
) -> None:
    """Show a run's metrics along its training, or those of several runs side by side.

    What was measured by different protocols is never on one curve: of one run it is shown apart, with the fields that
    differ; of several runs it is refused with them, and the exit code is 2, unless --force is given.
    """
    from evalsvc.client import Client
    from evalsvc.curves import join_histories, require_comparable

    with Client(Settings.load(url=url).url) as client:
        found = [client.history(run, metric or [], variant=variant, x=x.value) for run in dict.fromkeys(runs)]
        if len(found) == 1:
            _show(format, found[0], print_history, write_csv)
            return
        joined = join_histories(found, client.protocol, force)
    _show(format, joined, print_curves, write_curves_csv)
    require_comparable(joined)


def _show(
    format: Format,  # noqa: A002
    found: dict[str, Any],
    table: Callable[[Mapping[str, Any]], None],
    csv: Callable[[Mapping[str, Any]], None],
) -> None:
    if format is Format.json:
        print(json.dumps(found, indent=2))
    elif format is Format.csv:
        csv(found)
    else:
        table(found)


@app.command(cls=_StepCommand)
def base(
    run: Annotated[str, typer.Argument(help="The training run.")],
    step: Annotated[int | None, typer.Argument(help="Step of the base.", show_default="show what it is")] = None,
    of: Annotated[str | None, typer.Option(help="The run whose step it is.", show_default="this run")] = None,
    variant: Annotated[str, typer.Option(help="Which weights of the step, e.g. ema_0.9999.")] = "raw",
    url: Url = None,
) -> None:
    """Say, or show, what a run's checkpoints are compared with, e.g. the language model that it began from.

    Until it is said, that is the run's own step 0.
    """
    from evalsvc.client import Client

    if step is None and of is not None:
        raise InvalidRequest(f"--of {of} is given without a step; say which: evalsvc base {run} STEP --of {of}")
    with Client(Settings.load(url=url).url) as client:
        found = client.run(run)["base"] if step is None else client.set_base(run, step, of=of, variant=variant)
    there = "not posted yet" if found["checkpoint"] is None else f"checkpoint {found['checkpoint']}"
    print(f"base of {run}: {found['run']} step {found['step']} {found['variant']} ({there})")


@app.command()
def completions(
    run: Annotated[str, typer.Argument(help="The training run.")],
    prompt: Annotated[str | None, typer.Option(help="Only prompts that hold this text.", show_default="all")] = None,
    variant: Annotated[str | None, typer.Option(help="Only these weights.", show_default="all")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The seeded ones beside the greedy one.")] = False,
    url: Url = None,
) -> None:
    """Show what a run's checkpoints made of fixed prompts, prompt by prompt: the base first, then a line per step."""
    from evalsvc.client import Client

    with Client(Settings.load(url=url).url) as client:
        steps = client.completions(run, variant=variant, prompt=prompt)
    if not steps:
        print(f"run {run} has no completions yet; evaluate a suite that has a task of kind completions")
    print_completions(steps, everything)


@app.command(name="run")
def run_here(
    suite: Annotated[str, typer.Argument(help="A suite's name, or its YAML file.")],
    checkpoint: Annotated[str, typer.Option(help="The weights: a path or a file:// uri.")],
    model: Model = None,
    layout: Layout = None,
    base: Annotated[
        str | None, typer.Option(help="Weights to compare with, e.g. those before training.", show_default="none")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="open_lm model of the base.", show_default="what lies beside it")
    ] = None,
    base_layout: Annotated[
        str | None, typer.Option(help="Vocabulary layout of the base.", show_default="the checkpoint's")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the whole result here, as JSON, and artifacts into a folder beside it.")
    ] = None,
    suites: Suites = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.", show_default="cuda, else cpu")] = None,
    threads: Threads = None,
) -> None:
    """Evaluate a checkpoint here and now, without a service.

    The exit code is 1 when a task failed.
    """
    if output is not None and not output.parent.is_dir():
        raise InvalidRequest(f"--output {output}: there is no folder {output.parent}; make it first")
    if base is None and (option := "--base-model" if base_model else "--base-layout" if base_layout else None):
        raise InvalidRequest(f"{option} is given without --base; name the weights that it describes")
    settings = Settings.load(suites=_text(suites), device=device, threads=threads)
    reference = _reference(checkpoint, _inline_model(model), _inline_layout(layout))
    beside = None
    if base is not None:
        own_layout = reference.layout if base_layout is None else _inline_layout(base_layout, "--base-layout")
        beside = _reference(base, _inline_model(base_model, "--base-model"), own_layout)
    result = _run_suite(settings, suite, reference, beside)
    _write_artifacts(result["artifacts"], output)
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n")
    print_metrics(result["metrics"])
    for task, error in (result.get("errors") or {}).items():
        complain(f"{task}: {error['message']} [{error['code']}]")
    if result.get("errors"):
        raise typer.Exit(FAILED)


@app.command()
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
    ] = Spending.pocock,
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

    The exit code is 0 when nothing is worse, 1 when something is, 2 when it could not be judged (a metric is missing or
    was measured by another protocol, wrong use, no service), 3 when there is no baseline, 4 when it took too long.

    With --until decided, CANDIDATE and --baseline are weights. Both are sampled on the same prompts with the same
    noise, looked at eight times at most, and no further than it takes to decide every metric that the rules judge, or
    to find one worse.
    """
    if until is None and (model or layout or suites or device or threads):
        raise InvalidRequest("--model, --layout, --suites, --device, --threads are for --until decided; leave them out")
    for option, path in (("--json", json_file), ("--junit", junit), ("--markdown", markdown)):
        if path is not None and not path.parent.is_dir():
            raise InvalidRequest(f"{option} {path}: there is no folder {path.parent}; make it first")
    from evalsvc import gate_reports
    from evalsvc.client import Client
    from evalsvc.gate import Service, read_rules, run_gate

    read = read_rules(rules)
    if until is not None:
        settings = Settings.load(suites=_text(suites), device=device, threads=threads)
        sides = [_weights(side, _inline_model(model), _inline_layout(layout)) for side in (candidate, baseline)]
        report = _gate_until(settings, suite, sides, read, spending)
    else:
        with Client(Settings.load(url=url).url) as client:
            report = run_gate(candidate, baseline, read, Service(client, suite, timeout, print_states()))
    if report.looks:
        print_table(gate_reports.LOOK_COLUMNS, gate_reports.looks_table(report))
    if report.comparisons:
        print_table(gate_reports.COLUMNS, gate_reports.table(report.comparisons))
    for line in gate_reports.to_annotations(report) if annotations else ():
        print(line)
    for line in gate_reports.effort(report):
        print(line)
    print(gate_reports.headline(report))
    _write("--json", json_file, gate_reports.to_json(report).encode())
    _write("--junit", junit, gate_reports.to_junit(report))
    _write("--markdown", markdown, gate_reports.to_markdown(report).encode(), mode="ab")
    raise typer.Exit(int(report.outcome))


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(help="The file of a result (run --output), or RUN@STEP[:VARIANT] of the service.")
    ],
    b: Annotated[str, typer.Argument(help="What is compared with it, given likewise.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric, or a pattern such as coco/*; repeat for several.", show_default="all"),
    ] = None,
    level: Annotated[float, typer.Option(help="How often the interval of a difference holds the truth.")] = 0.95,
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
    where the interval covers zero. What was measured by different protocols is refused with the fields that differ, and
    the exit code is 2, unless --force is given.
    """
    from evalsvc.client import Client
    from evalsvc.compare import Options, run_compare
    from evalsvc.gate import Service

    options = Options(tuple(metric or ()), level, force)
    with Client(Settings.load(url=url).url) as client:
        found = run_compare(a, b, options, Service(client, suite))
    if format is Format.json:
        print(found.to_json(), end="")
    elif format is Format.csv:
        write_contrasts_csv(found)
    else:
        print_contrasts(found)
    found.require_comparable()


@app.command()
def demo(
    leave: Annotated[bool, typer.Option("--exit", help="End after the table instead of serving on.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the demo.", show_default="a temporary one")] = None,
    devices: Annotated[str, typer.Option(help="Worker processes.")] = "cpu,cpu",
) -> None:
    """Evaluate the miniature run that comes with evalsvc, end to end: losses, images, FID, what is left of its English.

    Needs the asset `inception`: evalsvc assets pull inception.
    """
    import tempfile

    from evalsvc import demo as demonstration
    from evalsvc.client import Client

    with tempfile.TemporaryDirectory(prefix="evalsvc-demo-") as temporary:
        folder = data_dir or Path(temporary)
        assets = Settings.load().assets_path
        with demonstration.started_service(folder, devices, assets) as url, Client(url) as client:
            print(f"evalsvc listens on {url}", flush=True)
            evaluations = demonstration.post_all(client)
            with show_bars() as bars:
                failures = demonstration.wait_all(
                    client,
                    evaluations,
                    lambda done, running: bars.show("miniature", done, len(evaluations), running or "checkpoints"),
                )
            print_demo(list(demonstration.COLUMNS), demonstration.read_table(client))
            print_answers(demonstration.read_answers(client))
            for failure in failures:
                complain(failure)
            if not leave and not failures:
                print(f"serving on {url}; Ctrl-C ends the demo", flush=True)
                _wait_for_interrupt()
        if failures:
            raise typer.Exit(FAILED)


@app.command()
def doctor(
    suite: Annotated[list[str] | None, typer.Argument(help="Only these suites' data.", show_default="all")] = None,
    suites: Suites = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the database.", show_default="~/.local/share/evalsvc")
    ] = None,
) -> None:
    """Show every setting, and what is missing for an evaluation.

    The exit code is 1 when something that is needed is missing.
    """
    from evalsvc.doctor import run_checks

    given: dict[str, Any] = {"suites": _text(suites), "data_dir": _text(data_dir)}
    settings = Settings.load(**given)
    print_settings(settings, {name for name, value in given.items() if value is not None})
    checks = run_checks(settings, suite or [])
    print_table(
        ["check", "", "found", "do"],
        [
            [check.name, "ok" if check.ok else "MISSING" if check.needed else "-", check.found, check.do]
            for check in checks
        ],
    )
    if not all(check.ok or not check.needed for check in checks):
        raise typer.Exit(FAILED)


assets_app = typer.Typer(no_args_is_help=True, help="Weights of other people's networks, which some suites need.")
app.add_typer(assets_app, name="assets")

benchmarks_app = typer.Typer(no_args_is_help=True, help="lm-eval's benchmarks, which the task `language` asks.")
app.add_typer(benchmarks_app, name="benchmarks")

reference_app = typer.Typer(no_args_is_help=True, help="Statistics of real images, which FID compares with.")
app.add_typer(reference_app, name="reference")

Assets = Annotated[Path | None, typer.Option(help="Folder of the assets.", show_default="assets in the data folder")]


@assets_app.command(name="pull")
def pull_assets(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Which; see `evalsvc assets list`.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take this file or folder instead.", show_default="its official address"),
    ] = None,
    assets: Assets = None,
) -> None:
    """Fetch assets and verify them. A download that was cut off goes on where it stopped."""
    from evalsvc.assets import find_asset, pull

    if source is not None and len(names) > 1:
        raise InvalidRequest(f"--from {source} is one file and {len(names)} assets are named; name one")
    folder = Settings.load(assets=_text(assets)).assets_path
    for name in names:
        find_asset(name)
    for name in names:
        with show_bars() as bars:

            def report(done: int, total: int | None, bars: Bars = bars, name: str = name) -> None:
                bars.show(name, done // 1_000_000, None if total is None else total // 1_000_000, "MB")

            path = pull(name, folder, source, report)
        print(f"{name}: {path}")


@assets_app.command(name="list")
def list_assets(assets: Assets = None) -> None:
    """Show what can be pulled, what is there, and where it came from."""
    from evalsvc.assets import ASSETS, locate_asset, read_record
    from evalsvc.errors import AssetCorrupt, AssetMissing

    folder = Settings.load(assets=_text(assets)).assets_path
    rows = []
    for asset in ASSETS.values():
        try:
            locate_asset(asset.name, folder)
            record = read_record(asset.name, folder)
            state, source = "there", f"{record.source} (sha256 {record.source_sha256})" if record else ""
        except (AssetMissing, AssetCorrupt) as error:
            state, source = ("-" if isinstance(error, AssetMissing) else "CORRUPT"), asset.address
        rows.append([asset.name, state, f"{asset.megabytes} MB", asset.purpose, source])
    print_table(["asset", "", "about", "what for", "from"], rows)


IncludePath = Annotated[
    list[Path] | None,
    typer.Option(help="Folder of lm-eval YAML files of your own; repeat for several.", show_default="none"),
]


@benchmarks_app.command(name="list")
def list_benchmarks(
    words: Annotated[str | None, typer.Argument(metavar="FILTER", help="Only names with this in them.")] = None,
    include_path: IncludePath = None,
) -> None:
    """Show the names of benchmarks, and of the groups and tags that stand for several."""
    from evalsvc.language.registry import Registry

    entries = Registry(include_path or []).search(words or "")
    print_table(["name", "", "from"], [[entry.name, entry.kind.value, entry.origin] for entry in entries])


@benchmarks_app.command(name="prepare")
def prepare_benchmarks(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Which; see `evalsvc benchmarks list`.")],
    include_path: IncludePath = None,
) -> None:
    """Fetch what benchmarks need from the Hugging Face hub into its cache; an evaluation downloads nothing."""
    from evalsvc.language.benchmarks import LoadOptions, prepare
    from evalsvc.language.definitions import Rules

    settings = Settings.load()

    def local_dataset(path: str) -> str:
        return str(settings.datasets_path / path.removeprefix("datasets:"))

    rules = Rules(allow_code=bool(settings.allow_benchmark_code), resolve=local_dataset)
    for name in names:
        for ready in prepare(name, LoadOptions(tuple(include_path or []), rules=rules)):
            rows = ", ".join(f"{count:,} rows of {split!r}" for split, count in ready.splits.items())
            print(f"{ready.name}: {ready.source}, {rows}" if rows else f"{ready.name}: asks for no dataset of the hub")


@reference_app.command(name="import")
def import_reference(
    file: Annotated[Path, typer.Argument(help="An npz file with mu and sigma of Inception features.")],
    name: Annotated[str, typer.Option(help="What suites call it.")],
    n: Annotated[int | None, typer.Option(help="How many images it rests on.", show_default="unknown")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the references.", show_default="~/.local/share/evalsvc")
    ] = None,
) -> None:
    """Take over someone else's reference statistics. They are marked as foreign wherever they are used."""
    from evalsvc.reference import import_npz

    print(f"{name}: {import_npz(file, name, Settings.load(data_dir=_text(data_dir)).statistics_path, n)}")


def _reference(uri: str, model: Any, layout: Any) -> CheckpointRef:
    from evalsvc.checkpoints import CheckpointRef, locate

    return CheckpointRef(path=str(locate(_absolute(uri), [Path("/")])), model=model, layout=layout, label=uri)


def _run_suite(
    settings: Settings, suite_name: str, checkpoint: CheckpointRef, base: CheckpointRef | None
) -> dict[str, Any]:
    from evalsvc.runner import run_suite
    from evalsvc.suite import find_suite

    # The runner reads its settings where every worker process finds them.
    os.environ.update(settings.environment())
    suite = find_suite(suite_name, settings.suites_path)
    with show_bars() as bars:

        def report(task: str, done: int, total: int, unit: str) -> None:
            bars.show(task, done, total, unit)

        return run_suite(suite, checkpoint, report, base, print_interim)


def _weights(uri: str, model: Any, layout: Any) -> CheckpointRef:
    from evalsvc.gate import CHECKPOINT

    if CHECKPOINT.fullmatch(uri) and not Path(uri).exists():
        raise InvalidRequest(f"{uri} is of the service, and --until decided samples here; give the path of its weights")
    return _reference(uri, model, layout)


def _gate_until(
    settings: Settings, suite: str | None, sides: Sequence[CheckpointRef], rules: Sequence[Rule], spending: Spending
) -> Report:
    from evalsvc.gate_until import Sides, run_gate_until
    from evalsvc.suite import find_suite

    if suite is None:
        raise InvalidRequest("--until decided evaluates both checkpoints here; say with what: --suite NAME")
    candidate, baseline = sides
    how: Literal["obrien-fleming", "pocock"] = "obrien-fleming" if spending is Spending.obrien_fleming else "pocock"
    # The runner reads its settings where every worker process finds them.
    os.environ.update(settings.environment())
    wanted = Sides(candidate, baseline, find_suite(suite, settings.suites_path), rules, how)
    with show_bars() as bars:
        return run_gate_until(wanted, bars.show, print_look)


def _wait_for_interrupt() -> None:
    import signal

    try:
        signal.pause()
    except KeyboardInterrupt:
        print()


def _write_artifacts(artifacts: dict[str, list[dict[str, Any]]], output: Path | None) -> None:
    """Put the contents into files beside the result, which then has their paths in their place."""
    for task, left in artifacts.items():
        for artifact in left:
            content = artifact.pop("content")
            if output is not None:
                path = output.with_suffix("") / task / artifact["name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                artifact["path"] = str(path)


def _wait(client: Client, evaluations: Sequence[Mapping[str, Any]]) -> bool:
    """Wait for evaluations with a bar per task, then show what they found; whether all succeeded."""
    say_so_far = print_interims()
    with show_bars() as bars:

        def report(evaluation: Mapping[str, Any]) -> None:
            for task in evaluation["tasks"]:
                now = task["progress"]
                bars.show(
                    f"{evaluation['suite']['name']}: {task['name']}", now["done"], now["total"], now["unit"] or ""
                )
            say_so_far(evaluation)

        finished = [client.wait(evaluation["id"], report=report) for evaluation in evaluations]
    for evaluation in finished:
        show_finished(evaluation)
    return all(evaluation["state"] == "succeeded" for evaluation in finished)


def _write(option: str, path: Path | None, content: bytes, mode: Literal["wb", "ab"] = "wb") -> None:
    if path is None:
        return
    try:
        with path.open(mode) as stream:
            stream.write(content)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidRequest(f"{option} {path} cannot be written: {reason}") from None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _absolute(uri: str) -> str:
    """A relative path is meant from this folder, which the service does not know."""
    return uri if "://" in uri or "::" in uri else str(Path(uri).expanduser().absolute())


def _tags(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise InvalidRequest(f"--tag {pair}: write it as KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _inline_model(text: str | None, option: str = "--model") -> Any:
    from evalsvc.model_config import read_model_spec

    return _inline(option, text, read_model_spec)


def _inline_layout(text: str | None, option: str = "--layout") -> Any:
    from evalsvc.layout import parse_layout

    return _inline(option, text, lambda spec, base: parse_layout(spec, base).to_json())


def _inline(option: str, text: str | None, read: Callable[[Any, Path], dict[str, Any]]) -> Any:
    """What a name, a file of this machine or JSON stands for, checked here: the service need not find the file."""
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        return read(text, Path.cwd())
    try:
        return read(json.loads(text), Path.cwd())
    except ValueError as error:
        raise InvalidRequest(f"{option} is not JSON: {error}") from None


if __name__ == "__main__":
    main()
