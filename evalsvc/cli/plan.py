"""`evalsvc plan`: which suites the checkpoints of a run get."""

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
    cls=CommandGroup, no_args_is_help=True, help="Show or set the suites that a run's checkpoints get."
)
commands.add_typer(plan_app, name="plan")

_STEP = r"\d{1,16}"
_PLANNED = re.compile(
    rf"(?P<suite>{NAME.pattern})(@(?P<first>{_STEP})\.\.(?P<last>{_STEP})?)?(/(?P<every>{_STEP}))?", re.ASCII
)
"""SUITE, SUITE/EVERY, SUITE@FIRST..LAST/EVERY or SUITE@FIRST../EVERY."""


@plan_app.command()
def show(run: RunArgument, form: Form = "table", output: Output = None, url: Url = None) -> None:
    """Show the suites that the checkpoints of a run get."""
    with connect(url) as client, printed_to(output):
        print_one(client.plan(run), form, lambda plan: _print_plan(run, plan))


@plan_app.command("set")
def set_plan(
    run: RunArgument,
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITE[@FIRST..LAST][/EVERY]",
            help="The suites: loss/500 is due at every multiple of 500, coco@10000../5000 from step 10000 on.",
            show_default="none",
            autocompletion=complete_suite,
        ),
    ] = None,
    when_behind: Annotated[
        WhenBehind,
        typer.Option(help="While older checkpoints wait: evaluate all, only the newest, or refuse new checkpoints."),
    ] = "all",
    at_most: Annotated[
        int | None,
        typer.Option(min=1, help="With --when-behind refuse: steps whose evaluations may wait.", show_default="1"),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Evaluate no checkpoint that does not ask for it.")] = False,
    url: Url = None,
) -> None:
    """Set the suites that the checkpoints of a run get from now on, in place of those before.

    A suite without /EVERY is due at every step.
    """
    planned = [parse_planned(suite) for suite in suites or []]
    if bool(planned) == none:
        raise InvalidRequest(
            "the plan has neither suites nor --none; name the suites, such as loss/500"
            if not none
            else "--none is given with suites; give one of them"
        )
    if at_most is not None and when_behind != "refuse":
        raise InvalidRequest(f"--at-most {at_most} is given without --when-behind refuse; give both, or neither")
    plan = content_of(Plan(suites=planned, when_behind=when_behind, at_most=at_most or 1))
    if when_behind != "refuse":
        plan.pop("at_most")  # which a service of the version before does not know
    with connect(url) as client:
        _print_plan(run, client.put_plan(run, plan))


def parse_planned(text: str) -> PlannedSuite:
    """Read SUITE[@FIRST..[LAST]][/EVERY].

    Raises:
        InvalidRequest: `text` has another form, a step is too large, LAST is below FIRST, or EVERY is 0.
    """
    found = _PLANNED.fullmatch(text)
    if found is None:
        raise InvalidRequest(f"{text!r} names no suite of a plan; write SUITE, SUITE/EVERY or SUITE@FIRST..LAST/EVERY")
    first, last = (None if found[name] is None else int(found[name]) for name in ("first", "last"))
    every = int(found["every"] or 1)
    if every < 1 or max(every, first or 0, last or 0) > MAX_STEP or (last is not None and last < (first or 0)):
        raise InvalidRequest(
            f"{text!r}: EVERY is at least 1, LAST at least FIRST, and no step is above {MAX_STEP}; correct the numbers"
        )
    return PlannedSuite(suite=found["suite"], every=every, first=first, last=last)


def _print_plan(run: str, plan: Plan) -> None:
    if not plan.suites:
        say(f"run {run} has no suite in its plan; evalsvc plan set {run} SUITE/EVERY sets one")
        return
    rows = [
        [item.suite, f"{item.every:,}", *("" if step is None else f"{step:,}" for step in (item.first, item.last))]
        for item in plan.suites
    ]
    columns = ["suite", "every", "from step", "to step"]
    print_table(columns, rows, optional=columns)
    limit = f", while {plan.at_most:,} other steps wait" if plan.when_behind == "refuse" else ""
    say(f"when behind: {plan.when_behind}{limit}")
