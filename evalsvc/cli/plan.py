"""`evalsvc plan`: suites that evaluate the checkpoints of a run."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from evalsvc.cli.answers import print_one, printed_to
from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.name_completion import complete_suite
from evalsvc.cli.options import Form, Output, RunArgument, Url, connect
from evalsvc.cli.terminal import print_table, say
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import Plan, PlannedSuite
from evalsvc.spec.documents.reading import content_of
from evalsvc.spec.documents.runs import WhenBehind
from evalsvc.spec.names import MAX_STEP, NAME

commands = typer.Typer()
plan_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Show or set the suites that evaluate the checkpoints of a run."
)
commands.add_typer(plan_app, name="plan")

_STEP = r"\d{1,16}"
_PLANNED = re.compile(
    rf"(?P<suite>{NAME.pattern})(@(?P<first>{_STEP})\.\.(?P<last>{_STEP})?)?(/(?P<every>{_STEP}))?", re.ASCII
)
"""SUITE, SUITE/EVERY, SUITE@FIRST..LAST/EVERY or SUITE@FIRST../EVERY."""


@plan_app.command()
def show(run: RunArgument, form: Form = "table", output: Output = None, url: Url = None) -> None:
    """Show the suites that evaluate the checkpoints of a run."""
    with connect(url) as client, printed_to(output):
        print_one(client.plan(run), form, lambda plan: _print_plan(run, plan))


@plan_app.command("set")
def set_plan(
    run: RunArgument,
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITE[@FIRST..LAST][/EVERY]",
            help="Suites and their steps: loss/500 evaluates multiples of 500, coco@10000../5000 starts at step 10000.",
            show_default="none",
            autocompletion=complete_suite,
        ),
    ] = None,
    when_behind: Annotated[
        WhenBehind,
        typer.Option(
            help="While other checkpoints wait: evaluate all, evaluate only the newest, or refuse new checkpoints."
        ),
    ] = "all",
    at_most: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --when-behind refuse: most steps that may wait for their evaluations.", show_default="1"
        ),
    ] = None,
    none: Annotated[
        bool, typer.Option("--none", help="Remove all suites: evaluate only checkpoints that name their suites.")
    ] = False,
    url: Url = None,
) -> None:
    """Set the suites that evaluate new checkpoints of a run, in place of the present suites.

    A suite without /EVERY evaluates every step.
    """
    planned = [parse_planned(suite) for suite in suites or []]
    if bool(planned) == none:
        raise InvalidRequest(
            "the command has neither suites nor --none; name the suites, such as loss/500, or give --none"
            if not none
            else "--none is given with suites; give either --none or the suites"
        )
    if at_most is not None and when_behind != "refuse":
        raise InvalidRequest(f"--at-most {at_most} is given without --when-behind refuse; give both, or neither")
    plan = content_of(Plan(suites=planned, when_behind=when_behind, at_most=at_most or 1))
    if when_behind != "refuse":
        plan.pop("at_most")  # a service of the previous version refuses this field
    with connect(url) as client:
        _print_plan(run, client.put_plan(run, plan))


def parse_planned(text: str) -> PlannedSuite:
    """Read SUITE[@FIRST..[LAST]][/EVERY].

    Raises:
        InvalidRequest: `text` has another form, a step is too large, LAST is below FIRST, or EVERY is 0.
    """
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
        say(f"run {run} has no suite in its plan; add suites: evalsvc plan set {run} SUITE/EVERY")
        return
    rows = [
        [item.suite, f"{item.every:,}", *("" if step is None else f"{step:,}" for step in (item.first, item.last))]
        for item in plan.suites
    ]
    columns = ["suite", "every", "from step", "to step"]
    print_table(columns, rows, optional=columns)
    limit = f", while {plan.at_most:,} other steps wait" if plan.when_behind == "refuse" else ""
    say(f"when behind: {plan.when_behind}{limit}")
