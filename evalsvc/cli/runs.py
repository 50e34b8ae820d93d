"""`evalsvc runs`: list, show, rename and delete runs, and set their bases."""

from __future__ import annotations

from typing import Annotated

import typer

from evalsvc.cli.answers import moment, print_list, print_one, printed_to
from evalsvc.cli.checkpoints import StepCommand, print_checkpoint
from evalsvc.cli.confirmation import confirm_by_name
from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.name_completion import complete_metric, complete_run
from evalsvc.cli.options import Form, Output, RunArgument, Url, Yes, connect
from evalsvc.cli.tables import shown_number
from evalsvc.cli.terminal import say
from evalsvc.cli.wording import counted
from evalsvc.errors import InvalidRequest
from evalsvc.spec import documents
from evalsvc.spec.names import CHECKPOINT
from evalsvc.spec.protocol import labelled

commands = typer.Typer()
runs_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="List, show, rename and delete runs; set their bases."
)
commands.add_typer(runs_app, name="runs")


@runs_app.command("list")
def list_runs(form: Form = "table", output: Output = None, url: Url = None) -> None:
    """List all runs."""
    with connect(url) as client, printed_to(output):
        print_list(client.runs(), form, "runs", _run_row, "no run exists yet; evalsvc submit posts a checkpoint")


def _run_row(run: documents.RunSummary) -> dict[str, str]:
    return {
        "run": run.name,
        "checkpoints": f"{run.checkpoints:,}",
        "last step": "" if run.last_step is None else str(run.last_step),
        "values": f"{run.values:,}",
        "since": moment(run.created_at),
    }


@runs_app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN", help="Run, or a checkpoint as RUN@STEP.", autocompletion=complete_run),
    ],
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show a run with its plan, its base and its checkpoints.

    RUN@STEP shows a checkpoint, like `evalsvc checkpoints show`.
    """
    with connect(url) as client, printed_to(output):
        if CHECKPOINT.fullmatch(name):
            print_checkpoint(client, name, form)
        else:
            print_one(client.run(name), form)


@runs_app.command()
def summary(
    run: RunArgument,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Show only this metric; repeat for several.", show_default="all", autocompletion=complete_metric
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Show only this variant of the weights.", show_default="all")
    ] = None,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show the latest and the best value of each metric of a run."""
    with connect(url) as client, printed_to(output):
        series = client.summary(run, metric or (), variant=variant)
        print_list(series, form, "series", _summary_row, f"run {run} has no values yet")


def _summary_row(series: documents.SummarySeries) -> dict[str, str]:
    latest, best = series.latest, series.best
    values = {"latest": latest and shown_number(latest.value), "at step": latest and str(latest.step)}
    values |= {"best": best and shown_number(best.value), "best at": best and str(best.step)}
    values |= {"best of": best and f"{best.of:,} steps"}
    return {
        "metric": labelled(series.metric, series.differs),
        "variant": series.variant,
        "unit": series.unit,
        **{name: value or "" for name, value in values.items()},
    }


@runs_app.command()
def rename(
    run: RunArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="New name.")],
    url: Url = None,
) -> None:
    """Rename a run.

    The name also changes in expressions, and where the run is the base of other runs.
    """
    with connect(url) as client:
        client.rename_run(run, name)
    say(f"run {run} is renamed to {name}")


@runs_app.command(cls=StepCommand)
def base(
    run: RunArgument,
    step: Annotated[
        int | None, typer.Argument(help="Step of the base; without a step, the command shows the base.")
    ] = None,
    of: Annotated[
        str | None, typer.Option(help="Run of the base.", show_default="this run", autocompletion=complete_run)
    ] = None,
    variant: Annotated[str, typer.Option(help="Variant of the weights of the base, such as ema_0.9999.")] = "raw",
    url: Url = None,
) -> None:
    """Show or set the base of a run: the checkpoint that its other checkpoints are compared with.

    The base is, for example, the language model from which the training started. The default base is step 0 of the run.
    """
    if step is None and of is not None:
        raise InvalidRequest(f"--of {of} is given without a step; give both: evalsvc runs base {run} STEP --of {of}")
    with connect(url) as client:
        if step is None:
            present = client.run(run, all_checkpoints=False).base
        else:
            present = client.set_base(run, step, of=of, variant=variant)
    posted = "not posted yet" if present.checkpoint is None else f"checkpoint {present.checkpoint}"
    say(f"base of {run}: {present.run} step {present.step} {present.variant} ({posted})")


@runs_app.command()
def delete(
    run: RunArgument,
    yes: Yes = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel its evaluations that are queued or running.")
    ] = False,
    url: Url = None,
) -> None:
    """Delete a run with its checkpoints, evaluations, history and artifacts, irrevocably.

    The files that were posted are not deleted.
    """
    with connect(url) as client:
        count = client.run(run, all_checkpoints=False).checkpoint_count
        confirm_by_name(f"run {run} with {counted(count, 'checkpoint')}", run, yes)
        deleted = client.delete_run(run, cancel=cancel)
    say(
        f"run {run} is deleted: {counted(deleted.checkpoints, 'checkpoint')}, "
        f"{counted(deleted.evaluations, 'evaluation')}, {counted(deleted.values, 'value')}, "
        f"{counted(deleted.artifacts, 'artifact')}, {counted(deleted.freed_bytes, 'byte')} of files"
    )
