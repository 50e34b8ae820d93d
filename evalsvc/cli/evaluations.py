"""`evalsvc evaluations`: list, show, cancel, retry and repeat evaluations."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from evalsvc.cli.again import Repetition, plan_repetition
from evalsvc.cli.answers import first_rows, moment, page_size, print_list, print_one, printed_to
from evalsvc.cli.checkpoints import wait_for
from evalsvc.cli.confirmation import confirm
from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.name_completion import complete_run, complete_suite
from evalsvc.cli.options import (
    FAILED,
    EvaluationId,
    FirstStep,
    Form,
    LastStep,
    Limit,
    OfRun,
    Output,
    Url,
    Yes,
    connect,
)
from evalsvc.cli.status_screen import duration
from evalsvc.cli.suite_text import print_suite_tasks
from evalsvc.cli.tables import print_metrics
from evalsvc.cli.terminal import print_table, say
from evalsvc.cli.wording import counted, in_options
from evalsvc.errors import meaning
from evalsvc.spec.documents import EvaluatedSuite, Evaluation, ListedEvaluation, Task
from evalsvc.spec.documents.fields import OVER, State
from evalsvc.spec.names import checkpoint_name

commands = typer.Typer()
evaluations_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="List, show, cancel, retry and repeat evaluations."
)
commands.add_typer(evaluations_app, name="evaluations")

Ids = Annotated[list[int], typer.Argument(metavar="ID", min=1, help="Ids of evaluations.")]


@evaluations_app.command("list")
def list_evaluations(
    run: OfRun = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Show only evaluations by this suite.", show_default="all", autocompletion=complete_suite),
    ] = None,
    state: Annotated[
        State | None, typer.Option(help="Show only evaluations in this state.", show_default="any")
    ] = None,
    first: FirstStep = None,
    last: LastStep = None,
    limit: Limit = 100,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List evaluations, the newest first."""
    with connect(url) as client, printed_to(output):
        evaluations = client.evaluations(
            run, suite=suite, state=state, first=first, last=last, page_size=page_size(limit)
        )
        print_list(first_rows(evaluations, limit), form, "evaluations", _row, "no evaluation matches")


def _row(evaluation: ListedEvaluation) -> dict[str, str]:
    return {
        "id": str(evaluation.id),
        "checkpoint": checkpoint_name(evaluation.run, evaluation.step, evaluation.variant),
        "suite": evaluation.suite.name,
        "state": evaluation.state,
        "requested": moment(evaluation.created_at),
        "took": _took(evaluation.started_at, evaluation.finished_at),
        "error": "" if evaluation.error is None else evaluation.error.code,
    }


def _took(started: str | None, finished: str | None) -> str:
    if started is None or finished is None:
        return ""
    return duration((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds())


@evaluations_app.command()
def show(evaluation: EvaluationId, form: Form = "table", output: Output = None, url: Url = None) -> None:
    """Show an evaluation: its tasks, its failures with their cures, and its metrics."""
    with connect(url) as client, printed_to(output):
        print_one(client.evaluation(evaluation), form, _print_evaluation)


def _print_evaluation(evaluation: Evaluation) -> None:
    checkpoint = checkpoint_name(evaluation.run, evaluation.step, evaluation.variant)
    took = _took(evaluation.started_at, evaluation.finished_at)
    say(f"evaluation {evaluation.id} of {checkpoint} by suite {evaluation.suite.name}: {evaluation.state}")
    say(f"requested {moment(evaluation.created_at)} UTC" + (f", took {took}" if took else ""))
    columns = ["task", "kind", "state", "done", "unit", "attempts"]
    print_table(columns, [_task_row(task) for task in evaluation.tasks], optional=columns)
    _print_failures(evaluation)
    protocols = {identity: content for task in evaluation.tasks for identity, content in task.protocols.items()}
    print_metrics([metric for task in evaluation.tasks for metric in task.metrics or []], protocols)
    for task in evaluation.tasks:
        for warning in task.warnings:
            say(f"suspicious: {warning.metric}: {warning.message}")


def _task_row(task: Task) -> list[str]:
    progress = task.progress
    done = "" if progress.total is None else f"{progress.done:,} of {progress.total:,}"
    return [task.name, task.kind, task.state, done, progress.unit or "", f"{task.shards.attempts:,}"]


def _print_failures(evaluation: Evaluation) -> None:
    failures = [(f"task {task.name}", task.error) for task in evaluation.tasks if task.error is not None]
    if evaluation.error is not None and not failures:
        failures = [("the evaluation", evaluation.error)]
    for name, error in failures:
        say(in_options(f"{name} failed: {error.message} [{error.code}]"))
        if words := meaning(error.code):
            say(in_options(f"  {error.code}: {words}"))
    for task in evaluation.tasks:
        if task.retry is not None:
            cause = in_options(task.retry.error.message)
            say(f"task {task.name} is retried at {moment(task.retry.at)} UTC: {cause}")
    if failures and evaluation.state in OVER:
        say(f"after the cause is removed: evalsvc evaluations retry {evaluation.id}")


@evaluations_app.command("suite")
def show_suite(evaluation: EvaluationId, form: Form = "table", output: Output = None, url: Url = None) -> None:
    """Show the suite with which an evaluation started, even if the suite was replaced or deleted since."""
    with connect(url) as client, printed_to(output):
        print_one(client.evaluated_suite(evaluation), form, _print_evaluated_suite)


def _print_evaluated_suite(suite: EvaluatedSuite) -> None:
    since = {suite.digest: "unchanged since", None: "deleted since"}.get(suite.current_digest, "replaced since")
    say(f"suite {suite.name} of evaluation {suite.evaluation}, {since}; digest {suite.digest}")
    print_suite_tasks(suite.tasks)


@evaluations_app.command()
def wait(evaluations: Ids, url: Url = None) -> None:
    """Wait for evaluations, and show their metrics.

    The exit code is 1 if an evaluation did not succeed.
    """
    with connect(url) as client:
        if not wait_for(client, evaluations):
            raise typer.Exit(FAILED)


@evaluations_app.command()
def cancel(evaluations: Ids, url: Url = None) -> None:
    """Cancel evaluations that are queued or running. The results of finished shards are kept."""
    with connect(url) as client:
        for evaluation in evaluations:
            say(f"evaluation {evaluation}: {client.cancel(evaluation).state}")


@evaluations_app.command()
def retry(evaluations: Ids, url: Url = None) -> None:
    """Retry evaluations that failed or were cancelled. The results of finished shards are kept."""
    with connect(url) as client:
        for evaluation in evaluations:
            say(f"evaluation {evaluation}: {client.retry(evaluation).state}")


@evaluations_app.command()
def again(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN@A..B",
            help="Checkpoints: RUN@A..B, RUN@A..B/EVERY, RUN@STEP or RUN, each with :VARIANT unless raw.",
            autocompletion=complete_run,
        ),
    ],
    suite: Annotated[str, typer.Option(help="Name of the suite.", autocompletion=complete_suite)],
    missing: Annotated[
        bool,
        typer.Option(
            "--missing", help="Evaluate only checkpoints that the present version of the suite has not evaluated."
        ),
    ] = False,
    priority: Annotated[int, typer.Option(help="Priority; higher priorities are evaluated first.")] = 0,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Evaluate posted checkpoints with a suite, whether or not they were evaluated before.

    The command first prints the number of checkpoints, how many were evaluated before, and the estimated time, and
    asks for confirmation. Checkpoints whose evaluation by the suite is queued or running are left out.
    """
    with connect(url) as client:
        repetition = plan_repetition(client, name, suite, missing)
        for line in repetition_lines(repetition):
            say(line)
        if not repetition.checkpoints:
            return
        confirm(f"queue {counted(len(repetition.checkpoints), 'evaluation')}", yes)
        for checkpoint in repetition.checkpoints:
            evaluation = client.evaluate(checkpoint.id, suite, priority)
            place = checkpoint_name(evaluation.run, evaluation.step, evaluation.variant)
            say(f"evaluation {evaluation.id} of {place}: {evaluation.state}")


def repetition_lines(repetition: Repetition) -> list[str]:
    """Return the lines that `evaluations again` prints before it asks for confirmation."""
    lines = [
        f"{counted(repetition.matching, 'checkpoint')} in the selection: {repetition.succeeded:,} evaluated by the "
        f"present version of suite {repetition.suite}, {repetition.outdated:,} only by an earlier version; "
        f"{repetition.open:,} queued or running, which are left out"
    ]
    count = len(repetition.checkpoints)
    if not count:
        return [*lines, "no checkpoint is left to evaluate"]
    evaluations = counted(count, "evaluation")
    if repetition.seconds is None:
        return [*lines, f"{evaluations}; no evaluation by this suite has ended yet, so the time is unknown"]
    about = duration(count * repetition.seconds)
    return [
        *lines,
        f"{evaluations} in about {about}: {duration(repetition.seconds)} each, the median of the last "
        f"{repetition.measured:,} by this suite",
    ]
