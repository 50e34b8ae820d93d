"""`evalsvc verify`: compute numbers a second time, by other programs or against golden values."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.options import (
    FAILED,
    Device,
    Layout,
    Model,
    Suites,
    Url,
    complete_run,
    connect,
    local_settings,
    refuse,
    require_folders,
    write_output,
)
from evalsvc.cli.progress import show_bars
from evalsvc.cli.terminal import print_table, say, say_json, warn
from evalsvc.cli.weights import checkpoint_reference, inline_layout, inline_model
from evalsvc.config import Settings
from evalsvc.doctor.verification import keep_verification, present_versions
from evalsvc.errors import InvalidRequest, os_reason
from evalsvc.spec.engines import parse_engines
from evalsvc.spec.suite import find_suite
from evalsvc.verify.agreement import COLUMNS, DROP, Agreement, Finding, Untried, all_agree, table_row, to_json
from evalsvc.verify.recorded import RecordedTask, read_recorded

UNTRIED = 2
"""Exit code of a command that could compute no number a second time."""

commands = typer.Typer()


@commands.command(no_args_is_help=True)
def verify(
    name: Annotated[
        str | None,
        Argument(
            metavar="machine|RUN@STEP",
            help="`machine`, or a checkpoint of the service as RUN@STEP[:VARIANT].",
            autocompletion=complete_run,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, Option(help="Weights to evaluate on this machine, without a service.", show_default="none")
    ] = None,
    suite: Annotated[
        str | None,
        Option(help="Suite: a name, or with --checkpoint also a file.", show_default="all suites that evaluated it"),
    ] = None,
    engine: Annotated[
        list[str] | None,
        Option(
            "--engine",
            help="Compare with this reference engine, as STAGE=NAME, such as model=open_lm; repeat for several.",
            show_default="all",
        ),
    ] = None,
    n: Annotated[
        int | None,
        Option(
            "--n",
            min=2,
            max=10_000,
            help="Number of images or sequences of a task, or documents of a benchmark.",
            show_default="64",
        ),
    ] = None,
    model: Model = None,
    layout: Layout = None,
    suites: Suites = None,
    output: Annotated[
        Path | None,
        Option("--output", help="File .json to write the findings to; - is standard output.", show_default="none"),
    ] = None,
    device: Device = None,
    threads: Annotated[
        int | None,
        Option(min=1, help="CPU threads; the small models of `machine` are slower with more.", show_default="1 or all"),
    ] = None,
    url: Url = None,
) -> None:
    """Check that this machine computes the right numbers, or check those of a checkpoint against reference engines.

    `evalsvc verify machine` runs models, sampling, decoding, features, metrics and benchmarks on bundled data, and
    compares the values with those of reference programs. The result is kept in the data folder for `evalsvc doctor`.

    `evalsvc verify RUN@STEP` computes the first items of a checkpoint's tasks again, and compares with the recorded
    items and with reference engines, item by item. With --engine, only these reference engines are tried.

    The exit code is 0 if all values agree, 1 if a value differs, and 2 if nothing could be compared.
    """
    if output is not None and str(output) != "-" and output.suffix != ".json":
        raise InvalidRequest(f"--output {output} does not end in .json; name a .json file for the findings")
    if str(output) != "-":
        require_folders({"--output": output})
    if name == "machine":
        of_checkpoints = {"--checkpoint": checkpoint, "--suite": suite, "--engine": engine, "--n": n}
        refuse(of_checkpoints | {"--model": model, "--layout": layout, "--suites": suites}, "with machine")
        settings = local_settings(device, threads)
        findings, about = _verify_machine(settings if settings.threads else replace(settings, threads=1))
        try:
            keep_verification(settings.data_path, {**about, **to_json(findings)})
        except OSError as error:
            place, reason = settings.data_path, os_reason(error)
            warn(f"the result is not kept for `evalsvc doctor`: {place} cannot be written: {reason}")
        raise typer.Exit(_report(findings, about, output))
    if (name is None) == (checkpoint is None):
        given = "both are given" if name else "neither is given"
        raise InvalidRequest(f"verify needs either RUN@STEP or --checkpoint FILE, and {given}; give one of them")
    if checkpoint is not None and suite is None:
        do = "name the suite that evaluates the checkpoint: --suite NAME"
        raise InvalidRequest(f"--checkpoint is given without --suite; {do}")
    settings, engines = local_settings(device, threads, suites), parse_engines(engine or ())
    most = 64 if n is None else n
    # PyTorch takes seconds to import and is not on every machine; `--help` and a mistyped option need no PyTorch.
    from evalsvc.verify.checkpoint import VerifyRequest, verify_tasks

    if checkpoint is None or suite is None:
        with connect(url) as client:
            tasks = read_recorded(client, str(name), settings, suite)
    else:
        reference = checkpoint_reference(checkpoint, inline_model(model), inline_layout(layout), settings)
        tasks = [RecordedTask(reference, spec) for spec in find_suite(suite, settings.suites_path).tasks]
    with show_bars() as bars:

        def report(task: str, done: int) -> None:
            bars.show(task, min(done, most), most, "computed")

        findings = verify_tasks(tasks, VerifyRequest(settings, engines, most, report))
    raise typer.Exit(_report(findings, {}, output))


def _verify_machine(settings: Settings) -> tuple[list[Finding], dict[str, object]]:
    # The data folder is empty, since cached statistics of other evaluations would hide errors. Settings such as
    # EVALSVC_ROOTS and batch sizes say nothing about the machine.
    import evalsvc.worker  # noqa: F401  # first, since its error says how to install PyTorch
    from evalsvc.verify.machine import Golden, describe_machine, prepared_device, verify_machine

    device = prepared_device(settings.device, settings.threads)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="evalsvc-verify-") as folder, show_bars() as bars:
        alone = Settings(data_dir=folder, assets=str(settings.assets_path), devices=device, threads=settings.threads)
        golden = Golden(device, settings=alone)
        findings = verify_machine(golden, lambda name, done, total: bars.show("machine", done, total, name))
    about = describe_machine(device) | {"versions": present_versions()}
    about |= {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    about |= {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(time.process_time(), 1)}
    return findings, about


def _report(findings: Sequence[Finding], about: Mapping[str, object], output: Path | None) -> int:
    document = {**about, **to_json(findings)}
    if str(output) == "-":
        say_json(document)
    else:
        rows = [table_row(finding) for finding in findings]
        print_table(COLUMNS, rows, optional=("ours", "theirs"), drop=DROP, below=("note",))
        say(headline(findings))
        if output is not None:
            write_output("--output", output, json.dumps(document, indent=2) + "\n")
    return exit_code(findings)


def headline(findings: Sequence[Finding]) -> str:
    """Return the last line of the report: the number of values that agree, and the names of those that differ."""
    tried = [finding for finding in findings if isinstance(finding, Agreement)]
    wrong = [finding.quantity for finding in tried if not finding.agrees]
    untried = f"; {len(findings) - len(tried)} could not be tried" if len(tried) < len(findings) else ""
    if wrong:
        return f"{len(wrong)} of {len(tried)} differ: {'; '.join(wrong)}{untried}"
    return f"all {len(tried)} agree{untried}" if tried else f"nothing was computed a second time{untried}"


def exit_code(findings: Sequence[Finding]) -> int:
    if all(isinstance(finding, Untried) for finding in findings):
        return UNTRIED
    return 0 if all_agree(findings) else FAILED
