"""`evalsvc submit`: post a checkpoint, and wait for its evaluations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from evalsvc.cli.options import FAILED, Kept, Layout, Model, Priority, Replace, RunArgument, Suite, Url, connect
from evalsvc.cli.printer import print_errors, print_metrics, print_warnings
from evalsvc.cli.progress import Transfer, print_news, show_bars, show_transfer
from evalsvc.cli.terminal import say
from evalsvc.cli.weights import absolute_uri, inline_layout, inline_model, local_file, uploaded_model, uploaded_path
from evalsvc.cli.wording import in_options
from evalsvc.client import Client
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import Evaluation, Posted
from evalsvc.watch.wide_table import require_layout

commands = typer.Typer()


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
    step: Annotated[int, Argument(metavar="STEP", help="Training step.")],
    uri: Annotated[
        str, Argument(metavar="FILE", help="Weights: a path, a URI, or an expression, such as lerp(run@0, run@9, 0.3).")
    ],
    suite: Suite = None,
    variant: Annotated[
        str | None, Option(help="Variant of the weights, such as ema_0.9999.", show_default="raw")
    ] = None,
    model: Model = None,
    layout: Layout = None,
    tokens_seen: Annotated[int | None, Option(help="Number of tokens that the model was trained on so far.")] = None,
    sha256: Annotated[str | None, Option(help="SHA-256 of the file, which a worker checks.")] = None,
    spool: Kept = "none",
    priority: Priority = 0,
    tag: Annotated[list[str] | None, Option(help="Tag as KEY=VALUE; repeat for several.")] = None,
    replace: Replace = False,
    upload: Annotated[
        bool, Option("--upload", help="Upload the file or folder to a service that cannot read this machine's files.")
    ] = False,
    wait: Annotated[bool, Option("--wait", help="Wait for the evaluations, and show their metrics.")] = False,
    url: Url = None,
) -> None:
    """Post a checkpoint to the service and have it evaluated.

    With --wait, the exit code is 1 if an evaluation did not succeed.
    """
    for pair in tag or ():
        if "=" not in pair:
            raise InvalidRequest(f"--tag {pair} has no `=`; write the tag as KEY=VALUE")
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
                tags=dict(pair.split("=", 1) for pair in tag or ()),
                replace=replace,
                upload=upload,
                report=report,
            )
        show_posted(posted)
        if wait and not wait_for(client, [evaluation.id for evaluation in posted.evaluations]):
            raise typer.Exit(FAILED)


def show_posted(posted: Posted) -> None:
    checkpoint = posted.checkpoint
    made_of = f", {checkpoint.uri}" if checkpoint.parents else ", external images" if checkpoint.images else ""
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
            say(f"the service goes on; follow it: evalsvc evaluations {ids} --wait", err=True)
            raise
    for evaluation in finished:
        show_finished(evaluation)
    return all(evaluation.state == "succeeded" for evaluation in finished)
