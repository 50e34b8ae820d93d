"""`evalsvc runs`, `checkpoints` and `delete`: show, change and delete runs and their checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.name_completion import complete_run
from evalsvc.cli.options import (
    Cancel,
    FirstStep,
    Form,
    LastStep,
    Limit,
    OfSuite,
    OfVariant,
    Output,
    Url,
    Yes,
    connect,
    refuse,
)
from evalsvc.cli.printer import first_rows, page_size, print_list, printed_to, show
from evalsvc.cli.tables import print_errors, print_metrics, print_warnings
from evalsvc.cli.terminal import confirm, one_line, say
from evalsvc.cli.wording import counted
from evalsvc.client import OVER
from evalsvc.client.reader import find_checkpoint
from evalsvc.spec.documents import CheckpointResult, Deleted, DeletedCheckpoint, Evaluation
from evalsvc.spec.documents.fields import State
from evalsvc.spec.names import CHECKPOINT, checkpoint_name, parse_checkpoint

commands = typer.Typer()


@commands.command()
def runs(
    run: Annotated[
        str | None,
        Argument(metavar="RUN", help="Run to show or change.", show_default="all", autocompletion=complete_run),
    ] = None,
    name: Annotated[str | None, Option(help="Rename the run.", show_default="unchanged")] = None,
    base: Annotated[
        str | None,
        Option(
            help="Set the base of the run: RUN@STEP or RUN@STEP:VARIANT.",
            show_default="unchanged",
            autocompletion=complete_run,
        ),
    ] = None,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List all runs; or show a run with its plan, its base and its checkpoints; or rename it, or set its base.

    The base is the checkpoint that the others are compared with, such as the language model from which the training
    started. The default base is step 0 of the run. A new name also changes in expressions, and where the run is the
    base of other runs.
    """
    with connect(url) as client, printed_to(output):
        if run is None:
            refuse({"--name": name, "--base": base}, "without a run")
            columns = ("name", "checkpoints", "last_step", "values", "created_at")
            print_list(client.runs(), columns, form, "runs", "no run exists yet; evalsvc submit posts a checkpoint")
            return
        if name is None and base is None:
            show(client.run(run), form)
        if base is not None:
            of, step, variant = parse_checkpoint(base)
            present = client.set_base(run, step, of=of, variant=variant)
            posted = f"checkpoint {present.checkpoint}"
            say(f"base of {run}: {present.run} step {present.step} {present.variant} ({posted})")
        if name is not None:
            client.rename_run(run, name)
            say(f"run {run} is renamed to {name}")


@commands.command()
def checkpoints(
    name: Annotated[
        str | None,
        Argument(
            metavar="RUN[@STEP]",
            help="Run whose checkpoints are listed; or the checkpoint to show: RUN@STEP, RUN@STEP:VARIANT, or an id.",
            show_default="all",
            autocompletion=complete_run,
        ),
    ] = None,
    variant: OfVariant = None,
    state: Annotated[
        State | None, Option(help="List only checkpoints with an evaluation in this state.", show_default="any")
    ] = None,
    first: FirstStep = None,
    last: LastStep = None,
    result: Annotated[
        bool, Option("--result", help="Show the metrics of RUN@STEP by the newest evaluation of each suite.")
    ] = False,
    suite: OfSuite = None,
    limit: Limit = 100,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List checkpoints with the states of their evaluations, by run and step; or show one checkpoint.

    With --result --format json --output FILE, the file has the format of `evalsvc run --output`, which `evalsvc
    compare` and `evalsvc gate` read.
    """
    is_one = name is not None and ("@" in name or name.isdecimal())
    with connect(url) as client, printed_to(output):
        if not result:
            refuse({"--suite": suite}, "without --result")
        if result:
            run, step, of_variant = parse_checkpoint(name or "")
            show(client.results(run, step, variant=of_variant, suite=suite), form, _print_result)
        elif is_one:
            filters = {"--variant": variant, "--state": state, "--from": first, "--to": last}
            refuse(filters, f"with {name}, which is one checkpoint")
            checkpoint = find_checkpoint(client, str(name))
            show(checkpoint, form)
            if form == "table":
                _print_left_out(client.evaluation(item.id) for item in checkpoint.evaluations if item.state in OVER)
        else:
            listed = client.checkpoints(
                name, variant=variant, state=state, first=first, last=last, page_size=page_size(limit)
            )
            columns = ("checkpoint", "id", "evaluations", "created_at", "tokens_seen", "uri")
            nothing = "no checkpoint matches; evalsvc submit posts a checkpoint"
            print_list(first_rows(listed, limit), columns, form, "checkpoints", nothing)


def _print_result(result: CheckpointResult) -> None:
    suites = ", ".join(f"{evaluation.suite} {evaluation.state}" for evaluation in result.evaluations)
    say(f"{result.checkpoint.label}: {suites}")
    print_metrics(result.metrics, result.protocols)
    for task, warnings in result.warnings.items():
        print_warnings(warnings, f"{task}: ")
    print_errors(result.errors)


def _print_left_out(evaluations: Iterable[Evaluation]) -> None:
    for evaluation in evaluations:
        for warning in (warning for task in evaluation.tasks for warning in task.warnings):
            if warning.code == "left_out":
                say(f"{warning.metric}: not measured by {evaluation.suite.name}: {one_line(warning.message)}")


@commands.command()
def delete(
    name: Annotated[
        str,
        Argument(
            metavar="RUN[@STEP]",
            help="Run, or a checkpoint as RUN@STEP or RUN@STEP:VARIANT.",
            autocompletion=complete_run,
        ),
    ],
    yes: Yes = False,
    cancel: Cancel = False,
    url: Url = None,
) -> None:
    """Delete a run or a checkpoint with its evaluations, values and artifacts, irrevocably.

    The files that were posted are not deleted.
    """
    with connect(url) as client:
        if not CHECKPOINT.fullmatch(name):
            count = client.run(name, all_checkpoints=False).checkpoint_count
            confirm(f"run {name} with {counted(count, 'checkpoint')}", yes, name)
            whole = client.delete_run(name, cancel=cancel)
            say(f"run {name} is deleted: {counted(whole.checkpoints, 'checkpoint')}, {_counts(whole)}")
            return
        checkpoint = find_checkpoint(client, name)
        full_name = checkpoint_name(checkpoint.run, checkpoint.step, checkpoint.variant)
        confirm(f"checkpoint {full_name} with {counted(len(checkpoint.evaluations), 'evaluation')}", yes, full_name)
        part = client.delete_checkpoint(checkpoint.id, confirm=full_name, cancel=cancel)
        say(f"checkpoint {full_name} is deleted: {_counts(part)}")


def _counts(deleted: Deleted | DeletedCheckpoint) -> str:
    return (
        f"{counted(deleted.evaluations, 'evaluation')}, {counted(deleted.values, 'value')}, "
        f"{counted(deleted.artifacts, 'artifact')}, {counted(deleted.freed_bytes, 'byte')} of files"
    )
