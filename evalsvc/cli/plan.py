"""`evalsvc plan`: suites that evaluate the checkpoints of a run."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.name_completion import complete_suite
from evalsvc.cli.options import Form, Output, RunArgument, Url, connect, refuse
from evalsvc.cli.printer import print_list, printed_to, show
from evalsvc.cli.terminal import say
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import Plan, PlannedSuite
from evalsvc.spec.documents.runs import MAX_WAITING, WhenBehind
from evalsvc.spec.names import MAX_STEP, NAME

commands = typer.Typer()
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
    """Read SUITE[@FIRST..[LAST]][/EVERY]."""
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
