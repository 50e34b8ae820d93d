"""`evalsvc evaluations`, `cancel` and `retry`: show, follow, cancel and repeat evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from statistics import median
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.options import (
    FAILED,
    FirstStep,
    Form,
    LastStep,
    Limit,
    OfSuite,
    Output,
    Priority,
    Url,
    Yes,
    complete_run,
    complete_suite,
    connect,
    refuse,
)
from evalsvc.cli.printer import (
    first_rows,
    moment,
    page_size,
    print_list,
    print_metrics,
    print_suite_tasks,
    printed_to,
    show,
    took,
)
from evalsvc.cli.submit import wait_for
from evalsvc.cli.terminal import confirm, print_table, say
from evalsvc.cli.wording import counted, duration, in_options
from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, UnknownName, meaning
from evalsvc.spec.documents import EvaluatedSuite, Evaluation, ListedCheckpoint
from evalsvc.spec.documents.fields import OVER, State
from evalsvc.spec.names import RUN, STEPS, checkpoint_name

commands = typer.Typer()

MEASURED = 20
"""Number of newest evaluations by a suite whose median duration is the estimate of the next one's."""


@commands.command()
def evaluations(
    names: Annotated[
        list[str] | None,
        Argument(
            metavar="RUN|ID",
            help="Run whose evaluations are listed; or the id of the evaluation to show, or ids to wait for.",
            show_default="all",
            autocompletion=complete_run,
        ),
    ] = None,
    suite: OfSuite = None,
    state: Annotated[State | None, Option(help="List only evaluations in this state.", show_default="any")] = None,
    first: FirstStep = None,
    last: LastStep = None,
    tasks: Annotated[
        bool, Option("--tasks", help="Show the suite with which the evaluation started, as it was then.")
    ] = False,
    wait: Annotated[
        bool, Option("--wait", help="Wait for the evaluations, and show their metrics; exit with 1 if one failed.")
    ] = False,
    limit: Limit = 100,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List evaluations, the newest first; or show one: its tasks, its failures with their cures, and its metrics."""
    ids = [int(name) for name in names or () if name.isdecimal()]
    if names and len(names) > 1 and not (wait and len(ids) == len(names)):
        raise InvalidRequest(f"{' '.join(names)} are several names; give one, or ids of evaluations with --wait")
    name = names[0] if names else None
    with connect(url) as client, printed_to(output):
        if ids:
            filters = {"--suite": suite, "--state": state, "--from": first, "--to": last}
            refuse(filters, f"with {name}, which is one evaluation")
            if wait:
                if not wait_for(client, ids):
                    raise typer.Exit(FAILED)
            elif tasks:
                show(client.evaluated_suite(ids[0]), form, _print_evaluated_suite)
            else:
                show(client.evaluation(ids[0]), form, _print_evaluation)
            return
        refuse({"--tasks": tasks, "--wait": wait}, "without the id of an evaluation")
        listed = client.evaluations(name, suite=suite, state=state, first=first, last=last, page_size=page_size(limit))
        columns = ("id", "checkpoint", "suite", "state", "created_at", "took", "error")
        print_list(first_rows(listed, limit), columns, form, "evaluations", "no evaluation matches")


def _print_evaluation(evaluation: Evaluation) -> None:
    checkpoint = checkpoint_name(evaluation.run, evaluation.step, evaluation.variant)
    seconds = took(evaluation.started_at, evaluation.finished_at)
    say(f"evaluation {evaluation.id} of {checkpoint} by suite {evaluation.suite.name}: {evaluation.state}")
    say(f"requested {moment(evaluation.created_at)} UTC" + (f", took {seconds}" if seconds else ""))
    columns = ["task", "kind", "state", "done", "unit", "attempts"]
    rows = []
    for task in evaluation.tasks:
        now = task.progress
        done = "" if now.total is None else f"{now.done:,} of {now.total:,}"
        rows.append([task.name, task.kind, task.state, done, now.unit or "", f"{task.shards.attempts:,}"])
    print_table(columns, rows, optional=columns)
    failures = [(f"task {task.name}", task.error) for task in evaluation.tasks if task.error is not None]
    if evaluation.error is not None and not failures:
        failures = [("the evaluation", evaluation.error)]
    for name, error in failures:
        say(in_options(f"{name} failed: {error.message} [{error.code}]"))
        if words := meaning(error.code):
            say(in_options(f"  {error.code}: {words}"))
    for task in evaluation.tasks:
        if (again := task.retry) is not None:
            say(f"task {task.name} is retried at {moment(again.at)} UTC: {in_options(again.error.message)}")
    if failures and evaluation.state in OVER:
        say(f"after the cause is removed: evalsvc retry {evaluation.id}")
    protocols = {identity: content for task in evaluation.tasks for identity, content in task.protocols.items()}
    print_metrics([metric for task in evaluation.tasks for metric in task.metrics or []], protocols)
    for task in evaluation.tasks:
        for warning in task.warnings:
            say(f"suspicious: {warning.metric}: {warning.message}")


def _print_evaluated_suite(suite: EvaluatedSuite) -> None:
    since = {suite.digest: "unchanged since", None: "deleted since"}.get(suite.current_digest, "replaced since")
    say(f"suite {suite.name} of evaluation {suite.evaluation}, {since}; digest {suite.digest}")
    print_suite_tasks(suite.tasks)


@commands.command()
def cancel(
    evaluations: Annotated[list[int], Argument(metavar="ID", min=1, help="Ids of evaluations.")], url: Url = None
) -> None:
    """Cancel evaluations that are queued or running. The results of finished shards are kept."""
    with connect(url) as client:
        for evaluation in evaluations:
            say(f"evaluation {evaluation}: {client.cancel(evaluation).state}")


@commands.command()
def retry(
    names: Annotated[
        list[str],
        Argument(
            metavar="ID",
            help="Ids of evaluations that failed or were cancelled; or with --suite checkpoints: RUN@A..B, "
            "RUN@A..B/EVERY, RUN@STEP or RUN, with :VARIANT unless raw.",
            autocompletion=complete_run,
        ),
    ],
    suite: Annotated[
        str | None,
        Option(
            help="Suite to evaluate the checkpoints with, whether or not they were evaluated before.",
            show_default="none",
            autocompletion=complete_suite,
        ),
    ] = None,
    missing: Annotated[
        bool,
        Option(
            "--missing", help="With --suite: leave out checkpoints that the present version of the suite evaluated."
        ),
    ] = False,
    priority: Priority = 0,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Retry evaluations that failed or were cancelled; the results of finished shards are kept. Or evaluate again.

    With --suite the names are of posted checkpoints, which are evaluated again. The command first prints the number of
    checkpoints, how many were evaluated before, and the estimated time, and asks for confirmation. Checkpoints whose
    evaluation by the suite is queued or running are left out.
    """
    with connect(url) as client:
        if suite is not None:
            for name in names:
                _evaluate_again(client, name, suite, missing, priority, yes)
            return
        refuse({"--missing": missing, "--priority": priority or None}, "without --suite")
        for name in names:
            if not name.isdecimal() or not int(name):
                raise InvalidRequest(
                    f"{name!r} is not the id of an evaluation; give an id, or evaluate the checkpoints that the name "
                    "stands for: --suite SUITE"
                )
        for name in names:
            say(f"evaluation {name}: {client.retry(int(name)).state}")


def _evaluate_again(client: Client, name: str, suite: str, missing: bool, priority: int, yes: bool) -> None:
    digest = client.suite(suite).digest
    matching = matching_checkpoints(client, name)
    steps = [checkpoint.step for checkpoint in matching]
    states: dict[int, set[str]] = {checkpoint.id: set() for checkpoint in matching}
    for evaluation in client.evaluations(matching[0].run, suite=suite, first=min(steps), last=max(steps)):
        if evaluation.checkpoint in states and (evaluation.state not in OVER or evaluation.state == "succeeded"):
            version = "succeeded" if evaluation.suite.digest == digest else "outdated"
            states[evaluation.checkpoint].add(version if evaluation.state in OVER else "open")
    left_out = {"open", "succeeded"} if missing else {"open"}
    chosen = [checkpoint for checkpoint in matching if not left_out & states[checkpoint.id]]
    say(
        f"{counted(len(matching), 'checkpoint')} in the selection: "
        f"{sum('succeeded' in of for of in states.values()):,} evaluated by the present version of suite {suite}, "
        f"{sum('outdated' in of and 'succeeded' not in of for of in states.values()):,} only by an earlier version; "
        f"{sum('open' in of for of in states.values()):,} queued or running, which are left out"
    )
    if not chosen:
        say("no checkpoint is left to evaluate")
        return
    say(_estimate(client, suite, len(chosen)))
    confirm(f"queue {counted(len(chosen), 'evaluation')}", yes)
    for checkpoint in chosen:
        posted = client.evaluate(checkpoint.id, suite, priority)
        say(f"evaluation {posted.id} of {checkpoint_name(posted.run, posted.step, posted.variant)}: {posted.state}")


def matching_checkpoints(client: Client, name: str) -> Sequence[ListedCheckpoint]:
    """Return the checkpoints that RUN, RUN@STEP, RUN@A..B or RUN@A..B/EVERY names, with or without :VARIANT."""
    match = RUN.fullmatch(name) or STEPS.fullmatch(name)
    if match is None:
        forms = "RUN@A..B, RUN@A..B/EVERY, RUN@STEP or RUN, such as pretrained@1000..5000/500"
        raise InvalidRequest(f"{name!r} names no checkpoints; give {forms}")
    parts = match.groupdict()
    first = None if parts.get("first") is None else int(parts["first"])
    last = first if parts.get("last") is None else int(parts["last"])
    stride = int(parts.get("stride") or 1)
    if not stride or (first is not None and last is not None and last < first):
        wrong = f"{first}..{last}" if stride else f"/{stride}"
        do = "give a last step that is not below the first, and an EVERY of at least 1"
        raise InvalidRequest(f"{name!r} has {wrong}; {do}")
    run = parts["run"]
    posted = client.checkpoints(run, variant=parts["variant"] or "raw", first=first, last=last)
    matching = [checkpoint for checkpoint in posted if (checkpoint.step - (first or 0)) % stride == 0]
    if not matching:
        client.run(run, all_checkpoints=False)  # raises UnknownName with similar names if the run does not exist
        raise UnknownName(f"no checkpoint matches {name}; evalsvc checkpoints {run} shows the steps")
    return matching


def _estimate(client: Client, suite: str, count: int) -> str:
    ended = islice(client.evaluations(suite=suite, state="succeeded", page_size=MEASURED), MEASURED)
    seconds = [
        (datetime.fromisoformat(item.finished_at) - datetime.fromisoformat(item.started_at)).total_seconds()
        for item in ended
        if item.started_at is not None and item.finished_at is not None
    ]
    evaluations = counted(count, "evaluation")
    if not seconds:
        return f"{evaluations}; no evaluation by this suite has ended yet, so the time is unknown"
    usual = median(seconds)
    each = f"{duration(usual)} each, the median of the last {len(seconds):,} by this suite"
    return f"{evaluations} in about {duration(count * usual)}: {each}"
