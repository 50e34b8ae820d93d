"""The command line: which commands there are, and where each of them is."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from evalsvc import __version__
from evalsvc.cli.lazy_group import Entry, LazyGroup
from evalsvc.cli.terminal import complain, say, warn
from evalsvc.config import unknown_variables
from evalsvc.errors import EvalsvcError, InvalidRequest

COMMANDS = {
    "serve": Entry("evalsvc.cli.serve", "Run the service and its workers on this machine."),
    "worker": Entry(
        "evalsvc.cli.cluster",
        "Run workers for an existing scheduler, and start again whatever ends, until SIGTERM or Ctrl-C.",
    ),
    "scheduler": Entry(
        "evalsvc.cli.cluster",
        "Run the scheduler between a service and workers of other machines, until interrupted.",
    ),
    "certificates": Entry(
        "evalsvc.cli.cluster",
        "Make the certificates that scheduler, service and workers share. Whoever has key.pem is let in.",
    ),
    "demo": Entry(
        "evalsvc.cli.demo",
        "Evaluate the miniature run that comes with evalsvc, end to end: losses, images, FID, what is left "
        "of its English.",
    ),
    "status": Entry(
        "evalsvc.cli.status",
        "Show how the service is: its workers and what they run, the queue, what failed last.",
    ),
    "submit": Entry("evalsvc.cli.checkpoints", "Post a checkpoint to the service and have it evaluated."),
    "sweep": Entry(
        "evalsvc.cli.checkpoints",
        "Post what lies on the straight line between two checkpoints' weights, evenly spaced.",
    ),
    "base": Entry(
        "evalsvc.cli.checkpoints",
        "Say, or show, what a run's checkpoints are compared with, e.g. the language model that it began from.",
    ),
    "watch": Entry(
        "evalsvc.cli.watch",
        "Post every checkpoint that appears in a folder, once, with a line for each.",
    ),
    "show": Entry(
        "evalsvc.cli.runs",
        "Show a run with its plan, base and checkpoints, or one of its checkpoints with the states of its evaluations.",
    ),
    "rename-run": Entry(
        "evalsvc.cli.runs",
        "Give a run another name, in its history, in expressions, and where it is the base of others.",
    ),
    "delete-run": Entry(
        "evalsvc.cli.runs",
        "Delete a run with its checkpoints' evaluations, history and artifacts, for good; files that were posted stay.",
    ),
    "artifacts": Entry("evalsvc.cli.artifacts", "Image grids, samples and pages: which of them are kept."),
    "history": Entry(
        "evalsvc.cli.history",
        "Show a run's metrics along its training, or those of several runs side by side.",
    ),
    "import": Entry(
        "evalsvc.cli.history",
        "Enter values that were measured elsewhere into a run's history, where they are marked as imported.",
    ),
    "completions": Entry(
        "evalsvc.cli.completions",
        "Show what a run's checkpoints made of fixed prompts, prompt by prompt: the base first, then a line per step.",
    ),
    "run": Entry("evalsvc.cli.evaluate", "Evaluate a checkpoint here and now, without a service."),
    "gate": Entry("evalsvc.cli.gate", "Pass or fail a checkpoint by its distance from a baseline, e.g. in CI."),
    "compare": Entry(
        "evalsvc.cli.compare",
        "Say how far two checkpoints are apart: the difference B − A of every metric, its interval, and a verdict.",
    ),
    "verify": Entry(
        "evalsvc.cli.verify",
        "Compute numbers a second time: `evalsvc verify machine`, or `evalsvc verify RUN@STEP`, in full "
        "`evalsvc verify checkpoint RUN@STEP`.",
    ),
    "suites": Entry("evalsvc.cli.suites", "Write, check and list suites: what is evaluated of a checkpoint."),
    "tasks": Entry(
        "evalsvc.cli.tasks",
        "Show the kinds of tasks that a suite may have, or the parameters, metrics and needs of one kind.",
    ),
    "metrics": Entry(
        "evalsvc.cli.metrics",
        "Show how metrics are defined: formula, unit, items, standard error, and how two checkpoints are compared.",
    ),
    "doctor": Entry(
        "evalsvc.cli.doctor",
        "Show every setting, and what is missing for an evaluation: `evalsvc doctor [SUITE]...`, in full "
        "`evalsvc doctor setup`.",
    ),
    "assets": Entry("evalsvc.cli.assets", "Weights of other people's networks, which some suites need."),
    "benchmarks": Entry("evalsvc.cli.benchmarks", "lm-eval's benchmarks, which the task `language` asks."),
    "reference": Entry("evalsvc.cli.reference", "Statistics of real images, which FID compares with."),
    "backup": Entry(
        "evalsvc.cli.backup",
        "Write the database and the data folder to one file, consistent with each other, while the service runs.",
    ),
    "restore": Entry(
        "evalsvc.cli.backup",
        "Restore a backup into an empty database, SQLite or PostgreSQL, and a new data folder.",
    ),
    "token": Entry(
        "evalsvc.cli.token",
        "Make, list and revoke the tokens of a service, on its database; it need not run, and heeds what "
        "was done within seconds. With the first one, a service lets nobody in without a token.",
    ),
}
"""The commands in the order of `evalsvc --help`, which imports none of them."""


class Commands(LazyGroup):
    entries = COMMANDS


app = typer.Typer(
    name="evalsvc",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Evaluate the checkpoints of auto-regressive text-to-image models, and keep one history of metrics per "
    "training step.\n\nBegin with [bold]evalsvc serve[/bold]; post with [bold]evalsvc submit[/bold]; read with "
    "[bold]evalsvc history[/bold]. Every option that is a setting can also be given as a variable "
    "[bold]EVALSVC_…[/bold]; [bold]evalsvc doctor[/bold] lists them.",
)

WRONG_USE, INTERRUPTED = 2, 130
"""Exit codes: it could not be tried; Ctrl-C."""


def main() -> NoReturn:
    """The console script: every error that evalsvc raises on purpose is one line and exit code 2."""
    try:
        app(prog_name="evalsvc")
    except EvalsvcError as error:
        complain(f"{error.message} [{error.code}]")
        sys.exit(WRONG_USE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _show_version(context: typer.Context, wanted: bool) -> None:
    # `--verbose` is eager, so its value is there, wherever it stands.
    is_verbose = context.params.get("verbose", False)
    if is_verbose and not wanted:
        raise InvalidRequest("--verbose says more about --version; give both: evalsvc --version --verbose")
    if not wanted:
        return
    if is_verbose:
        from evalsvc.doctor.bug_report import report_lines

        for line in report_lines():
            say(line)
    else:
        say(f"evalsvc {__version__}")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            is_eager=True,
            help="With --version, show what a bug report needs: versions, cards, database, settings; no secrets.",
        ),
    ] = False,
) -> None:
    for warning in unknown_variables():
        warn(warning)
