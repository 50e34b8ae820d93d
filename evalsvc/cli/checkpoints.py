"""`evalsvc submit` and `checkpoints`: post, list, show and delete checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from evalsvc.checkpoints.reference import Spool
from evalsvc.cli.answers import first_rows, moment, page_size, print_list, print_one, printed_to
from evalsvc.cli.confirmation import confirm_by_name
from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.name_completion import complete_run, complete_suite
from evalsvc.cli.options import (
    FAILED,
    CheckpointArgument,
    FirstStep,
    Form,
    Format,
    LastStep,
    Layout,
    Limit,
    Model,
    OfRun,
    Output,
    RunArgument,
    Suite,
    Url,
    Yes,
    connect,
)
from evalsvc.cli.progress import Transfer, print_news, show_bars, show_transfer
from evalsvc.cli.tables import print_errors, print_left_out, print_metrics, print_warnings
from evalsvc.cli.terminal import say
from evalsvc.cli.weights import (
    absolute_uri,
    inline_layout,
    inline_model,
    local_file,
    uploaded_model,
    uploaded_path,
)
from evalsvc.cli.wording import counted, in_options
from evalsvc.client import OVER, Client
from evalsvc.client.reader import find_checkpoint
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import CheckpointResult, Evaluation, ListedCheckpoint, Posted
from evalsvc.spec.documents.fields import State
from evalsvc.spec.names import checkpoint_name, parse_checkpoint
from evalsvc.watch.wide_table import require_layout

commands = typer.Typer()
checkpoints_app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="List, show and delete checkpoints.")
commands.add_typer(checkpoints_app, name="checkpoints")

Weights = Annotated[
    str,
    typer.Argument(metavar="FILE", help="Weights: a path, a URI, or an expression, such as lerp(run@0, run@9, 0.3)."),
]
Variant = Annotated[str | None, typer.Option(help="Variant of the weights, such as ema_0.9999.", show_default="raw")]


class StepCommand(TyperCommand):
    """Command that refuses a negative step by name; typer would read the number as an unknown option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, argument in zip(["", *args], args, strict=False):
            if re.fullmatch(r"-\d+(\.\d+)?", argument) and not before.startswith("--"):
                raise InvalidRequest(f"step {argument} is not a step; give a whole number of at least 0")
        return super().parse_args(ctx, args)


@commands.command(cls=StepCommand)
def submit(
    run: RunArgument,
    step: Annotated[int, typer.Argument(metavar="STEP", help="Training step.")],
    uri: Weights,
    suite: Suite = None,
    variant: Variant = None,
    model: Model = None,
    layout: Layout = None,
    tokens_seen: Annotated[
        int | None, typer.Option(help="Number of tokens that the model was trained on so far.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="SHA-256 of the file, which a worker checks.")] = None,
    spool: Annotated[
        Spool, typer.Option(help="Keep the weights until their evaluation ends, by a hard link or a copy.")
    ] = "none",
    priority: Annotated[int, typer.Option(help="Priority; higher priorities are evaluated first.")] = 0,
    tag: Annotated[list[str] | None, typer.Option(help="Tag as KEY=VALUE; repeat for several.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace another file that was posted for this step and variant.")
    ] = False,
    upload: Annotated[
        bool,
        typer.Option("--upload", help="Upload the file, for a service that cannot read the files of this machine."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the evaluations, and show their metrics.")] = False,
    url: Url = None,
) -> None:
    """Post a checkpoint to the service and have it evaluated.

    With --wait, the exit code is 1 if an evaluation did not succeed.
    """
    with connect(url) as client:
        if layout is None and (path := local_file(uri)) is not None:
            require_layout(client, path, inline_model(model), suite or ())
        transfer: AbstractContextManager[Transfer | None] = show_transfer() if upload else nullcontext()
        with transfer as report:
            posted = client.submit(
                run,
                step,
                uploaded_path(uri) if upload else absolute_uri(uri),
                variant=variant,
                suites=suite or None,
                model=uploaded_model(uri, model) if upload else inline_model(model),
                layout=inline_layout(layout),
                tokens_seen=tokens_seen,
                sha256=sha256,
                spool=spool,
                priority=priority,
                tags=_tags(tag or []),
                replace=replace,
                upload=upload,
                report=report,
            )
        show_posted(posted)
        if wait and not wait_for(client, [evaluation.id for evaluation in posted.evaluations]):
            raise typer.Exit(FAILED)


@checkpoints_app.command("list")
def list_checkpoints(
    run: OfRun = None,
    variant: Annotated[
        str | None, typer.Option(help="Show only this variant of the weights.", show_default="all")
    ] = None,
    state: Annotated[
        State | None, typer.Option(help="Show only checkpoints with an evaluation in this state.", show_default="any")
    ] = None,
    first: FirstStep = None,
    last: LastStep = None,
    limit: Limit = 100,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List checkpoints with the states of their evaluations, by run and step."""
    with connect(url) as client, printed_to(output):
        checkpoints = client.checkpoints(
            run, variant=variant, state=state, first=first, last=last, page_size=page_size(limit)
        )
        nothing = "no checkpoint matches; evalsvc submit posts a checkpoint"
        print_list(first_rows(checkpoints, limit), form, "checkpoints", _checkpoint_row, nothing)


def _checkpoint_row(checkpoint: ListedCheckpoint) -> dict[str, str]:
    return {
        "checkpoint": checkpoint_name(checkpoint.run, checkpoint.step, checkpoint.variant),
        "id": str(checkpoint.id),
        "evaluations": ", ".join(f"{item.suite} {item.state}" for item in checkpoint.evaluations),
        "posted": moment(checkpoint.created_at),
        "tokens seen": "" if checkpoint.tokens_seen is None else f"{checkpoint.tokens_seen:,}",
        "weights": checkpoint.uri,
    }


@checkpoints_app.command("show")
def show_checkpoint(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN@STEP", help="Checkpoint: RUN@STEP, RUN@STEP:VARIANT, or an id.", autocompletion=complete_run
        ),
    ],
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show a checkpoint: the place of its weights, whether the service needs them, and its evaluations."""
    with connect(url) as client, printed_to(output):
        print_checkpoint(client, name, form)


@checkpoints_app.command("result")
def show_result(
    name: CheckpointArgument,
    suite: Annotated[
        str | None,
        typer.Option(help="Show only results by this suite.", show_default="all", autocompletion=complete_suite),
    ] = None,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show the metrics of a checkpoint by the newest evaluation of each suite.

    With --format json --output FILE, the file has the format of `evalsvc run --output`, which `evalsvc compare` and
    `evalsvc gate` read.
    """
    run, step, variant = parse_checkpoint(name)
    with connect(url) as client, printed_to(output):
        print_one(client.results(run, step, variant=variant, suite=suite), form, _print_result)


def _print_result(result: CheckpointResult) -> None:
    suites = ", ".join(f"{evaluation.suite} {evaluation.state}" for evaluation in result.evaluations)
    say(f"{result.checkpoint.label}: {suites}")
    print_metrics(result.metrics, result.protocols)
    for task, warnings in result.warnings.items():
        print_warnings(warnings, f"{task}: ")
    print_errors(result.errors)


@checkpoints_app.command("delete")
def delete_checkpoint(
    name: CheckpointArgument,
    yes: Yes = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel its evaluations that are queued or running.")
    ] = False,
    url: Url = None,
) -> None:
    """Delete a checkpoint with its evaluations and their values, irrevocably.

    The file that was posted is not deleted.
    """
    with connect(url) as client:
        checkpoint = find_checkpoint(client, name)
        full_name = checkpoint_name(checkpoint.run, checkpoint.step, checkpoint.variant)
        what = f"checkpoint {full_name} with {counted(len(checkpoint.evaluations), 'evaluation')}"
        confirm_by_name(what, full_name, yes)
        deleted = client.delete_checkpoint(checkpoint.id, confirm=full_name, cancel=cancel)
    say(
        f"checkpoint {full_name} is deleted: {counted(deleted.evaluations, 'evaluation')}, "
        f"{counted(deleted.values, 'value')}, {counted(deleted.artifacts, 'artifact')}, "
        f"{counted(deleted.freed_bytes, 'byte')} of files"
    )


def print_checkpoint(client: Client, name: str, form: Format) -> None:
    """Print a checkpoint by its name; a table also names the metrics that could not be measured, with the reasons."""
    checkpoint = find_checkpoint(client, name)
    print_one(checkpoint, form)
    if form == "table":
        print_left_out(client.evaluation(item.id) for item in checkpoint.evaluations if item.state in OVER)


def show_posted(posted: Posted) -> None:
    checkpoint = posted.checkpoint
    made_of = f", {checkpoint.uri}" if checkpoint.parents else ""
    say(f"checkpoint {checkpoint.id}: {checkpoint.run} step {checkpoint.step} {checkpoint.variant}{made_of}")
    for evaluation in posted.evaluations:
        say(f"evaluation {evaluation.id}: {evaluation.suite} {evaluation.state}")
    if posted.note:
        say(in_options(posted.note))


def show_finished(evaluation: Evaluation) -> None:
    protocols = {identity: content for task in evaluation.tasks for identity, content in task.protocols.items()}
    print_metrics([metric for task in evaluation.tasks for metric in task.metrics or []], protocols)
    for task in evaluation.tasks:
        print_warnings(task.warnings)
    name = f"evaluation {evaluation.id} ({evaluation.suite.name})"
    errors = {task.name: task.error for task in evaluation.tasks if task.error is not None}
    print_errors(errors, f"{name}, task ")
    if evaluation.error is not None and not errors:
        print_errors({name: evaluation.error})


def wait_for(client: Client, evaluations: Sequence[int]) -> bool:
    """Wait for evaluations with a progress bar for each task, print their metrics, and return whether all succeeded."""
    say_news = print_news()
    with show_bars() as bars:

        def report(evaluation: Evaluation) -> None:
            for task in evaluation.tasks:
                now = task.progress
                bars.show(f"{evaluation.suite.name}: {task.name}", now.done, now.total, now.unit or "")
            say_news(evaluation)

        try:
            finished = [client.wait(evaluation, report=report) for evaluation in evaluations]
        except KeyboardInterrupt:
            ids = " ".join(map(str, evaluations))
            say(f"the service goes on; follow it: evalsvc evaluations wait {ids}", err=True)
            raise
    for evaluation in finished:
        show_finished(evaluation)
    return all(evaluation.state == "succeeded" for evaluation in finished)


def _tags(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise InvalidRequest(f"--tag {pair} has no `=`; write the tag as KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
