"""`evalsvc submit`, `sweep` and `base`: checkpoints go in, and what they are compared with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from evalsvc.checkpoints.reference import Spool
from evalsvc.cli.options import FAILED, Layout, Model, Suite, Url, connect
from evalsvc.cli.progress import print_news, show_bars
from evalsvc.cli.tables import print_metrics, print_warnings
from evalsvc.cli.terminal import complain, say
from evalsvc.cli.uploads import show_upload, uploaded_model, uploaded_path
from evalsvc.cli.weights import absolute_uri, inline_layout, inline_model
from evalsvc.client import Client
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import Evaluation, EvaluationSummary, Posted

commands = typer.Typer()

Weights = Annotated[
    str, typer.Argument(help="The weights: a path, a uri, or an expression, e.g. lerp(run@0, run@9, 0.3).")
]
Variant = Annotated[str | None, typer.Option(help="Which weights of the step, e.g. ema_0.9999.", show_default="raw")]


class StepCommand(TyperCommand):
    """Says what is wrong with a negative step, which would else be read as an option that does not exist."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, argument in zip(["", *args], args, strict=False):
            if re.fullmatch(r"-\d+(\.\d+)?", argument) and not before.startswith("--"):
                raise InvalidRequest(f"step {argument}: a step is a whole number of at least 0")
        return super().parse_args(ctx, args)


@commands.command(cls=StepCommand)
def submit(
    run: Annotated[str, typer.Argument(help="The training run.")],
    step: Annotated[int, typer.Argument(help="The training step.")],
    uri: Weights,
    suite: Suite = None,
    variant: Variant = None,
    model: Model = None,
    layout: Layout = None,
    tokens_seen: Annotated[int | None, typer.Option(help="Tokens trained on so far.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The file's digest; a worker checks it.")] = None,
    spool: Annotated[Spool, typer.Option(help="Keep the weights until they are evaluated.")] = "none",
    priority: Annotated[int, typer.Option(help="Higher first.")] = 0,
    tag: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; repeat for several.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another file at this step and variant.")] = False,
    upload: Annotated[
        bool, typer.Option("--upload", help="Send the file to the service, which cannot read this machine's files.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the evaluations and show their metrics.")] = False,
    url: Url = None,
) -> None:
    """Post a checkpoint to the service and have it evaluated.

    With --wait the exit code is 1 when an evaluation did not succeed.
    """
    with connect(url) as client:
        with show_upload() as report:
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
        if wait and not _wait(client, posted.evaluations):
            raise typer.Exit(FAILED)


@commands.command()
def sweep(
    run: Annotated[str, typer.Argument(help="The run to make of it.")],
    first: Annotated[str, typer.Argument(help="RUN@STEP, base, or an expression.")],
    second: Annotated[str, typer.Argument(help="What it goes to, given likewise.")],
    points: Annotated[int, typer.Option(help="How many, with both ends: 2, 3, 5, 6, 11, 21, 26, 51 or 101.")] = 11,
    suite: Suite = None,
    variant: Annotated[str, typer.Option(help="What to call these weights.")] = "raw",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the evaluations.")] = False,
    url: Url = None,
) -> None:
    """Post what lies on the straight line between two checkpoints' weights, evenly spaced.

    RUN's step is the percentage of SECOND: step 30 is lerp(FIRST, SECOND, 0.3). With --wait the exit code is 1 when an
    evaluation did not succeed.
    """
    if points < 2 or 100 % (points - 1):
        raise InvalidRequest(
            f"--points {points}: steps are whole percents, so give 2, 3, 5, 6, 11, 21, 26, 51 or 101 points"
        )
    with connect(url) as client:
        evaluations: list[EvaluationSummary] = []
        for step in range(0, 101, 100 // (points - 1)):
            between = f"lerp({first}, {second}, {step / 100:g})"
            posted = client.submit(run, step, between, variant=variant, suites=suite or None)
            show_posted(posted)
            evaluations += posted.evaluations
        if wait and not _wait(client, evaluations, show=False):
            raise typer.Exit(FAILED)


@commands.command(cls=StepCommand)
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
    if step is None and of is not None:
        raise InvalidRequest(f"--of {of} is given without a step; say which: evalsvc base {run} STEP --of {of}")
    with connect(url) as client:
        declared = client.run(run).base if step is None else client.set_base(run, step, of=of, variant=variant)
    there = "not posted yet" if declared.checkpoint is None else f"checkpoint {declared.checkpoint}"
    say(f"base of {run}: {declared.run} step {declared.step} {declared.variant} ({there})")


def show_posted(posted: Posted) -> None:
    checkpoint = posted.checkpoint
    made_of = f", {checkpoint.uri}" if checkpoint.parents else ""
    say(f"checkpoint {checkpoint.id}: {checkpoint.run} step {checkpoint.step} {checkpoint.variant}{made_of}")
    for evaluation in posted.evaluations:
        say(f"evaluation {evaluation.id}: {evaluation.suite} {evaluation.state}")
    if not posted.evaluations:
        say("no suite is due at this step by the run's plan; name one with --suite")


def show_finished(evaluation: Evaluation) -> None:
    protocols = {identity: content for task in evaluation.tasks for identity, content in task.protocols.items()}
    print_metrics([metric for task in evaluation.tasks for metric in task.metrics or []], protocols)
    for task in evaluation.tasks:
        print_warnings(task.warnings)
    name = f"evaluation {evaluation.id} ({evaluation.suite.name})"
    failures = [(f"{name}, task {task.name}", task.error) for task in evaluation.tasks if task.error is not None]
    if evaluation.error is not None and not failures:
        failures = [(name, evaluation.error)]
    for where, error in failures:
        complain(f"{where}: {error.message} [{error.code}]")


def _wait(client: Client, evaluations: Sequence[EvaluationSummary], show: bool = True) -> bool:
    """Wait for evaluations with a bar per task, then show what they (or those that failed) found; did all succeed?"""
    say_news = print_news()
    with show_bars() as bars:

        def report(evaluation: Evaluation) -> None:
            for task in evaluation.tasks:
                now = task.progress
                bars.show(f"{evaluation.suite.name}: {task.name}", now.done, now.total, now.unit or "")
            say_news(evaluation)

        finished = [client.wait(evaluation.id, report=report) for evaluation in evaluations]
    for evaluation in finished:
        if show or evaluation.state != "succeeded":
            show_finished(evaluation)
    return all(evaluation.state == "succeeded" for evaluation in finished)


def _tags(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise InvalidRequest(f"--tag {pair}: write it as KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
