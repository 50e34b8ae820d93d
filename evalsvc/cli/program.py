"""Commands of `evalsvc`, with the module of each command."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer
from typer import Option

from evalsvc import __version__
from evalsvc.cli.lazy_group import Entry, LazyGroup
from evalsvc.cli.terminal import complain, say, warn
from evalsvc.config import guard_processes, unknown_variables
from evalsvc.errors import EvalsvcError, InvalidRequest

SERVICE, POST, READ, ALONE, WRITE = (
    "Run a service",
    "Post and manage checkpoints",
    "Read results",
    "Evaluate without a service",
    "Write suites",
)
"""Titles of sections in `evalsvc --help`."""

COMMANDS = {
    "serve": Entry("evalsvc.cli.serve", SERVICE, "Run the service and its workers on this machine."),
    "worker": Entry("evalsvc.cli.cluster", SERVICE, "Run workers for a scheduler on another machine."),
    "scheduler": Entry("evalsvc.cli.cluster", SERVICE, "Run the scheduler between a service and its workers."),
    "certificates": Entry("evalsvc.cli.cluster", SERVICE, "Make certificates for scheduler, service and workers."),
    "status": Entry("evalsvc.cli.status", SERVICE, "Show workers, the queue, and running and failed evaluations."),
    "tokens": Entry("evalsvc.cli.database", SERVICE, "Make, list and revoke access tokens."),
    "backup": Entry("evalsvc.cli.database", SERVICE, "Write the database and the data folder to one file."),
    "restore": Entry("evalsvc.cli.database", SERVICE, "Restore a backup into an empty database and data folder."),
    "submit": Entry("evalsvc.cli.submit", POST, "Post a checkpoint and have it evaluated."),
    "score": Entry("evalsvc.cli.score", POST, "Measure external images, here or as a step of a run."),
    "watch": Entry("evalsvc.cli.watch", POST, "Post every checkpoint that appears in a folder."),
    "import": Entry("evalsvc.cli.imports", POST, "Import values that other tools measured."),
    "runs": Entry("evalsvc.cli.runs", POST, "List, show and rename runs, and set their bases."),
    "checkpoints": Entry("evalsvc.cli.runs", POST, "List checkpoints, show one, or show its metrics."),
    "delete": Entry("evalsvc.cli.runs", POST, "Delete a run or a checkpoint."),
    "plan": Entry("evalsvc.cli.runs", POST, "Show or set the suites that evaluate a run's checkpoints."),
    "evaluations": Entry("evalsvc.cli.evaluations", POST, "List, show and wait for evaluations."),
    "cancel": Entry("evalsvc.cli.evaluations", POST, "Cancel evaluations."),
    "retry": Entry("evalsvc.cli.evaluations", POST, "Retry evaluations, or evaluate checkpoints again."),
    "history": Entry("evalsvc.cli.history", READ, "Show the metrics of runs by training step."),
    "plot": Entry("evalsvc.cli.plot", READ, "Draw a metric of runs, in the terminal or as a picture."),
    "compare": Entry("evalsvc.cli.compare", READ, "Compare checkpoints or runs, with intervals and verdicts."),
    "gate": Entry("evalsvc.cli.gate", READ, "Fail if a checkpoint is worse than a baseline, as in CI."),
    "completions": Entry("evalsvc.cli.items", READ, "Show the completions of fixed prompts by step."),
    "artifacts": Entry("evalsvc.cli.artifacts", READ, "List, fetch and keep image grids and pages."),
    "export": Entry("evalsvc.cli.artifacts", READ, "Write the dashboard's pages of runs as files."),
    "items": Entry("evalsvc.cli.items", READ, "Show results per item: per image, caption or question."),
    "protocol": Entry("evalsvc.cli.protocol", READ, "Show how values were measured, and how protocols differ."),
    "demo": Entry("evalsvc.cli.demo", ALONE, "Evaluate the small run that comes with evalsvc."),
    "run": Entry("evalsvc.cli.evaluate", ALONE, "Evaluate a checkpoint on this machine."),
    "verify": Entry("evalsvc.cli.verify", ALONE, "Check numbers against other programs and golden values."),
    "doctor": Entry("evalsvc.cli.doctor", ALONE, "Show settings and missing requirements."),
    "inspect": Entry("evalsvc.cli.doctor", ALONE, "Show what a checkpoint is, and how it is evaluated."),
    "layout": Entry("evalsvc.cli.doctor", ALONE, "Find the vocabulary layout of a checkpoint."),
    "suites": Entry("evalsvc.cli.suites", WRITE, "Write, check, list and upload suites."),
    "tasks": Entry("evalsvc.cli.tasks", WRITE, "Show the kinds of tasks and their parameters."),
    "metrics": Entry("evalsvc.cli.tasks", WRITE, "Show the definitions of metrics."),
    "benchmarks": Entry("evalsvc.cli.assets", WRITE, "List and prepare lm-eval's benchmarks."),
    "reference": Entry("evalsvc.cli.assets", WRITE, "Import statistics of real images for FID."),
    "assets": Entry("evalsvc.cli.assets", WRITE, "Fetch the weights of networks that suites need."),
}
"""Commands in the order of `evalsvc --help`, which imports none of the modules."""


class Commands(LazyGroup):
    entries = COMMANDS


app = typer.Typer(
    name="evalsvc",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    options_metavar="[-h] [--version [--verbose]]",
    help="Evaluate auto-regressive text-to-image models and keep a history of metrics.",
    epilog="More: evalsvc COMMAND -h, evalsvc doctor, evalsvc --install-completion.",
)

WRONG_USE, INTERRUPTED = 2, 130
"""Exit codes: the command could not start; Ctrl-C."""


def main() -> NoReturn:
    """Run the console script. Print errors of evalsvc as one line, and exit with code 2."""
    guard_processes()
    try:
        app(prog_name="evalsvc")
    except EvalsvcError as error:
        complain(f"{error.told} [{error.code}]")
        sys.exit(WRONG_USE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _show_version(context: typer.Context, wanted: bool) -> None:
    # `--verbose` is eager, so its value is known even if `--version` comes first.
    is_verbose = context.params.get("verbose", False)
    if is_verbose and not wanted:
        raise InvalidRequest("--verbose is given without --version; give both: evalsvc --version --verbose")
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
    version: Annotated[bool, Option("--version", callback=_show_version, help="Show the version and exit.")] = False,
    verbose: Annotated[
        bool,
        Option(
            "--verbose",
            is_eager=True,
            help="With --version, show what a bug report needs: versions and settings; no secrets.",
        ),
    ] = False,
) -> None:
    for warning in unknown_variables():
        warn(warning)
