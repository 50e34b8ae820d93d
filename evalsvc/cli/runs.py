"""`evalsvc runs`, `checkpoints`, `delete` and `plan`: show, change and delete runs, and plan their evaluations."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.options import (
    Cancel,
    FirstStep,
    Form,
    LastStep,
    Limit,
    OfSuite,
    OfVariant,
    Output,
    RunArgument,
    Url,
    Yes,
    complete_run,
    complete_suite,
    connect,
    refuse,
)
from evalsvc.cli.printer import (
    first_rows,
    page_size,
    print_errors,
    print_list,
    print_metrics,
    print_warnings,
    printed_to,
    show,
)
from evalsvc.cli.terminal import confirm, one_line, say
from evalsvc.cli.wording import counted
from evalsvc.client import OVER
from evalsvc.client.reader import find_checkpoint, locate
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import CheckpointResult, Deleted, DeletedCheckpoint, Plan, PlannedSuite
from evalsvc.spec.documents.fields import State
from evalsvc.spec.documents.runs import MAX_WAITING, WhenBehind
from evalsvc.spec.names import CHECKPOINT, MAX_STEP, NAME, checkpoint_name

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
            of, step, variant = locate(client, base)
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
    with connect(url) as client, printed_to(output):
        if not result:
            refuse({"--suite": suite}, "without --result")
        if result:
            run, step, of_variant = locate(client, name or "")
            show(client.results(run, step, variant=of_variant, suite=suite), form, _print_result)
        elif name is not None and ("@" in name or name.isdecimal()):
            filters = {"--variant": variant, "--state": state, "--from": first, "--to": last}
            refuse(filters, f"with {name}, which is one checkpoint")
            checkpoint = find_checkpoint(client, name)
            show(checkpoint, form)
            for item in checkpoint.evaluations if form == "table" else ():
                tasks = client.evaluation(item.id).tasks if item.state in OVER else []
                for warning in (warning for task in tasks for warning in task.warnings if warning.code == "left_out"):
                    say(f"{warning.metric}: not measured by {item.suite}: {one_line(warning.message)}")
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


_STEP = r"\d{1,16}"
_PLANNED = re.compile(
    rf"(?P<suite>{NAME.pattern})(@(?P<first>{_STEP})\.\.(?P<last>{_STEP})?)?(/(?P<every>{_STEP}))?", re.ASCII
)
"""SUITE, SUITE/EVERY, SUITE@FIRST..LAST/EVERY or SUITE@FIRST../EVERY."""


@commands.command()
def plan(
    run: RunArgument,
    suites: Annotated[
        list[str] | None,
        Argument(
            metavar="SUITE[@FIRST..LAST][/EVERY]",
            help="Suites and their steps: loss/500 evaluates multiples of 500, coco@10000../5000 starts at step 10000.",
            show_default="none: show the plan",
            autocompletion=complete_suite,
        ),
    ] = None,
    when_behind: Annotated[
        WhenBehind | None,
        Option(
            help="While other checkpoints wait: evaluate all, evaluate only the newest, or refuse new checkpoints.",
            show_default="all",
        ),
    ] = None,
    at_most: Annotated[
        int | None,
        Option(
            min=1,
            max=MAX_WAITING,
            help="With --when-behind refuse: most steps that may wait for their evaluations.",
            show_default="1",
        ),
    ] = None,
    none: Annotated[
        bool, Option("--none", help="Remove all suites: evaluate only checkpoints that name their suites.")
    ] = False,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show the suites that evaluate new checkpoints of a run; or set them, in place of the present suites.

    A suite without /EVERY evaluates every step.
    """
    planned = [parse_planned(suite) for suite in suites or []]
    if planned and none:
        raise InvalidRequest("--none is given with suites; give either --none or the suites")
    if not planned and not none:
        refuse({"--when-behind": when_behind, "--at-most": at_most}, "without suites and without --none")
    if at_most is not None and when_behind != "refuse":
        raise InvalidRequest(f"--at-most {at_most} is given without --when-behind refuse; give both, or neither")
    with connect(url) as client, printed_to(output):
        if planned or none:
            new = Plan(suites=planned, when_behind=when_behind or "all", at_most=at_most or 1).model_dump()
            if when_behind != "refuse":
                new.pop("at_most")  # a service of the previous version refuses this field
            present = client.put_plan(run, new)
        else:
            present = client.plan(run)
        show(present, form, partial(_print_plan, run))


def parse_planned(text: str) -> PlannedSuite:
    match = _PLANNED.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"{text!r} is no suite of a plan; write SUITE, SUITE/EVERY or SUITE@FIRST..LAST/EVERY")
    first, last = (None if match[name] is None else int(match[name]) for name in ("first", "last"))
    every = int(match["every"] or 1)
    if every < 1 or max(every, first or 0, last or 0) > MAX_STEP or (last is not None and last < (first or 0)):
        raise InvalidRequest(
            f"{text!r} has a wrong number; give an EVERY of at least 1, a LAST not below FIRST, and steps up to "
            f"{MAX_STEP}"
        )
    return PlannedSuite(suite=match["suite"], every=every, first=first, last=last)


def _print_plan(run: str, plan: Plan) -> None:
    if not plan.suites:
        say(f"run {run} has no suite in its plan; add suites: evalsvc plan {run} SUITE/EVERY")
        return
    print_list(plan.suites, ("suite", "every", "first", "last"), "table", "", "")
    limit = f", while {plan.at_most:,} other steps wait" if plan.when_behind == "refuse" else ""
    say(f"when behind: {plan.when_behind}{limit}")
